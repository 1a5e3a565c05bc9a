import math
from dataclasses import replace

import pytest
import torch

from cofield.classes import DETECTION, KITTI
from cofield.draw import generator
from cofield.frame import Boxes, collate
from cofield.grid import BoxGrid, CylinderGrid
from cofield.models.heatmap import (
    Placed,
    anchors,
    channels_of,
    code_errors,
    decode_boxes,
    encode_boxes,
    focal_heat,
    ground_plan,
    heat_of,
    peaks,
    placed,
    spread,
)
from streets import boxes, frame

PLAN = BoxGrid(lower=(-12.0, -8.0, -1.0), cell=(0.5, 0.8, 6.0), count=(48, 20, 1), origin_ego=(0.9, 0.2, 1.8))


def some(count: int = 40, key: str = "some") -> Boxes:
    """Boxes all over the plan, at any heading."""
    draw = generator(key)
    unit = torch.rand(count, 3, generator=draw)
    return Boxes(
        centre=PLAN.from_unit(unit),
        size=torch.rand(count, 3, generator=draw) * 4 + 0.3,
        yaw=(torch.rand(count, generator=draw) * 2 - 1) * math.pi,
        velocity=torch.randn(count, 2, generator=draw) * 3,
        label=torch.randint(10, (count,), generator=draw),
    )


def at(cells: list[tuple[int, int]], size: tuple[float, float, float] = (4.0, 2.0, 1.5)) -> Placed:
    """Boxes of one size in cells (column, row), all of channel 0 and frame 0."""
    cell, none = torch.tensor(cells, dtype=torch.long).view(-1, 2), torch.zeros(len(cells), dtype=torch.long)
    centre = torch.cat([anchors(cell, PLAN), torch.zeros(len(cells), 1)], -1)
    sizes = torch.tensor([size]).expand(len(cells), 3)
    return Placed(Boxes(centre, sizes, torch.zeros(len(cells)), torch.zeros(len(cells), 2), none), none, none, cell)


def heat(boxes: Placed) -> torch.Tensor:
    return heat_of(boxes, (1, 1, 20, 48), PLAN)[0, 0]


def test_the_code_of_a_box_is_what_its_letters_say() -> None:
    cell = torch.tensor([[3, 7]])
    box = Boxes(
        centre=torch.tensor([[-12.0 + 0.9 + 3.75 * 0.5, -8.0 + 0.2 + 7.5 * 0.8, 1.8 + 0.4]]),
        size=torch.tensor([[math.e, 1.0, 1 / math.e]]),
        yaw=torch.tensor([math.pi / 2]),
        velocity=torch.tensor([[3.0, math.nan]]),
        label=torch.tensor([0]),
    )
    expected = torch.tensor([[0.25, 0.0, 0.4, 1.0, 0.0, -1.0, 1.0, 0.0, 3.0, math.nan]])
    torch.testing.assert_close(
        encode_boxes(box, anchors(cell, PLAN), PLAN), expected, equal_nan=True, atol=2e-5, rtol=0
    )


def test_boxes_are_read_back_beside_any_anchor() -> None:
    truth, anchor = some(), torch.randn(40, 2, generator=generator("anchor")) * 10
    read = decode_boxes(encode_boxes(truth, anchor, PLAN), anchor, PLAN, truth.label, torch.ones(40))
    for name in ("centre", "size", "yaw", "velocity", "label"):
        torch.testing.assert_close(getattr(read, name), getattr(truth, name), atol=2e-5, rtol=1e-5)


def test_a_box_moved_by_its_spread_overlaps_by_what_was_asked() -> None:
    size = torch.tensor([[4.0, 2.0, 1.0], [0.7, 0.7, 1.7], [11.0, 2.9, 3.5]])
    for overlap in (0.1, 0.5):
        move = spread(size, overlap)
        shared = (size[:, 0] - move) * (size[:, 1] - move)
        iou = shared / (2 * size[:, 0] * size[:, 1] - shared)
        torch.testing.assert_close(iou, torch.full((3,), overlap))


def test_heat_is_one_in_a_boxs_cell_and_falls_alike_on_all_sides() -> None:
    found = heat(at([(20, 10)]))
    assert found[10, 20] == 1
    assert (found == 1).sum() == 1
    assert torch.equal(found[10, 21:26], found[10, 15:20].flip(0))
    assert torch.equal(found[11:15, 20], found[6:10, 20].flip(0))
    # The radius is the spread in cells, 1.27 m here, but at least two; σ is a sixth of the diameter.
    reach = float(spread(torch.tensor([[4.0, 2.0, 1.5]]))) / 0.5
    assert reach > 2
    sigma = (2 * reach + 1) / 6
    assert float(found[10, 22]) == pytest.approx(math.exp(-(2**2) / 2 / sigma**2), rel=1e-5)
    assert float(found[12, 20]) == pytest.approx(math.exp(-(2**2) / 2 / (5 / 6) ** 2), rel=1e-5)
    assert found[13, 20] == 0


def test_where_boxes_meet_the_hotter_one_counts_whatever_their_order() -> None:
    both = heat(at([(20, 10), (22, 10)]))
    assert torch.equal(both, torch.maximum(heat(at([(20, 10)])), heat(at([(22, 10)]))))
    assert torch.equal(both, heat(at([(22, 10), (20, 10)])))
    assert not heat(at([])).any()


def test_heat_beyond_the_border_is_cut_off() -> None:
    corner, middle = heat(at([(0, 19)])), heat(at([(20, 10)]))
    assert torch.equal(corner[15:, :5], middle[6:11, 20:25])
    assert corner.sum() == corner[15:, :5].sum()


def test_peaks_are_local_maxima_hottest_first() -> None:
    both = heat(at([(20, 10), (21, 11), (3, 3)]))[None, None] * 0.5
    both[0, 0, 3, 3] = 0.7
    score, channel, cell = peaks(both, 5)
    assert score[0, :3].tolist() == pytest.approx([0.7, 0.5, 0.5])
    assert (score[0, 3:] == 0).all()
    assert (channel == 0).all()
    assert cell[0, 0].tolist() == [3, 3]
    assert sorted(cell[0, 1:3].tolist()) == [[20, 10], [21, 11]]


def test_in_crowded_channels_every_cell_is_a_peak() -> None:
    one = heat(at([(20, 10)]))
    both = torch.stack([one, one])[None]
    _, channel, cell = peaks(both, 4, torch.tensor([False, True]))
    assert channel[0].tolist().count(0) == 1
    assert [20, 10] in cell[0].tolist()


def test_the_focal_heat_is_its_formula() -> None:
    truth, logits = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0.3, -0.4, 0.8])
    p = logits.sigmoid()
    expected = -((1 - p[0]) ** 2) * p[0].log() - p[1] ** 2 * (1 - p[1]).log() - 0.5**4 * p[2] ** 2 * (1 - p[2]).log()
    torch.testing.assert_close(focal_heat(logits.view(1, 1, 1, 3), truth.view(1, 1, 1, 3)), expected[None])


def test_unknown_velocities_cost_nothing_and_give_no_gradient() -> None:
    true = torch.tensor([[0.0] * 8 + [math.nan, 2.0]])
    said = torch.ones(1, 10, requires_grad=True)
    error = code_errors(said, true)
    torch.testing.assert_close(error, torch.tensor([8.2]))
    error.sum().backward()
    assert said.grad is not None
    assert said.grad[0, 8] == 0
    assert said.grad[0, 9] == pytest.approx(-0.2)


def test_boxes_that_cannot_be_learned_are_left_out() -> None:
    label, channel_of = channels_of(("truck", "car"), DETECTION)
    assert label.tolist() == [1, 0]
    one = boxes(6)
    one = replace(
        one,
        centre=torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0], [50, 0, 0], [11.0, 7.9, 60]]),
        label=torch.tensor([0, 1, 2, -1, 0, 0]),
        num_points=torch.tensor([0, 1, 9, 9, 9, 9]),
    )
    batch = collate([replace(frame("a"), boxes=Boxes.empty()), replace(frame("b"), boxes=one)])
    found = placed(batch, PLAN, channel_of, least_points=1)
    assert found.boxes.label.tolist() == [1, 0]
    assert found.channel.tolist() == [0, 1]
    assert found.sample.tolist() == [1, 1]
    assert len(placed(batch, PLAN, channel_of, least_points=0).boxes) == 3
    with pytest.raises(ValueError, match="1 of 2 have none"):
        placed(collate([frame("a"), replace(frame("b"), boxes=None)]), PLAN, channel_of, 1)


def test_names_and_grids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="named twice: Car, Van, Car"):
        channels_of(("Car", "Van", "Car"), KITTI)
    with pytest.raises(ValueError, match="has no class 'car'"):
        channels_of(("car",), KITTI)
    with pytest.raises(ValueError, match="a cylindrical trunk has none"):
        ground_plan(CylinderGrid((0.0, -math.pi, 0.0), (1.0, math.pi / 4, 1.0), (4, 8, 2)))
