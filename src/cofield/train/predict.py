"""A trained run as a function of a frame, as a score, and as the official result files."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from cofield.classes import LIDARSEG
from cofield.data import Source
from cofield.data.loader import evaluation_batches
from cofield.data.nuscenes import NuScenes
from cofield.data.submission import (
    MapRaster,
    in_world,
    write_detections,
    write_lidarseg,
    write_lidarseg_meta,
    write_map,
    write_semantickitti,
)
from cofield.frame import Boxes, Frame, collate
from cofield.grid import Volume
from cofield.train.config import Finetuning
from cofield.train.run import open_finetuned, open_run, run_config
from cofield.train.tasks import Detect, MapSegment, PointSegment, Supervised

Prediction = MapRaster | Boxes | Int[Tensor, "p"]


def load(run: Path | str) -> Callable[[Frame], Prediction | Volume]:
    """What a run has learned to say of a frame.

    A fine-tuned one gives its map, its boxes or the labels of the frame's points; a pre-trained one the trunk's volume.
    """
    folder = Path(run)
    if isinstance(run_config(folder), Finetuning):
        _, task = open_finetuned(folder)
        return lambda frame: predicted(task, frame)
    _, painter = open_run(folder)

    @torch.no_grad()
    def volume(frame: Frame) -> Volume:
        return painter.trunk(collate([frame]))

    return volume


@torch.no_grad()
def predicted(task: Supervised, frame: Frame) -> Prediction:
    """What a fine-tuned task says of one frame."""
    batch = collate([frame])
    match task:
        case MapSegment():
            return MapRaster(frame.token, task(batch)[0], task.head.names, task.head.grid)
        case Detect():
            return task(batch)[0]
        case PointSegment():
            return task(batch)
    raise ValueError(f"a {type(task).__name__} does not predict single frames")


@torch.no_grad()
def score(task: Supervised, source: Source, indices: list[int], batch: int = 1) -> dict[str, float]:
    """What frames score, every measured value by its name."""
    counted = task.fresh_score()
    for frames in evaluation_batches(source, batch, indices):
        task.count(counted, frames)
    return task.told(counted)


def write_predictions(task: Supervised, source: Source, indices: list[int], split: str, out: Path) -> Path:
    """What a task says of frames, as the official evaluations read it; the folder or file that it is in."""
    match task:
        case MapSegment():
            for frame in _frames(source, indices):
                raster = predicted(task, frame)
                assert isinstance(raster, MapRaster)
                write_map(out / "maps", raster)
            return out / "maps"
        case Detect():
            write_detections(out / "detections.json", _detected(task, source, indices))
            return out / "detections.json"
        case PointSegment(head=head):
            for index, frame in zip(indices, _frames(source, indices), strict=True):
                labels = predicted(task, frame)
                assert isinstance(labels, Tensor)
                labels = labels[frame.points.age == 0]
                if head.classes == LIDARSEG:
                    named = source.lidar_token(index) if isinstance(source, NuScenes) else frame.token
                    write_lidarseg(out, split, named, labels)
                else:
                    write_semantickitti(out, frame.token, labels)
            if head.classes == LIDARSEG:
                write_lidarseg_meta(out, split)
            return out
    raise ValueError(f"no file holds what a {type(task).__name__} says")


def _detected(task: Supervised, source: Source, indices: list[int]) -> Iterator[tuple[str, Boxes]]:
    for frame in _frames(source, indices):
        boxes = predicted(task, frame)
        assert isinstance(boxes, Boxes)
        yield frame.token, in_world(boxes, frame.world_T_ego)


def _frames(source: Source, indices: list[int]) -> Iterator[Frame]:
    return (source[index] for index in indices)
