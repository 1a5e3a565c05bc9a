"""Pictures of pseudo-labels: what a network sees in each camera, how sure it is, and what it is taught of that."""

import html
from io import StringIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from cofield.classes import LIDARSEG, Classes, translate
from cofield.data import Source
from cofield.frame import Frame
from cofield.train.config import SegmentTuning, as_yaml
from cofield.train.predict import score
from cofield.train.pseudo import Looked, look_at, prior_needed, segments_of
from cofield.train.run import open_finetuned
from cofield.train.semi import SemiSegment
from cofield.train.watch import read_metrics
from cofield.view.paint import SEMANTIC_PALETTE, Picture, picture, semantic_picture, tiles
from cofield.view.pictures import frames_of, heat
from cofield.view.predictions import prediction_pictures, render_predictions
from cofield.view.report import curves, figure, table
from cofield.view.segments import segment_picture

COLUMNS = 6  # pictures of a camera
SHARES = {"kept": "#64748b", "precision": "#c2410c", "recall": "#0e7490"}
MEANING = {
    "kept": "segments that are kept, of those asked",
    "voting": "pixels or points that are sure enough to vote",
    "labelled": "pixels or points that get a pseudo-label",
    "precision": "right pseudo-labels, of those on what has a class",
    "recall": "right pseudo-labels, of all that has a class",
    "unfounded": "pseudo-labels on what has no class, as the sky",
}


def looked_pictures(frame: Frame, looked: Looked, classes: Classes) -> list[tuple[str, Picture]]:
    """For every camera: image, what is said of it, its entropy from blue to red, segments, pseudo-labels and truth."""
    thin = bool(looked.entropy.isnan().float().mean() > 0.5)  # single points, which are drawn larger than a pixel
    shown: list[tuple[str, Picture]] = []
    for n, camera in enumerate(frame.cameras):
        size = (slice(camera.image.shape[-2]), slice(camera.image.shape[-1]))
        asked = looked.entropy[n].nan_to_num(-1)
        entropy = thick(asked) if thin else asked
        shown += [
            (camera.name, picture(camera.image)),
            ("classes of points" if thin else "rendered classes", _painted(looked.said[n], classes, thin)),
            ("entropy", heat(torch.where(entropy < 0, torch.nan, entropy))),
            ("segments", _segments(looked, n, camera.image)),
            ("pseudo-labels", _painted(looked.taught[n], classes, thin)),
            ("truth", _unknown(camera.image) if looked.truth is None else _painted(looked.truth[n], classes, False)),
        ]
        shown[-5:] = [(name, each[size]) for name, each in shown[-5:]]
    return shown


def legend(classes: Classes) -> Picture:
    """The colour of every class."""
    tones = SEMANTIC_PALETTE[translate(torch.arange(len(classes)), classes, LIDARSEG).numpy()]
    return tiles(
        [(name, np.full((12, 120, 3), tone)) for name, tone in zip(classes.names, tones, strict=True)], 16, 120
    )


def look_at_frames(
    config: SegmentTuning, task: SemiSegment, source: Source, indices: list[int]
) -> list[tuple[Frame, Looked]]:
    """Frames and what the cameras would teach of them; none of a method that does not look."""
    if not (task.semi.looks and task.semi.weight):
        return []
    prior = prior_needed(config, len(task.classes))
    frames = [source[index] for index in indices]
    return [(frame, look_at(task, frame, segments_of(config, source.name, frame), prior)) for frame in frames]


def pooled(looked: list[Looked]) -> dict[str, float]:
    """The mean over frames of each share, of those that have it."""
    names = dict.fromkeys(name for each in looked for name in each.score)
    values = {name: np.array([each.score.get(name, np.nan) for each in looked]) for name in names}
    return {name: float(np.nanmean(each)) for name, each in values.items() if not np.isnan(each).all()}


def render_segmentation(
    folder: Path, out: Path, frames: int, split: str = "val", skip_broken: bool = False
) -> dict[str, float]:
    """Write pictures of a run's held-out frames: the points' classes, and of a run that learns from cameras what it
    would teach itself there; the score of those frames, and the shares of pseudo-labels.
    """
    scores = render_predictions(folder, out, frames, split, skip_broken)
    config, task = open_segmentation(folder)
    looked = look_at_frames(config, task, *frames_of(config, split, frames, skip_broken))
    for frame, each in looked:
        cells = [*looked_pictures(frame, each, task.classes)]
        sheet = np.concatenate([tiles(cells, COLUMNS, 320), across(legend(task.classes), COLUMNS * 320)])
        Image.fromarray(sheet).save(out / f"{frame.token.replace('/', '-')}-pseudo.png")
    return scores | {f"pseudo.{name}": value for name, value in pooled([each for _, each in looked]).items()}


def open_segmentation(folder: Path) -> tuple[SegmentTuning, SemiSegment]:
    """A run of segmentation from few labels."""
    config, task = open_finetuned(folder)
    if not isinstance(config, SegmentTuning) or not isinstance(task, SemiSegment):
        raise ValueError(f"{folder} is a run of the task {config.task}; here fit those of lidarseg recipes")
    return config, task


def report_segmentation(folder: Path, frames: int = 2, skip_broken: bool = False) -> list[str]:
    """The parts of a page about a run of segmentation from few labels."""
    config, task = open_segmentation(folder)
    source, indices = frames_of(config, "val", frames, skip_broken)
    looked = look_at_frames(config, task, source, indices)
    scores = score(task, source, indices)
    learned = shares_plot(folder / "metrics.csv")
    return [
        f"<h1>Segmentation of {html.escape(config.data.source)} from {config.labels.fraction:.0%} of the labels</h1>",
        f"<p>{html.escape(config.semi.method)} with {html.escape(config.pseudo.segmenter)} segments, "
        f"{config.optim.steps} steps.</p>",
        "<h2>Held-out frames</h2>",
        f"<p>Measured on {len(indices)} of the {len(source)} held-out frames.</p>",
        table(("IoU", "value"), [(name.replace("_", " "), f"{value:.3f}") for name, value in scores.items()]),
        *pseudo_parts(looked),
        *(figure(tiles(looked_pictures(*each, task.classes), COLUMNS, 240), each[0].token) for each in looked),
        *(part for index in indices for part in point_parts(task, source, index)),
        figure(legend(task.classes), "The colours."),
        *(["<h2>Pseudo-labels over training</h2>", learned] if learned else []),
        "<h2>Learning</h2>",
        curves(folder / "metrics.csv", without=MEANING),
        "<h2>The run</h2>",
        f"<pre>{html.escape(as_yaml(config))}</pre>",
    ]


def pseudo_parts(looked: list[tuple[Frame, Looked]]) -> list[str]:
    """What pseudo-labels of the shown frames would be like."""
    if not looked:
        return []
    found = pooled([each for _, each in looked])
    return [
        "<h2>Pseudo-labels</h2>",
        "<p>What the run would teach itself of these frames, by all their pixels: in training, a few pixels of some "
        "segments vote. Columns: image, classes, entropy (blue is sure), segments, pseudo-labels, truth.</p>",
        table(("of the frames below", "share"), [(MEANING[name], f"{value:.3f}") for name, value in found.items()]),
    ]


def point_parts(task: SemiSegment, source: Source, index: int) -> list[str]:
    """A frame's points from above."""
    frame = source[index]
    shown = prediction_pictures(task, frame, source.box_classes, source.point_classes)
    return [figure(tiles(shown, 2, 480), f"{frame.token} from above, forward is up.")]


def shares_plot(metrics: Path, share: float = 0.05) -> str | None:
    """Kept segments, precision and recall over the steps, running means, as SVG; None where none was logged."""
    from matplotlib.figure import Figure

    found = {name: values for (split, name), values in read_metrics(metrics).items() if split == "train"}
    known = {name: np.array(found[name]) for name in SHARES if name in found}
    known = {name: values for name, values in known.items() if not np.isnan(values[:, 1]).all()}
    if not known:
        return None
    canvas = Figure(figsize=(7, 3), layout="constrained")
    axes = canvas.subplots()
    for name, values in known.items():
        steps, mean = values[:, 0], running_mean(values[:, 1], max(1, round(len(values) * share)))
        axes.plot(steps, mean, color=SHARES[name], label=name, lw=1.6)
    axes.set_ylim(0, 1)
    axes.set_xlabel("step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=False)
    text = StringIO()
    canvas.savefig(text, format="svg")
    svg = text.getvalue()
    return f'<figure><div class="chart">{svg[svg.index("<svg") :]}</div></figure>'


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of the last `width` values that are numbers; NaN where none is."""
    known = ~np.isnan(values)
    total, count = (np.concatenate([[0.0], each.cumsum()]) for each in (np.where(known, values, 0), known))
    start = np.maximum(0, np.arange(1, len(values) + 1) - width)
    with np.errstate(invalid="ignore"):
        return (total[1:] - total[start]) / (count[1:] - count[start])


def across(image: Picture, width: int) -> Picture:
    """The picture on a dark ground of another width."""
    missing = max(0, width - image.shape[1])
    return np.pad(image[:, :width], ((0, 0), (0, missing), (0, 0)), constant_values=25)


def thick(values: Tensor, size: int = 3) -> Tensor:
    """Every value spread over the pixels around it; where two meet the higher stays."""
    return F.max_pool2d(values[None].float(), size, stride=1, padding=size // 2)[0].to(values.dtype)


def _painted(label: Int[Tensor, "h w"], classes: Classes, thin: bool) -> Picture:
    return semantic_picture(translate(thick(label) if thin else label, classes, LIDARSEG))


def _segments(looked: Looked, camera: int, image: Tensor) -> Picture:
    if looked.segments is None:
        return _unknown(image)
    label = looked.segments[camera, : image.shape[-2], : image.shape[-1]]
    return segment_picture(image, label)


def _unknown(image: Tensor) -> Picture:
    """Grey: there is nothing to show."""
    return np.full((*image.shape[-2:], 3), 60, np.uint8)
