"""Cylinder3D and its losses on a real scan: whatever keeps a label from its point keeps this from being learned."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cofield.data.folders import open_folder
from cofield.frame import collate
from cofield.metrics.iou import PointIoU
from cofield.models.cylinder import Cylinder3D
from cofield.models.semantics import segmentation_loss
from cofield.train.build import build_segmentation
from cofield.train.config import SegmentTuning
from cofield.train.recipes import recipe


def learn(weights: Iterable[nn.Parameter], steps: int, loss: Callable[[], Tensor]) -> None:
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        rate.step()


@pytest.mark.slow
def test_a_scan_of_semantickitti_is_learned_by_heart(realdata: Path) -> None:
    few = recipe("lidarseg:semantickitti")
    assert isinstance(few, SegmentTuning)
    task = build_segmentation(
        replace(few, model=replace(few.model, width=16, norm="batch"), semi=replace(few.semi, method="supervised"))
    )
    trunk = task.trunk
    assert isinstance(trunk, Cylinder3D)
    assert (trunk.grid.count, trunk.width) == ((240, 180, 20), 16)
    batch = collate([open_folder("semantickitti", realdata / "semantickitti", "all")[0]])
    labels = batch.points.labels
    assert labels is not None
    assert len(labels) > 100_000
    learn(task.parameters(), 110, lambda: task.read(batch).loss(labels))
    # Cells hold points of several classes: were each cell's points all called what most of them are, the score would
    # be 0.955 at best. The head, which tells a cell's points apart, goes on by itself, which takes seconds.
    task.eval()
    with torch.no_grad():
        encoded = trunk.encode(batch)
    learn(task.head.parameters(), 200, lambda: segmentation_loss(task.head(encoded)[1], labels))
    score = PointIoU(task.classes.names)
    with torch.no_grad():
        score.add(task(batch), labels, batch.points.xyz_ego)
    result = score.compute()
    assert result["miou"] > 0.95, result
