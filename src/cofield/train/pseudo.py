"""What a network makes of every pixel of a frame, and what its segments would be taught: pseudo-labels to look at."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cofield.classes import UNKNOWN
from cofield.data.fractions import Subset, labelled
from cofield.data.segment_cache import SegmentCache
from cofield.data.segments import segmenter_called
from cofield.frame import Batch, Frame, collate
from cofield.models.project import beside, in_front, point_labels
from cofield.models.semantics import entropy, seen_classes
from cofield.models.vote import told_apart, vote
from cofield.rays import Rays
from cofield.train.config import SegmentTuning
from cofield.train.few_labels import PIXELS
from cofield.train.run import open_split
from cofield.train.semi import Reading, SemiSegment, prior_of

RAYS = 4096  # rendered at a time, so that a laptop's memory is enough
SOLID = 0.5  # a ray that is stopped less than this shows nothing


@dataclass(frozen=True)
class Looked:
    """All pixels of a frame's cameras.

    Args:
        said: the likeliest class, rendered or of the points that fall there; UNKNOWN where there is neither.
        entropy: of the classes, 0 to 1; NaN where nothing was asked.
        segments: told apart; None where every pixel is one.
        taught: the pseudo-labels, from all pixels of a segment; in training a few of them vote.
        truth: None where nobody knows it.
        score: the shares of `Votes.score`.
    """

    said: Int[Tensor, "n h w"]
    entropy: Float[Tensor, "n h w"]
    segments: Int[Tensor, "n h w"] | None
    taught: Int[Tensor, "n h w"]
    truth: Int[Tensor, "n h w"] | None
    score: dict[str, float]


@torch.no_grad()
def look_at(
    task: SemiSegment, frame: Frame, segments: Int[Tensor, "n h w"] | None, prior: Float[Tensor, "k"] | None = None
) -> Looked:
    """What a task that learns from cameras makes of a frame's, without any noise.

    Args:
        segments: of each image, UNKNOWN where there is none; None lets every pixel stand for itself.
        prior: how often the labelled scans show each class, for caution and balance.
    """
    batch = collate([frame])
    if not frame.cameras:
        raise ValueError(f"frame {frame.token} has no cameras, and so no pseudo-labels to look at")
    reading = task.read(batch)
    at = None
    if task.semi.method == "nerf":
        pixels = batch.valid.flatten().nonzero()[:, 0]
        classes, said = rendered(task, batch, reading, pixels)
    else:
        at = in_front(batch)
        pixels, classes = at.pixel, reading.points.softmax(-1)[at.point]
        said = classes.argmax(-1)
    if segments is None:
        segment = torch.arange(len(pixels))
    else:
        segments = told_apart(segments[None], task.confidence.pixels)[0]
        segment = segments.flatten()[pixels]
    if at is None and task.semi.together and segments is not None:
        voters = beside(classes, segment, in_front(batch), reading.points.softmax(-1), segments[None])
        votes = vote(*voters, task.confidence, prior)
        rays = slice(len(pixels))
        votes = replace(votes, label=votes.label[rays], votes=votes.votes[rays], slot=votes.slot[rays])
    else:
        votes = vote(classes, segment, task.confidence, prior)
    label = votes.label
    if at is not None:
        agree = task.semi.method == "projection-consistent"
        label = point_labels(at, label, len(batch.points), agree)[at.point]

    truth = true_classes(frame, batch)
    asked = None if truth is None else truth.flatten()[pixels]
    if at is not None and frame.points.labels is not None:
        asked = frame.points.labels[at.point]  # what is taught are points: another thing may be in front of one

    def spread(values: Tensor, nothing: float | int) -> Tensor:
        flat = torch.full((batch.valid.numel(),), nothing, dtype=values.dtype)
        flat[pixels] = values
        return flat.view(batch.valid.shape[1:])

    return Looked(
        said=spread(said, UNKNOWN),
        entropy=spread(entropy(classes), torch.nan),
        segments=segments,
        taught=spread(label, UNKNOWN),
        truth=truth,
        score=replace(votes, label=label).score(asked),
    )


def rendered(
    task: SemiSegment, batch: Batch, reading: Reading, pixels: Int[Tensor, "r"]
) -> tuple[Float[Tensor, "r k"], Int[Tensor, "r"]]:
    """How likely each class is at pixels, and the likeliest; UNKNOWN where a ray passes through everything."""
    assert task.field is not None
    assert reading.volume is not None
    classes, said = [], []
    rays = Rays.from_cameras(batch, pixels, reading.volume.grid)
    for start in range(0, len(rays), RAYS):
        piece = rays.select(slice(start, start + RAYS))
        seen = task.see(batch, reading.volume, piece, torch.full((len(piece), task.pseudo.samples), 0.5))
        classes.append(seen_classes(seen))
        said.append(torch.where(seen.opacity > SOLID, classes[-1].argmax(-1), UNKNOWN))
    return torch.cat(classes), torch.cat(said)


def true_classes(frame: Frame, batch: Batch) -> Int[Tensor, "n h w"] | None:
    """The class of every pixel where the source knows it."""
    known = [camera.semantics for camera in frame.cameras]
    if any(each is None for each in known):
        return None
    return padded([each.long() for each in known if each is not None], batch)


def segments_of(config: SegmentTuning, source: str, frame: Frame) -> Int[Tensor, "n h w"] | None:
    """The segments of a frame's images: from the run's folder if they are in it, else computed by its segmenter."""
    pseudo = config.pseudo
    if pseudo.segmenter == PIXELS:
        return None
    segmenter = segmenter_called(pseudo.segmenter, pseudo.weights)
    if pseudo.segments is not None:
        cache = SegmentCache(Path(pseudo.segments), source, segmenter)
        if cache.path(frame.token).exists():
            return padded([*cache.read(frame)], collate([frame]))
    return padded([segmenter(camera, frame.token) for camera in frame.cameras], collate([frame]))


def prior_needed(config: SegmentTuning, classes: int) -> Tensor | None:
    """How often the run's labelled scans show each class, if its pseudo-labels ask for that."""
    if not (config.pseudo.caution or config.pseudo.balance):
        return None
    source, labels = open_split(config.data, "train"), config.labels
    return prior_of(Subset(source, labelled(source, labels.fraction, labels.split, labels.seed)), classes)


def padded(labels: list[Int[Tensor, "_ _"]], batch: Batch) -> Int[Tensor, "n h w"]:
    """Label images at the batch's size, UNKNOWN beyond their own."""
    out = torch.full(batch.valid.shape[1:], UNKNOWN)
    for n, label in enumerate(labels):
        out[n, : label.shape[0], : label.shape[1]] = label
    return out
