"""One HTML file that holds everything about a run: no server, no script, nothing beside it."""

import base64
import html
from collections.abc import Collection, Iterable
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
from PIL import Image

from cofield.train.config import as_yaml
from cofield.train.measure import measure, paint_frame, with_novel
from cofield.train.recipes import repeat
from cofield.train.run import open_run
from cofield.train.watch import read_metrics
from cofield.view.paint import Picture, tiles
from cofield.view.pictures import above_pictures, beam_pictures, camera_pictures, frames_of, novel_pictures

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #fbfbf9; --line: #dcdfe4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --paper: #14181d; --line: #313841; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 72rem; color: var(--ink); background: var(--paper);
       font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p, figcaption { color: var(--soft); max-width: 46rem; }
figure { margin: 1rem 0; overflow-x: auto; } img, svg { max-width: 100%; height: auto; border-radius: 4px; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); }
.plots svg, .chart svg { background: #fff; width: 100%; } .chart { max-width: 44rem; }
table { border-collapse: collapse; } td, th { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line);
        text-align: left; font-variant-numeric: tabular-nums; } td + td, th + th { text-align: right; }
pre { overflow-x: auto; padding: .8rem 1rem; border: 1px solid var(--line); border-radius: 4px; font-size: .85rem; }
@media (max-width: 40rem) { .wide img { width: 60rem; max-width: none; } body { padding-top: 1rem; } }
"""

STROKES = {
    "train": {"color": "#9db4cc", "lw": 1},
    "held_out": {"color": "#c2410c", "lw": 1.8, "marker": "o", "markersize": 3},
}
MEANING = {
    "range_error": "median relative range error of hidden beams inside the grid",
    "psnr": "PSNR of colours in hidden patches, dB",
    "psnr_mean_image": "the same if each were painted with its image's mean colour, dB",
    "novel_psnr": "PSNR of cameras half a metre aside, dB",
    "novel_psnr_mean_image": "the same, painted with the mean colour, dB",
    "novel_depth_error": "median relative depth error of cameras half a metre aside",
}


def report_run(
    folder: Path,
    frames: int = 2,
    comparison: list[tuple[str, float, float]] | None = None,
    skip_broken: bool = False,
) -> list[str]:
    """The parts of a page about a pre-training run.

    Args:
        comparison: names with a value from scratch and one from this run's trunk, to be shown first.
    """
    config, task = open_run(folder)
    source, indices = frames_of(config, "val", frames, skip_broken)
    sections = []
    for frame, novel in with_novel(task, source, indices):
        painting = paint_frame(task, frame, novel)
        sections.append(f"<h2>Frame {html.escape(frame.token)}</h2>")
        sheets = [
            ("Cameras: black patches were hidden.", camera_pictures(painting, config.grid), 6, 300),
            ("The LiDAR as a panorama.", beam_pictures(painting), 1, 1080),
            ("From above, forward is up.", above_pictures(painting, config.grid), 3, 300),
            ("Cameras that the car does not carry.", novel_pictures(painting), 3, 300),
        ]  # fmt: skip
        sections += [figure(tiles(each, n, width), text) for text, each, n, width in sheets if each]
    scores = measure(task, source, indices)
    rows = [
        (MEANING.get(name, f"mean error, {name.replace('_', ' ')}"), f"{value:.4g}") for name, value in scores.items()
    ]
    return [
        f"<h1>Pre-training on {html.escape(config.data.source)}</h1>",
        f"<p>What a field learned from {config.optim.steps} steps without a label paints of frames it never saw.</p>",
        *transfer(comparison or []),
        "<h2>Held-out frames</h2>",
        f"<p>Measured on every ray of {len(indices)} of the {len(source)} held-out frames, shown below.</p>",
        table(("what", "value"), rows),
        *sections,
        "<h2>Learning</h2>",
        curves(folder / "metrics.csv"),
        "<h2>Repeat it</h2>",
        f"<pre>{html.escape(repeat(config))} --run NEW-FOLDER</pre>",
        "<p>which stands for:</p>",
        f"<pre>{html.escape(as_yaml(config))}</pre>",
    ]


def transfer(comparison: list[tuple[str, float, float]]) -> list[str]:
    """What the trunk was worth to a task with few labels."""
    if not comparison:
        return []
    rows = [(name.replace("_", " "), f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}") for name, a, b in comparison]
    return ["<h2>Transfer: IoU with few labels</h2>", table(("layer", "scratch", "pre-trained", "difference"), rows)]


def write_page(out: Path, title: str, parts: Iterable[str]) -> None:
    """One file with everything in it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(document(title, parts), encoding="utf-8")


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>"


def figure(image: Picture, caption: str) -> str:
    """A picture inside the page."""
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    picture = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f'<figure class="wide">{picture}<figcaption>{text}</figcaption></figure>'


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table of text."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def curves(path: Path, without: Collection[str] = ()) -> str:
    """A small plot for every term: training, and held out; none for what was measured once and has no course."""
    known = {key: values for key, values in read_metrics(path).items() if key[1] not in without}
    several = {name for (_, name), values in known.items() if len(values) > 1}
    found = {key: values for key, values in known.items() if key[1] in several}
    names = list(dict.fromkeys(name for split, name in found if split == "train"))
    names += [name for split, name in found if split == "held_out" and name not in names]
    return f'<div class="plots">{"".join(plot(name, found) for name in names)}</div>'


def plot(name: str, found: dict[tuple[str, str], list[tuple[int, float]]]) -> str:
    """One value over the steps, as SVG."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(4, 2.4), layout="constrained")
    axes = canvas.subplots()
    for split, style in STROKES.items():
        points = found.get((split, name), [])
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, smooth(values) if split == "train" else values, label=split.replace("_", " "), **style)
    axes.set_title(name.replace("_", " "), fontsize=10, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    text = StringIO()
    canvas.savefig(text, format="svg")
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def smooth(values: tuple[float, ...], share: float = 0.02) -> np.ndarray:
    """A running mean over a share of the curve, so that its course shows."""
    width = max(1, int(len(values) * share))
    padded = np.pad(np.asarray(values), (width - 1, 0), mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
