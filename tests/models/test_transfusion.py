import itertools
from dataclasses import replace

import pytest
import torch

from cofield.classes import KITTI
from cofield.data.simulate import World
from cofield.draw import generator
from cofield.frame import Boxes, collate
from cofield.grid import BoxGrid, Volume
from cofield.models.bev import Bev
from cofield.models.heatmap import anchors, encode_boxes, peaks
from cofield.models.lidar import Pillars
from cofield.models.transfusion import Queries, TransFusion, Wanted, focal
from cofield.train.build import seeded
from detections import agree, batch, box, scattered, together
from streets import GRID


def head(grid: BoxGrid = GRID, finer: int = 2, **choices) -> TransFusion:
    with seeded("head"):
        bev = Bev(4, grid, width=8, depth=1, out=8, finer=finer)
        return TransFusion(bev, **({"width": 8, "heads": 2, "queries": 60, "least_score": 0.5} | choices))


def volume() -> Volume:
    return Volume(torch.randn(2, 4, *GRID.shape, generator=generator("v")), GRID)


def certain(model: TransFusion, truth: Wanted) -> Queries:
    """What the head would say if it knew: at each peak its box, and nothing elsewhere."""
    score, channel, cell = peaks(truth.heat, model.queries)
    logits = torch.full((*score.shape, truth.heat.shape[1]), -20.0)
    logits.scatter_(2, channel[..., None], 20.0)
    codes = []
    for frame, boxes in enumerate(truth.boxes):
        anchor = anchors(cell[frame], model.grid)
        place = boxes.centre[None, :, :2] - model.grid.positions(torch.cat([anchor, anchor[:, :1]], -1))[:, None, :2]
        other = model.channel[boxes.label] != channel[frame][:, None]
        nearest = (place.norm(dim=-1) + 100 * other).argmin(1) if len(boxes) else None
        true = (
            torch.zeros(len(anchor), 10) if nearest is None else encode_boxes(boxes.select(nearest), anchor, model.grid)
        )
        codes.append(true)
    return Queries(torch.logit(truth.heat, eps=1e-6), score, channel, cell, logits, torch.stack(codes))


def test_boxes_are_read_as_they_were_written_in_every_frame() -> None:
    model, truth = head(), (scattered(30, "a"), Boxes.empty(), scattered(50, "b"))
    found = model.decode(certain(model, model.encode(batch(*truth))))
    for read, wanted in zip(found, truth, strict=True):
        agree(read, wanted)


def test_boxes_in_cells_side_by_side_are_both_read() -> None:
    model, small = head(), (0.3, 0.3, 1.7)
    truth = together(box(-2.1, 2.1, "pedestrian", size=small), box(-2.6, 2.1, "pedestrian", size=small))
    agree(model.decode(certain(model, model.encode(batch(truth))))[0], truth)


def test_a_head_that_knows_matches_each_box_with_the_query_that_says_it_and_loses_nothing() -> None:
    model = head()
    truth = model.encode(batch(scattered(30, "a"), Boxes.empty(), scattered(50, "b")))
    raw = certain(model, truth)
    raw = replace(raw, heat=torch.where(truth.heat == 1, 20.0, -20.0), logits=raw.logits.clone())
    for frame, boxes in enumerate(truth.boxes):
        query, chosen = model.match(raw, frame, boxes, truth.channel[frame])
        assert sorted(chosen.tolist()) == list(range(len(boxes)))
        assert torch.equal(raw.channel[frame, query], truth.channel[frame][chosen])
        # Queries beyond the boxes are of no class.
        others = torch.ones(model.queries, dtype=torch.bool)
        others[query] = False
        raw.logits[frame, others] = -20.0
    assert float(model.loss(raw, truth)) < 1e-4
    wrong = replace(raw, code=raw.code + 1)
    assert float(model.loss(wrong, truth)) == pytest.approx(0.25 * 8.4, rel=0.1)


def test_matching_is_the_cheapest_of_all_ways_to_pair() -> None:
    model = head(queries=5)
    truth = batch(scattered(3, "few"))
    wanted = model.encode(truth)
    with torch.no_grad():
        raw = model(Volume(volume().features[:1], GRID))
    boxes, channel = wanted.boxes[0], wanted.channel[0]
    logits = raw.logits[0][:, channel]
    said = anchors(raw.cell[0], model.grid) + raw.code[0, :, :2] * 0.5
    extent = torch.tensor([24.0, 16.0])
    apart = ((said[:, None] - boxes.centre[None, :, :2]).abs() / extent).sum(-1)
    # None of these overlap, so the rest of the cost is class and place.
    cost = 0.15 * (focal(logits, torch.ones_like(logits)) - focal(logits, torch.zeros_like(logits))) + 0.25 * apart
    best = min(itertools.permutations(range(5), 3), key=lambda q: float(cost[list(q), range(3)].sum()))
    query, chosen = model.match(raw, 0, boxes, channel)
    assert query[chosen.argsort()].tolist() == list(best)


def test_the_order_of_boxes_does_not_change_the_loss() -> None:
    model, truth = head(), scattered(50, "order")
    shuffled = truth.select(torch.randperm(50, generator=generator("shuffle")))
    with torch.no_grad():
        raw = model(Volume(volume().features[:1], GRID))
        losses = [model.loss(raw, model.encode(batch(each))) for each in (truth, shuffled)]
    torch.testing.assert_close(*losses)


def test_the_focal_loss_is_its_formula() -> None:
    logits, truth = torch.tensor([0.3, -0.7]), torch.tensor([1.0, 0.0])
    p = logits.sigmoid()
    expected = torch.stack([-0.25 * (1 - p[0]) ** 2 * p[0].log(), -0.75 * p[1] ** 2 * (1 - p[1]).log()])
    torch.testing.assert_close(focal(logits, truth), expected)


def test_queries_are_the_peaks_and_frames_do_not_see_each_other() -> None:
    model = head()
    with torch.no_grad():
        raw, alone = model(volume()), model(Volume(volume().features[1:], GRID))
    assert raw.heat.shape == (2, 10, 32, 48)
    assert raw.logits.shape == (2, 60, 10)
    told = raw.heat.sigmoid()[0, raw.channel[0], raw.cell[0, :, 1], raw.cell[0, :, 0]]
    torch.testing.assert_close(told, raw.score[0])
    torch.testing.assert_close(raw.code[1:], alone.code, atol=1e-4, rtol=1e-4)


def test_frames_without_boxes_have_a_finite_loss_and_gradient() -> None:
    model = head()
    raw = model(volume())
    loss = model.loss(raw, model.encode(batch(Boxes.empty(), Boxes.empty())))
    loss.backward()
    assert loss > 0
    assert all(w.grad is None or w.grad.isfinite().all() for w in model.parameters())


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_every_weight_has_a_gradient(norm: str) -> None:
    model = head(norm=norm)
    model.loss(model(volume()), model.encode(batch(scattered(60, "g"), scattered(60, "h")))).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_other_classes_are_told_by_their_own_labels() -> None:
    model = head(names=("Pedestrian", "Cyclist", "Car"), classes=KITTI, crowded=("Pedestrian",))
    truth = replace(together(box(1.0, 1.0), box(-5.0, 2.0), box(5.0, 5.0)), label=torch.tensor([0, 5, 7]))
    found = model.decode(certain(model, model.encode(batch(truth))))[0]
    agree(found, truth.select(torch.tensor([0, 1])))


@pytest.mark.slow
def test_one_frame_of_the_world_is_learned_by_heart() -> None:
    grid = BoxGrid(lower=(-12.8, -12.8, -1.6), cell=(0.8, 0.8, 1.6), count=(32, 32, 4))
    with seeded("learn"):
        trunk = Pillars(grid, width=8, hidden=16)
        model = TransFusion(Bev(8, grid, width=32, depth=1, out=32, finer=2), width=32, queries=40)
    seen = collate([World("tiny")[0]])
    truth = model.encode(seen)
    wanted = truth.boxes[0]
    assert len(wanted) > 10
    weights = [*trunk.parameters(), *model.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=2e-3)
    for _ in range(200):
        optimizer.zero_grad()
        model.loss(model(trunk(seen)), truth).backward()
        optimizer.step()
    with torch.no_grad():
        found = model.decode(model(trunk(seen)))[0]
    found = found.select(found.score > 0.2)
    distance = torch.cdist(wanted.centre, found.centre) + 100 * (wanted.label[:, None] != found.label)
    assert (distance.amin(1) < 0.5).float().mean() > 0.9
    assert (distance.amin(0) < 0.5).float().mean() > 0.9
