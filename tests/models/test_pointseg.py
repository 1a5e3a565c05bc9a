import math
from dataclasses import replace

import pytest
import torch

from cofield.classes import LIDARSEG, SEMANTICKITTI, UNKNOWN
from cofield.data.simulate import World
from cofield.draw import generator
from cofield.frame import Batch, collate
from cofield.grid import BoxGrid, CylinderGrid, Grid, Volume
from cofield.models.lidar import Pillars
from cofield.models.pointseg import PointHead, per_frame
from cofield.train.build import seeded
from streets import GRID, frame, points

CYLINDER = CylinderGrid((0.0, -math.pi, -2.0), (2.0, math.pi / 8, 1.0), (8, 16, 6))


def head(grid: Grid = GRID) -> PointHead:
    with seeded("head"):
        return PointHead(4, grid, width=16)


def volume(grid: Grid = GRID, frames: int = 2) -> Volume:
    return Volume(torch.randn(frames, 4, *grid.shape, generator=generator("v")), grid)


def batch() -> Batch:
    return collate([frame("a", count=30), frame("b", count=70)])


@pytest.mark.parametrize("grid", [GRID, CYLINDER])
def test_every_point_has_a_class_on_any_grid(grid: Grid) -> None:
    model, seen = head(grid), batch()
    labels = model.decode(model(volume(grid), seen))
    assert labels.shape == (100,)
    assert ((labels >= 0) & (labels < 16)).all()
    first, second = per_frame(labels, seen)
    assert torch.equal(first, labels[:30])
    assert torch.equal(second, labels[30:])


def test_a_point_sees_its_own_frames_volume_at_its_own_place() -> None:
    model, seen = head(), batch()
    before = model(volume(), seen)
    other = volume().features.clone()
    other[1] += 1.0
    after = model(Volume(other, GRID), seen)
    assert torch.equal(before[:30], after[:30])
    assert not torch.isclose(before[30:], after[30:]).all(-1).any()
    # What is more than a cell away does not matter.
    where = seen.points.xyz_ego[0]
    far = (GRID.centres() - where).abs().amax(-1) > 1.5
    other = volume().features + 10.0 * far
    torch.testing.assert_close(model(Volume(other, GRID), seen)[0], before[0])


def test_the_order_of_points_does_not_matter_and_what_a_point_tells_does() -> None:
    model, one = head(), replace(frame("a"), points=points(40))
    turn = torch.randperm(40, generator=generator("turn"))
    here = model(volume(frames=1), collate([one]))
    there = model(volume(frames=1), collate([replace(one, points=one.points.select(turn))]))
    torch.testing.assert_close(there, here[turn])
    for name in ("intensity", "age"):
        changed = replace(one.points, **{name: getattr(one.points, name) + 1.0})
        other = model(volume(frames=1), collate([replace(one, points=changed)]))
        assert not torch.isclose(other, here).all(-1).any()


def test_points_without_a_label_teach_nothing() -> None:
    model, seen = head(), batch()
    labels = model.encode(seen).clone()
    labels[::2] = UNKNOWN
    logits = model(volume(), seen)
    logits.retain_grad()
    model.loss(logits, labels).backward()
    assert logits.grad is not None
    assert not logits.grad[::2].any()
    assert logits.grad[1::2].any(-1).all()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_nothing_labelled_and_nothing_seen_are_a_finite_loss() -> None:
    model, seen = head(), batch()
    logits = model(volume(), seen)
    assert model.loss(logits, torch.full((100,), UNKNOWN)) == 0
    nothing = seen.select_points(torch.zeros(100, dtype=torch.bool))
    empty = model(volume(), nothing)
    assert empty.shape == (0, 16)
    assert model.loss(empty, model.encode(nothing)) == 0
    assert [len(each) for each in per_frame(model.decode(empty), nothing)] == [0, 0]


def test_a_head_that_knows_loses_nothing_and_reads_the_labels() -> None:
    model, seen = head(), batch()
    labels = model.encode(seen)
    assert torch.equal(labels, seen.points.labels)
    certain = 40.0 * torch.nn.functional.one_hot(labels, 16)
    assert torch.equal(model.decode(certain), labels)
    assert model.loss(certain, labels) < 1e-5


def test_labels_of_another_space_and_no_labels_are_refused() -> None:
    seen = batch()
    with pytest.raises(ValueError, match="needs frames with point labels"):
        head().encode(replace(seen, points=replace(seen.points, labels=None)))
    with pytest.raises(ValueError, match=r"knows 16 classes \(nuscenes-lidarseg\), but a point has the label 18"):
        head().encode(replace(seen, points=replace(seen.points, labels=torch.full((100,), 18))))
    with seeded("head"):
        other = PointHead(4, GRID, SEMANTICKITTI)
    assert torch.equal(other.encode(seen), seen.points.labels)


@pytest.mark.slow
def test_one_frame_of_the_world_is_learned_by_heart() -> None:
    grid = BoxGrid(lower=(-12.8, -12.8, -1.6), cell=(1.6, 1.6, 0.8), count=(16, 16, 8))
    with seeded("learn"):
        trunk, model = Pillars(grid, width=8, hidden=16), PointHead(8, grid, LIDARSEG, width=32)
    seen = collate([World("tiny")[0]])
    seen = seen.select_points(grid.contains(seen.points.xyz_ego))
    truth = model.encode(seen)
    optimizer = torch.optim.AdamW([*trunk.parameters(), *model.parameters()], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(model(trunk(seen), seen), truth).backward()
        optimizer.step()
    right = model.decode(model(trunk(seen), seen)) == truth
    assert right.float().mean() > 0.95
