"""A trained run as a function of a frame, as a score, and as the official result files."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from cofield.classes import COMMON, DETECTION, KITTI, LIDARSEG
from cofield.data import Source, Wrapped, open_source
from cofield.data.augment import prepared
from cofield.data.export_kitti import kitti_labels
from cofield.data.folders import readable
from cofield.data.loader import evaluation_batches, spread
from cofield.data.nuscenes import NuScenes
from cofield.data.submission import (
    MapRaster,
    in_world,
    write_detections,
    write_kitti,
    write_lidarseg,
    write_lidarseg_meta,
    write_map,
    write_semantickitti,
)
from cofield.frame import Boxes, Frame, collate
from cofield.grid import Volume
from cofield.train.across import left_out, score_across
from cofield.train.config import Finetuning
from cofield.train.program import Prediction, load_program
from cofield.train.results import write_results
from cofield.train.run import check_classes, open_finetuned, open_run, run_config
from cofield.train.semi import SemiSegment
from cofield.train.tasks import Detect, MapSegment, PointSegment, Supervised
from cofield.train.watch import say


def load(run: Path | str) -> Callable[[Frame], Prediction | Volume]:
    """What a run, or the program that one was exported as, has learned to say of a frame.

    A fine-tuned one gives its map, its boxes or the labels of the frame's points; a pre-trained one the trunk's volume.
    """
    folder = Path(run)
    if folder.is_file():
        return load_program(folder)
    if isinstance(run_config(folder), Finetuning):
        config, task = open_finetuned(folder)
        still = config.augment.evaluation()
        return lambda frame: predicted(task, still(frame, 0))
    config, painter = open_run(folder)
    still = config.augment.evaluation()

    @torch.no_grad()
    def volume(frame: Frame) -> Volume:
        return painter.trunk(collate([still(frame, 0)]))

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
        case PointSegment() | SemiSegment():
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
        case Detect(head=head) if source.box_classes == KITTI:
            for frame in _frames(source, indices):
                boxes = predicted(task, frame)
                assert isinstance(boxes, Boxes)
                if not frame.cameras:
                    raise ValueError(f"{frame.token} has no camera; KITTI's result files are about what it sees")
                write_kitti(out / "data", frame.token, boxes, kitti_labels(boxes.label, head.classes), frame.cameras[0])
            return out / "data"
        case Detect(head=head):
            if head.classes != DETECTION:
                raise ValueError(f"boxes of the classes {head.classes.space} are written for KITTI's frames alone")
            write_detections(out / "detections.json", _detected(task, source, indices))
            return out / "detections.json"
        case PointSegment() | SemiSegment():
            for index, frame in zip(indices, _frames(source, indices), strict=True):
                labels = predicted(task, frame)
                assert isinstance(labels, Tensor)
                labels = labels[frame.points.age == 0]
                if task.classes == LIDARSEG:
                    write_lidarseg(out, split, scan_token(source, index, frame), labels)
                else:
                    write_semantickitti(out, frame.token, labels)
            if task.classes == LIDARSEG:
                write_lidarseg_meta(out, split)
            return out
    raise ValueError(f"no file holds what a {type(task).__name__} says")


def scan_token(source: Source, index: int, frame: Frame) -> str:
    """What the lidarseg labels of a frame are filed under: of nuScenes the token of the LiDAR's file."""
    while isinstance(source, Wrapped):
        source = source.source
    return source.lidar_token(index) if isinstance(source, NuScenes) else frame.token


def _detected(task: Supervised, source: Source, indices: list[int]) -> Iterator[tuple[str, Boxes]]:
    for frame in _frames(source, indices):
        boxes = predicted(task, frame)
        assert isinstance(boxes, Boxes)
        yield frame.token, in_world(boxes, frame.world_T_ego)


def _frames(source: Source, indices: list[int]) -> Iterator[Frame]:
    return (source[index] for index in indices)


def predict_run(
    folder: Path,
    out: Path,
    source: str | None = None,
    root: Path | None = None,
    split: str = "val",
    frames: int | None = None,
    skip_broken: bool = False,
) -> Path:
    """Write what a fine-tuned run says of frames of a source, its own if none is named."""
    _, task, frames_of, indices = _opened(folder, source, root, split, frames, skip_broken)
    return write_predictions(task, frames_of, indices, split, out)


def score_run(
    folder: Path,
    source: str | None = None,
    root: Path | None = None,
    split: str = "val",
    frames: int | None = None,
    results: Path | None = None,
    skip_broken: bool = False,
) -> dict[str, float]:
    """The score of a fine-tuned run, also written as results if a file is named.

    Of points on a source of other classes it is that of the classes that both have in common, and says what is not.
    """
    began = time.monotonic()
    config, task, frames_of, indices = _opened(folder, source, root, split, frames, skip_broken)
    known, common = frames_of.point_classes, {}
    if isinstance(task, PointSegment | SemiSegment) and known is not None and known != task.classes:
        say(left_out(task.classes, known))
        values, common = score_across(task, frames_of, indices, config.data.batch), {"classes": COMMON.space}
    else:
        check_classes(config, frames_of)
        values = score(task, frames_of, indices, config.data.batch)
    if results is not None:
        common |= {"task": config.task, "source": frames_of.name}
        common |= {"run": folder.name, "trained_on": config.data.source}
        common |= {"steps": config.optim.steps, "seed": config.optim.seed}
        common |= {"fraction": config.labels.fraction, "trunk": config.start.trunk, "frames": len(indices)}
        rows = [common | {"metric": name, "value": value} for name, value in values.items()]
        write_results(results, rows, time.monotonic() - began)
    return values


def _opened(
    folder: Path, source: str | None, root: Path | None, split: str, frames: int | None, skip_broken: bool
) -> tuple[Finetuning, Supervised, Source, list[int]]:
    config, task = open_finetuned(folder)
    root = root or (None if config.data.root is None else Path(config.data.root))
    found = open_source(source or config.data.source, root, split, config.data.sweeps, config.map_grid)
    found = prepared(found, config.augment)
    indices = spread(len(found), frames or len(found))
    indices = readable(found, indices) if skip_broken or config.data.skip_broken else indices
    return config, task, found, indices
