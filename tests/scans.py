"""Scans made by hand of which few are labelled, and a task that learns from them."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from cofield.classes import LIDARSEG, Classes
from cofield.data import Source
from cofield.frame import Batch, Frame, collate
from cofield.grid import CylinderGrid
from cofield.train.build import build_finetuning
from cofield.train.config import Data, Labels, Model, Optim, Pseudo, SegmentTuning, Semi
from cofield.train.semi import SemiSegment, supplied
from streets import GRID, Hand, frame

ROUND = CylinderGrid((0.0, -torch.pi, -2.0), (1.5, torch.pi / 8, 1.0), (8, 16, 6))
TRUSTING = Pseudo(segmenter="felzenszwalb", threshold=None, voters=1, smallest=1, count=4, rays=8, samples=12)


@dataclass(frozen=True)
class Town(Hand):
    """Frames by hand whose points' labels can be shifted, from a frame on; without cameras if asked."""

    name: str = "town"
    point_classes: Classes | None = LIDARSEG
    shift: int = 0
    cameras: int = 2

    def __getitem__(self, index: int) -> Frame:
        made = frame(f"frame {index}", cameras=self.cameras)
        assert made.points.labels is not None
        labels = made.points.labels if index == 0 else (made.points.labels + self.shift) % 16
        return replace(made, points=replace(made.points, labels=labels))


def config(semi: Semi | None = None, pseudo: Pseudo = TRUSTING, **groups: Any) -> SegmentTuning:
    parts = {
        "grid": GRID,
        "data": Data(source="town", batch=1, workers=0, validation=2),
        "labels": Labels(fraction=0.2),
        "model": Model(camera="none", width=8, lidar_width=16, field_width=16),
        "semi": semi or few(),
        "pseudo": pseudo,
        "optim": Optim(steps=2, precision="32", save_every=2, validate_every=2),
    }
    return SegmentTuning(**parts | groups)


def few(method: str = "nerf", **changes: Any) -> Semi:
    return Semi(**{"method": method, "unlabelled": 1, "beams": 16, "ramp": (0.0, 0.0)} | changes)


def made(wish: SegmentTuning, town: Source | None = None) -> tuple[SemiSegment, Batch]:
    """A task, and a batch of a labelled scan and one that is not."""
    task = build_finetuning(wish)
    assert isinstance(task, SemiSegment)
    source = supplied(task, wish, town or Town(), [0])
    return task, collate([source[0], source[2]])
