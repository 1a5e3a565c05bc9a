import math
from dataclasses import replace

import pytest
import torch

from cofield.classes import KITTI
from cofield.data.simulate import World
from cofield.draw import generator
from cofield.frame import Batch, Boxes, collate
from cofield.geometry import pose, yaw_rotation
from cofield.grid import BoxGrid, Volume
from cofield.models.bev import Bev
from cofield.models.centerpoint import CenterPoint
from cofield.models.lidar import Pillars
from cofield.train.build import seeded
from detections import agree, batch, box, scattered, together
from streets import GRID

SQUARE = BoxGrid(lower=(-8.0, -8.0, -1.0), cell=(1.0, 1.0, 1.0), count=(16, 16, 3))


def head(grid: BoxGrid = GRID, finer: int = 2, **choices) -> CenterPoint:
    with seeded("head"):
        return CenterPoint(Bev(4, grid, width=8, depth=1, out=8, finer=finer), **({"width": 8} | choices))


def read(model: CenterPoint, truth: Batch) -> tuple[Boxes, ...]:
    return model.decode(model.certain(model.encode(truth)))


def test_boxes_are_read_as_they_were_written_in_every_frame() -> None:
    truth = (scattered(30, "a"), Boxes.empty(), scattered(50, "b"))
    for found, wanted in zip(read(head(), batch(*truth)), truth, strict=True):
        agree(found, wanted)
        assert (found.score > 0.99).all()


@pytest.mark.parametrize("yaw", [math.pi, -math.pi, math.pi - 1e-3, 1e-3 - math.pi, 0.0, math.pi / 2])
def test_headings_near_the_turn_are_read_as_they_were_written(yaw: float) -> None:
    truth = box(-3.3, -2.7, yaw=yaw)
    agree(read(head(), batch(truth))[0], truth)


def test_boxes_in_cells_side_by_side_are_both_read() -> None:
    small = (0.3, 0.3, 1.7)
    truth = together(
        box(2.1, 2.1, "pedestrian", size=small),
        box(2.6, 2.1, "pedestrian", size=small),
        box(2.6, 2.6, "pedestrian", size=small),
    )
    agree(read(head(), batch(truth))[0], truth)


def test_of_boxes_of_one_group_in_one_cell_the_nearest_to_its_centre_is_learned_whatever_their_order() -> None:
    off, near = box(2.05, 2.1, "bicycle"), box(2.3, 2.2, "motorcycle")
    for truth in (together(off, near), together(near, off)):
        agree(read(head(), batch(truth))[0], near)
    # Classes of other groups do not compete.
    other = box(2.05, 2.1, "pedestrian")
    agree(read(head(), batch(together(other, near)))[0], together(other, near))


def test_a_velocity_that_nobody_knows_stays_unknown() -> None:
    truth = replace(box(1.0, 1.0), velocity=torch.full((1, 2), math.nan))
    agree(read(head(), batch(truth))[0], truth)


def test_only_the_best_of_boxes_that_overlap_is_told() -> None:
    model = head()
    truth = together(box(2.1, 2.1), box(3.1, 2.1), box(3.1, 2.1, "truck"))
    raw = model.certain(model.encode(batch(truth)))
    raw = replace(raw, logits=raw.logits.clamp(max=2.0))
    raw.logits[0, 0] += (raw.logits[0, 0] == 2.0) * torch.arange(48) * 0.01
    found = model.decode(raw)[0]
    agree(found.select(found.label == 0), box(3.1, 2.1))
    assert len(found) == 2
    assert head(overlap=1.0).decode(raw)[0].label.tolist() == [0, 0, 1]
    assert len(head(overlap=1.0, most=1).decode(raw)[0]) == 1
    assert not len(head(least_score=0.95).decode(raw)[0])


def test_the_order_of_boxes_does_not_matter() -> None:
    model, truth = head(), scattered(50, "order")
    shuffled = truth.select(torch.randperm(50, generator=generator("shuffle")))
    one, other = model.encode(batch(truth)), model.encode(batch(shuffled))
    for a, b in zip(vars(one).values(), vars(other).values(), strict=True):
        assert torch.equal(a, b)


def test_a_world_turned_by_a_quarter_has_its_heat_turned_and_its_boxes_too() -> None:
    model = head(SQUARE)
    truth = scattered(50, "turn")
    quarter = pose(yaw_rotation(torch.tensor(math.pi / 2)), torch.zeros(3))
    here, there = model.encode(batch(truth)), model.encode(batch(truth.moved(quarter)))
    # x y becomes -y x: what was right along a row is now up along a column.
    torch.testing.assert_close(there.heat, here.heat.rot90(1, (-1, -2)))
    assert here.heat.sum() > 30
    agree(read(model, batch(truth.moved(quarter)))[0], read(model, batch(truth))[0].moved(quarter))


def test_the_loss_of_a_head_that_knows_is_nothing_and_of_one_that_errs_its_error() -> None:
    model = head()
    truth = model.encode(batch(together(box(2.1, 2.1), box(-6.0, -3.0), box(5.2, -4.2, "bus")), Boxes.empty()))
    raw = model.certain(truth)
    zero = torch.where(truth.heat == 1, 20.0, -20.0)
    assert float(model.loss(replace(raw, logits=zero), truth)) < 1e-6
    # Every number wrong by one: 8 + 2 · 0.2 for each box, at a quarter of the heat's weight, cars and buses alike.
    wrong = replace(raw, logits=zero, code=raw.code + 1)
    assert float(model.loss(wrong, truth)) == pytest.approx(2 * 0.25 * 8.4, rel=1e-4)


def test_frames_without_boxes_have_a_finite_loss_and_gradient() -> None:
    model = head()
    volume = Volume(torch.randn(2, 4, *GRID.shape, generator=generator("v")), GRID)
    truth = model.encode(batch(Boxes.empty(), Boxes.empty()))
    loss = model.loss(model(volume), truth)
    loss.backward()
    assert loss > 0
    assert all(w.grad is None or w.grad.isfinite().all() for w in model.parameters())
    assert [len(boxes) for boxes in read(model, batch(Boxes.empty(), Boxes.empty()))] == [0, 0]


def test_every_weight_has_a_gradient() -> None:
    model = head(norm="batch")
    volume = Volume(torch.randn(2, 4, *GRID.shape, generator=generator("v")), GRID)
    raw = model(volume)
    assert raw.logits.shape == (2, 10, 32, 48)
    assert raw.code.shape == (2, 6, 10, 32, 48)
    model.loss(raw, model.encode(batch(scattered(60, "g"), scattered(60, "h")))).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_other_classes_and_groups_are_told_by_their_own_labels() -> None:
    model = head(groups=(("Pedestrian", "Cyclist"), ("Car",)), classes=KITTI)
    truth = replace(together(box(1.0, 1.0), box(-5.0, 2.0), box(5.0, 5.0)), label=torch.tensor([0, 5, 7]))
    found = read(model, batch(truth))[0]
    agree(found, truth.select(torch.tensor([0, 1])))


@pytest.mark.slow
def test_one_frame_of_the_world_is_learned_by_heart() -> None:
    grid = BoxGrid(lower=(-12.8, -12.8, -1.6), cell=(0.8, 0.8, 1.6), count=(32, 32, 4))
    with seeded("learn"):
        trunk = Pillars(grid, width=8, hidden=16)
        model = CenterPoint(Bev(8, grid, width=32, depth=1, out=32, finer=2), width=32)
    seen = collate([World("tiny")[0]])
    truth = model.encode(seen)
    wanted = model.decode(model.certain(truth))[0]
    assert len(wanted) > 10
    weights = [*trunk.parameters(), *model.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=4e-3)
    for _ in range(200):
        optimizer.zero_grad()
        model.loss(model(trunk(seen)), truth).backward()
        optimizer.step()
    found = model.decode(model(trunk(seen)))[0]
    found = found.select(found.score > 0.3)
    distance = torch.cdist(wanted.centre, found.centre) + 100 * (wanted.label[:, None] != found.label)
    assert (distance.amin(1) < 0.5).float().mean() > 0.9
    assert (distance.amin(0) < 0.5).float().mean() > 0.9
