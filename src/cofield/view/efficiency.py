"""What labels are worth: the cells of a sweep, of starts or of methods, as a table, a plot and a page."""

import html
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from cofield.train.methods import METHODS
from cofield.train.results import Interval, Row, interval, paired_difference, read_results
from cofield.train.sweep import FROM_TRUNK, kind_of
from cofield.view.report import table

MAIN = ("miou", "map", "space.Car.moderate.r40")  # the one number of a task: the first that it has
ORDER = ("scratch", "scratch-equal-compute", "scratch-converged", "pretrained")
COLOURS: dict[str, str] = dict(zip(ORDER, ("#64748b", "#0e7490", "#7c3aed", "#c2410c"), strict=True))
REFERENCES = ("scratch", "supervised")  # what all others are compared with
FAMILIES = {"supervised": "#64748b", "nerf": "#c2410c", "projection": "#0e7490", "teacher": "#7c3aed"}


@dataclass(frozen=True)
class Line:
    """All cells of one source, label fraction and start, or method.

    Args:
        value: the mean over cells, with its interval over seeds.
        gain: over the reference with the same labels and seeds; None for the reference itself.
    """

    source: str
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


def head(reference: str) -> tuple[str, ...]:
    """What the cells of a line are."""
    kind = "start" if reference == "scratch" else "method"
    return ("labels", kind, "steps", "seeds", "mean", f"over {reference}, paired")


def reference_of(rows: Iterable[Row]) -> str:
    """What the others of a sweep are compared with."""
    known = {row["init"] for row in rows}
    return next((name for name in REFERENCES if name in known), REFERENCES[bool({*map(kind_of, known)} & {*METHODS})])


def ordered(inits: Iterable[str]) -> list[str]:
    """Starts and methods as they are listed here, each followed by what was changed of it, numbers ascending."""
    methods = [start + name for name in METHODS for start in ("", FROM_TRUNK)]
    place = {name: k for k, name in enumerate([*ORDER, *methods])}
    return sorted(set(inits), key=lambda init: (place.get(kind_of(init), len(place)), by_number(init)))


def by_number(name: str) -> list[str | float]:
    """A key to sort names by, in which 16 is before 128."""
    return [float(part) if k % 2 else part for k, part in enumerate(re.split(r"(\d+(?:\.\d+)?)", name))]


def lines(rows: Iterable[Row], metric: str, reference: str | None = None) -> list[Line]:
    """A line for every source, fraction and start that was measured; trunks of one seed are averaged first."""
    found = [row for row in rows if row["metric"] == metric]
    reference = reference or reference_of(found)
    summary = []
    cells = {(row["source"], row["fraction"]) for row in found}
    for source, fraction in sorted(cells, key=lambda cell: (by_number(cell[0]), cell[1])):
        here = [row for row in found if (row["source"], row["fraction"]) == (source, fraction)]
        plain = [row for row in here if row["init"] == reference]
        for init in ordered(row["init"] for row in here):
            mine = [row for row in here if row["init"] == init]
            seeds = sorted({row["seed"] for row in mine})
            each = [interval(row["value"] for row in mine if row["seed"] == seed).mean for seed in seeds]
            shared = {row["seed"] for row in plain} & set(seeds)
            gain = paired_difference(mine, plain, lambda row: row["seed"]) if init != reference and shared else None
            summary.append(Line(source, fraction, init, mine[0]["steps"], len(seeds), interval(each), gain))
    return summary


def report_results(folder: Path) -> list[str]:
    """The parts of a page about a sweep's finished cells."""
    rows = read_results(folder)
    if not rows or any("init" not in row for row in rows):
        raise ValueError(f"{folder} holds no cells of a sweep; cofield sweep NAME writes them to results/NAME")
    # A class that held-out frames do not have, or that was not scored, is no number.
    rows = [row for row in rows if not math.isnan(row["value"])]
    task, names = rows[0]["task"], {row["metric"] for row in rows}
    main = next(name for name in MAIN if name in names)
    commands = sorted({json.loads(path.read_text())["command"] for path in folder.glob("*.json")})
    parts = []
    for source in dict.fromkeys(row["source"] for row in rows):
        here = [row for row in rows if row["source"] == source]
        parts += [f"<h1>Labels and what replaces them: {html.escape(task)} on {html.escape(source)}</h1>"]
        parts += method_parts(here, main) if task == "segment" else start_parts(here, main)
    return [
        *parts,
        "<h2>Repeat it</h2>",
        *(f"<pre>{html.escape(command)}</pre>" for command in commands),
    ]


def start_parts(rows: list[Row], main: str) -> list[str]:
    """One source's starts: over the label fraction, as a table, and of each class."""
    names = [name for name in dict.fromkeys(row["metric"] for row in rows) if name != main]
    return [
        f"<p>{html.escape(main)} on held-out frames against the share of frames that are labelled. Bars are 95 % "
        "intervals over seeds; cells of one seed see the same labels in the same order.</p>",
        efficiency_plot(lines(rows, main), main),
        table(head(reference_of(rows)), [line.cells() for line in lines(rows, main)]),
        "<h2>Each class</h2>",
        *(part for name in names for part in class_section(rows, name)),
    ]


def class_section(rows: list[Row], name: str) -> list[str]:
    """One class's lines."""
    return [
        f"<h3>{html.escape(name.replace('_', ' '))}</h3>",
        table(head(reference_of(rows)), [line.cells() for line in lines(rows, name)]),
    ]


def method_parts(rows: list[Row], main: str) -> list[str]:
    """One source's methods: side by side, as a table, and of each class and distance."""
    summary, reference = lines(rows, main), reference_of(rows)
    parts = [
        f"<p>{html.escape(main)} on held-out scans, and how much that is more than of {reference} with the same labels "
        "and seeds. Bars are 95 % intervals over seeds. An open dot is one seed, which may be an easy or a hard one: "
        "only its difference can be compared with the others'.</p>",
        method_plot(summary, main, reference),
        table(head(reference), [line.cells() for line in summary]),
    ]
    names = [name for name in dict.fromkeys(row["metric"] for row in rows) if name != main]
    for fraction in sorted({line.fraction for line in summary}):
        here = most_seeds([row for row in rows if row["fraction"] == fraction])
        for title, is_band in (("Each class", False), ("By distance", True)):
            known = [name for name in names if name.startswith(f"{main}.") == is_band]
            parts.append(f"<h2>{title}, {fraction:.0%} of the labels</h2>")
            parts.append(f"<figure>{table(*metric_table(here, known))}</figure>")
    return parts


def most_seeds(rows: list[Row]) -> list[Row]:
    """The rows of those starts or methods that have the most seeds; a mean over fewer is of other labels."""
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(row["init"], set()).add(row["seed"])
    most = max(map(len, seeds.values()))
    return [row for row in rows if len(seeds[row["init"]]) == most]


def metric_table(rows: list[Row], names: list[str]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of a table of the means of some metrics, a column for every method."""
    inits = ordered(row["init"] for row in rows)
    body = []
    for name in names:
        mean = {line.init: f"{line.value.mean:.3f}" for line in lines(rows, name)}
        body.append((name.replace("_", " "), *(mean.get(init, "–") for init in inits)))
    return ("IoU, mean over seeds", *inits), body


def method_plot(summary: list[Line], metric: str, reference: str) -> str:
    """A row for every method: the value, and the paired difference to the reference, with intervals, as SVG."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9, 1.2 + 0.3 * len(summary)), layout="constrained")
    left, right = canvas.subplots(1, 2, sharey=True)
    for axes, title, values in (
        (left, metric, [line.value for line in summary]),
        (right, f"{metric} − {reference}'s, paired", [line.gain for line in summary]),
    ):
        for row, (line, value) in enumerate(zip(summary, values, strict=True)):
            if value is None:
                continue
            colour = FAMILIES.get(line.init.partition("-")[0].partition("+")[0], "#1c2430")
            spread = [[value.mean - value.low], [value.high - value.mean]]
            inside = "white" if line.seeds < 2 else colour
            axes.errorbar(value.mean, row, xerr=spread, color=colour, mfc=inside, marker="o", capsize=3, lw=1.6)
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(axis="x", color="#dcdfe4", lw=0.6)
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    right.axvline(0, color="#64748b", lw=1)
    several = len({line.fraction for line in summary}) > 1
    names = [f"{line.fraction:.0%} {line.init}" if several else line.init for line in summary]
    left.set_yticks(range(len(summary)), names)
    left.set_ylim(len(summary) - 0.5, -0.5)
    return _drawn(canvas)


def efficiency_plot(summary: list[Line], metric: str) -> str:
    """The value over the label fraction, a curve for each start, as SVG."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(7, 3.8), layout="constrained")
    axes = canvas.subplots()
    fractions = sorted({line.fraction for line in summary})
    starts = ordered(line.init for line in summary)
    for place, init in enumerate(starts):
        mine = [line for line in summary if line.init == init]
        # Starts stand side by side at each fraction, so that their intervals do not hide each other.
        x = [fractions.index(line.fraction) + 0.08 * (place - (len(starts) - 1) / 2) for line in mine]
        y = [line.value.mean for line in mine]
        spread = [
            [line.value.mean - line.value.low for line in mine],
            [line.value.high - line.value.mean for line in mine],
        ]
        axes.errorbar(x, y, spread, label=init, color=COLOURS.get(init), marker="o", capsize=4, lw=1.6)
    axes.set_xticks(range(len(fractions)), [f"{fraction:.0%}" for fraction in fractions])
    axes.set_xlim(-0.5, len(fractions) - 0.5)
    axes.set_xlabel("labelled frames")
    axes.set_ylabel(metric)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=False, loc="lower right")
    return _drawn(canvas)


def signed(gain: Interval) -> str:
    """A difference with its sign and interval."""
    if gain.count < 2:
        return f"{gain.mean:+.3f}"
    return f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def _drawn(canvas: Any) -> str:
    """A plot inside the page."""
    text = StringIO()
    canvas.savefig(text, format="svg")
    svg = text.getvalue()
    return f'<figure><div class="chart">{svg[svg.index("<svg") :]}</div></figure>'
