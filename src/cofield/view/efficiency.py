"""What labels are worth with and without a pre-trained trunk: the cells of a sweep as a table, a plot and a page."""

import html
import json
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from cofield.train.results import Interval, Row, interval, paired_difference, read_results
from cofield.view.report import table

MAIN = {"map": "miou", "detect": "map", "points": "miou"}  # the one number of a task
ORDER = ("scratch", "scratch-equal-compute", "scratch-converged", "pretrained")
COLOURS: dict[str, str] = dict(zip(ORDER, ("#64748b", "#0e7490", "#7c3aed", "#c2410c"), strict=True))
HEAD = ("labels", "start", "steps", "seeds", "mean", "over scratch, paired")


@dataclass(frozen=True)
class Line:
    """All cells of one label fraction and one start.

    Args:
        value: the mean over cells, with its interval over seeds.
        gain: over `scratch` with the same labels and seeds; None for scratch itself.
    """

    fraction: float
    init: str
    steps: int
    seeds: int
    value: Interval
    gain: Interval | None

    def cells(self) -> tuple[str, ...]:
        """The line as text, intervals of 95 %."""
        gain = "–" if self.gain is None else signed(self.gain)
        return (f"{self.fraction:.0%}", self.init, str(self.steps), str(self.seeds), str(self.value), gain)


def lines(rows: Iterable[Row], metric: str) -> list[Line]:
    """A line for every fraction and start that was measured; trunks of one seed are averaged first."""
    found = [row for row in rows if row["metric"] == metric]
    summary = []
    for fraction in sorted({row["fraction"] for row in found}):
        here = [row for row in found if row["fraction"] == fraction]
        scratch = [row for row in here if row["init"] == "scratch"]
        for init in [name for name in ORDER if any(row["init"] == name for row in here)]:
            mine = [row for row in here if row["init"] == init]
            seeds = sorted({row["seed"] for row in mine})
            each = [interval(row["value"] for row in mine if row["seed"] == seed).mean for seed in seeds]
            shared = {row["seed"] for row in scratch} & set(seeds)
            gain = paired_difference(mine, scratch, lambda row: row["seed"]) if init != "scratch" and shared else None
            summary.append(Line(fraction, init, mine[0]["steps"], len(seeds), interval(each), gain))
    return summary


def report_results(folder: Path) -> list[str]:
    """The parts of a page about a sweep's finished cells."""
    rows = read_results(folder)
    if not rows or any("init" not in row for row in rows):
        raise ValueError(f"{folder} holds no cells of a sweep; cofield sweep NAME writes them to results/NAME")
    task, source = rows[0]["task"], rows[0]["source"]
    main = MAIN[task]
    names = [main, *(name for name in dict.fromkeys(row["metric"] for row in rows) if name != main)]
    commands = sorted({json.loads(path.read_text())["command"] for path in folder.glob("*.json")})
    return [
        f"<h1>Labels and what replaces them: {html.escape(task)} on {html.escape(source)}</h1>",
        f"<p>{html.escape(main)} on held-out frames against the share of frames that are labelled. Bars are 95 % "
        "intervals over seeds; cells of one seed see the same labels in the same order.</p>",
        efficiency_plot(lines(rows, main), main),
        table(HEAD, [line.cells() for line in lines(rows, main)]),
        "<h2>Each class</h2>",
        *(part for name in names[1:] for part in class_section(rows, name)),
        "<h2>Repeat it</h2>",
        *(f"<pre>{html.escape(command)}</pre>" for command in commands),
    ]


def class_section(rows: list[Row], name: str) -> list[str]:
    """One class's lines."""
    return [
        f"<h3>{html.escape(name.replace('_', ' '))}</h3>",
        table(HEAD, [line.cells() for line in lines(rows, name)]),
    ]


def efficiency_plot(summary: list[Line], metric: str) -> str:
    """The value over the label fraction, a curve for each start, as SVG."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(7, 3.8), layout="constrained")
    axes = canvas.subplots()
    fractions = sorted({line.fraction for line in summary})
    starts = [name for name in ORDER if any(line.init == name for line in summary)]
    for place, init in enumerate(starts):
        mine = [line for line in summary if line.init == init]
        # Starts stand side by side at each fraction, so that their intervals do not hide each other.
        x = [fractions.index(line.fraction) + 0.08 * (place - (len(starts) - 1) / 2) for line in mine]
        y = [line.value.mean for line in mine]
        spread = [
            [line.value.mean - line.value.low for line in mine],
            [line.value.high - line.value.mean for line in mine],
        ]
        axes.errorbar(x, y, spread, label=init, color=COLOURS[init], marker="o", capsize=4, lw=1.6)
    axes.set_xticks(range(len(fractions)), [f"{fraction:.0%}" for fraction in fractions])
    axes.set_xlim(-0.5, len(fractions) - 0.5)
    axes.set_xlabel("labelled frames")
    axes.set_ylabel(metric)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=False, loc="lower right")
    text = StringIO()
    canvas.savefig(text, format="svg")
    svg = text.getvalue()
    return f'<figure><div class="chart">{svg[svg.index("<svg") :]}</div></figure>'


def signed(gain: Interval) -> str:
    """A difference with its sign and interval."""
    if gain.count < 2:
        return f"{gain.mean:+.3f}"
    return f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
