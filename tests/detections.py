"""Boxes made by hand, and whether two sets of them are the same."""

import math
from dataclasses import replace

import torch

from cofield.classes import DETECTION
from cofield.draw import generator
from cofield.frame import Batch, Boxes, collate
from streets import frame

FIELDS = ("centre", "size", "yaw", "velocity", "label")


def box(x: float, y: float, label: str = "car", yaw: float = 0.3, size: tuple[float, float, float] = (4.0, 1.8, 1.5)):
    return Boxes(
        centre=torch.tensor([[x, y, 0.8]]),
        size=torch.tensor([size]),
        yaw=torch.tensor([yaw]),
        velocity=torch.tensor([[1.0, -2.0]]),
        label=torch.tensor([DETECTION.index(label)]),
    )


def together(*parts: Boxes) -> Boxes:
    return Boxes(*(torch.cat([getattr(part, name) for part in parts]) for name in FIELDS))


def batch(*boxes: Boxes) -> Batch:
    return collate([replace(frame(f"frame {i}"), boxes=each) for i, each in enumerate(boxes)])


def agree(read: Boxes, truth: Boxes) -> None:
    """The same boxes in any order."""
    assert len(read) == len(truth)
    if not len(truth):
        return
    nearest = torch.cdist(truth.centre, read.centre).argmin(1)
    assert len(set(nearest.tolist())) == len(truth)
    for name in FIELDS:
        wanted, found = getattr(truth, name), getattr(read, name)[nearest]
        if name == "yaw":
            wanted, found = (torch.stack([each.cos(), each.sin()], -1) for each in (wanted, found))
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5, equal_nan=True)


def scattered(count: int, key: str) -> Boxes:
    """Boxes of all classes, far enough from each other not to overlap, at negative places too."""
    draw = generator(key)
    cell = torch.randperm(12 * 8, generator=draw)[:count]
    xy = (
        torch.stack([cell % 12, cell // 12], -1) * 2.0
        + torch.tensor([-11.9, -7.9])
        + torch.rand(count, 2, generator=draw)
    )
    return Boxes(
        centre=torch.cat([xy, torch.randn(count, 1, generator=draw)], -1),
        size=torch.rand(count, 3, generator=draw) * 0.5 + 0.2,
        yaw=(torch.rand(count, generator=draw) * 2 - 1) * math.pi,
        velocity=torch.randn(count, 2, generator=draw) * 5,
        label=torch.arange(count) % 10,
    )
