import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon
from torch.library import opcheck

from cofield.draw import generator
from cofield.frame import Boxes
from cofield.ops.boxes import (
    cuboids,
    iou_3d,
    iou_above,
    members_reference,
    nms,
    overlap,
    overlap_reference,
    points_in_boxes,
    unsuppressed_reference,
)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def rectangles(count: int, key: str) -> torch.Tensor:
    share = torch.rand(count, 5, generator=generator(key), dtype=torch.float64)
    return row(-4, -3, 0.2, 0.1, -4) + row(8, 6, 5, 2, 8) * share


def cuboid_rows(count: int, key: str) -> torch.Tensor:
    flat, draw = rectangles(count, key), generator(key, "height")
    z, height = torch.randn(count, 1, generator=draw).double(), torch.rand(count, 1, generator=draw).double() * 2 + 0.5
    return torch.cat([flat[:, :2], z, flat[:, 2:4], height, flat[:, 4:]], 1)


def polygon(x: float, y: float, length: float, width: float, yaw: float) -> Polygon:
    cos, sin = math.cos(yaw), math.sin(yaw)
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    places = [(along * length / 2, aside * width / 2) for along, aside in signs]
    return Polygon([(x + cos * a - sin * b, y + sin * a + cos * b) for a, b in places])


def both(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """What the kernel says, and what the reference says."""
    return float(overlap(a, b)), float(overlap_reference(a[None], b[None]))


def test_overlaps_that_one_can_work_out() -> None:
    quarter, eighth = math.pi / 2, math.pi / 4
    cases = [
        ((0, 0, 4, 2, 0), (0, 0, 4, 2, 0), 8.0),  # the same
        ((0, 0, 4, 2, 0), (0, 0, 4, 2, quarter), 4.0),  # crossed
        ((0, 0, 4, 2, 0), (1, 0.5, 4, 2, 0), 4.5),
        ((0, 0, 4, 2, 0), (4, 0, 4, 2, 0), 0.0),  # an edge in common
        ((0, 0, 4, 2, 0), (4, 2, 4, 2, 0), 0.0),  # a corner in common
        ((0, 0, 9, 9, 1), (0.5, 0, 2, 1, 2), 2.0),  # one inside the other
        ((0, 0, 2, 2, 0), (0, 0, 2, 2, eighth), 8 * (math.sqrt(2) - 1)),  # a regular octagon
        ((0, 0, 2, 2, 0), (1 + math.sqrt(2) / 2, 0, 1, 1, eighth), 0.0),  # a corner against an edge
        ((0, 0, 0, 2, 0), (0, 0, 4, 2, 0), 0.0),  # no length
        ((0, 0, 0, 0, 0), (0, 0, 0, 0, 1), 0.0),  # nothing at all
        ((1e6, 1e6, 4, 2, 1), (1e6 + 3, 1e6, 4, 2, 1), None),  # far away
    ]
    for first, second, area in cases:
        if area is None:
            area = both(row(0, 0, *first[2:]), row(3, 0, *second[2:]))[0]
        for one, other in ((first, second), (second, first)):
            assert both(row(*one), row(*other)) == pytest.approx((area, area), abs=1e-9)


def test_identical_boxes_share_their_area_at_any_angle() -> None:
    a = rectangles(500, "same")
    area = a[:, 2] * a[:, 3]
    full_turn = a + row(0, 0, 0, 0, 2 * math.pi)
    for other in (a, full_turn, a - row(0, 0, 0, 0, math.pi)):
        torch.testing.assert_close(overlap(a[:, None], other[:, None])[:, 0, 0], area, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(overlap_reference(a[:, None], other[:, None])[:, 0, 0], area, rtol=1e-12, atol=1e-12)


def test_overlaps_equal_shapelys() -> None:
    a, b = rectangles(60, "a"), rectangles(50, "b")
    theirs = [[polygon(*one).intersection(polygon(*other)).area for other in b.tolist()] for one in a.tolist()]
    expected = torch.tensor(theirs, dtype=torch.float64)
    assert 0.1 < float((expected > 0).double().mean()) < 0.9
    torch.testing.assert_close(overlap(a, b), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(overlap_reference(a[None], b[None])[0], expected, rtol=0, atol=1e-12)


place = st.one_of(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0]), st.floats(-3, 3))
size = st.one_of(st.sampled_from([0.0, 1e-9, 1.0, 2.0, 4.0]), st.floats(1e-3, 6))
angle = st.one_of(
    st.sampled_from([0.0, 1e-300, 1e-16, 1e-12, 1e-8, 1e-4, math.pi / 4, math.pi / 2, math.pi, -math.pi]),
    st.floats(-7, 7),
)
rectangle = st.tuples(place, place, size, size, angle)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rectangle, rectangle)
def test_overlaps_equal_shapelys_for_awkward_boxes_too(one: tuple, other: tuple) -> None:
    shapes = polygon(*one), polygon(*other)
    # Of an empty or folded shape shapely says that it is invalid; it has no area to share.
    expected = shapes[0].intersection(shapes[1]).area if all(shape.is_valid for shape in shapes) else 0.0
    assert both(row(*one), row(*other)) == pytest.approx((expected, expected), abs=1e-7)


def test_turning_the_world_or_swapping_the_two_changes_no_overlap() -> None:
    a, b = rectangles(30, "c"), rectangles(20, "d")
    cos, sin = math.cos(0.7), math.sin(0.7)
    turn = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
    moved = [torch.cat([r[:, :2] @ turn + 5, r[:, 2:4], r[:, 4:] + 0.7], 1) for r in (a, b)]
    torch.testing.assert_close(overlap(*moved), overlap(a, b), rtol=0, atol=1e-12)
    torch.testing.assert_close(overlap(b, a).mT, overlap(a, b), rtol=0, atol=1e-12)


def test_overlaps_may_have_batch_axes_and_no_boxes() -> None:
    a, b = rectangles(2 * 3 * 4, "e").view(2, 3, 4, 5), rectangles(2 * 3 * 7, "f").view(2, 3, 7, 5)
    shared = overlap(a, b)
    assert shared.shape == (2, 3, 4, 7)
    torch.testing.assert_close(shared[1, 2], overlap(a[1, 2], b[1, 2]))
    assert overlap(a[0, 0, :0].float(), b[0, 0].float()).shape == (0, 7)


def test_iou_of_boxes_that_one_can_work_out() -> None:
    one = torch.tensor([[0.0, 0, 1, 4, 2, 2, 0]])
    others = torch.tensor(
        [[0.0, 0, 2, 4, 2, 2, 0], [2, 0, 1, 4, 2, 2, 0], [0, 0, 3, 4, 2, 2, 0], [0, 0, 1, 0, 0, 0, 0]]
    )
    torch.testing.assert_close(iou_3d(one, others), torch.tensor([[1 / 3, 1 / 3, 0, 0]]))
    flat = [0, 1, 3, 4, 6]
    torch.testing.assert_close(iou_above(one[:, flat], others[:, flat]), torch.tensor([[1, 1 / 3, 1, 0]]))
    nothing = torch.zeros(1, 7)
    assert iou_3d(nothing, nothing).item() == 0


def test_the_best_of_overlapping_boxes_is_kept_and_a_chain_is_not_suppressed_by_what_is_gone() -> None:
    chain = torch.tensor([[float(x), 0, 4, 2, 0] for x in (0, 2, 4, 20)])
    score = torch.tensor([0.9, 0.8, 0.7, 0.1])
    # The first suppresses the second, which can then suppress the third no more.
    assert nms(chain, score, 0.3).tolist() == [0, 2, 3]
    assert nms(chain, score, 0.34).tolist() == [0, 1, 2, 3]
    assert nms(chain, score.flip(0), 0.3).tolist() == [3, 2, 0]
    assert nms(chain, score, 0.3, least_score=0.7).tolist() == [0, 2]
    assert nms(chain, score, 0.3, top=2).tolist() == [0, 2]
    assert nms(chain, torch.ones(4), 0.3).tolist() == [0, 2, 3]
    assert nms(chain, score, 0.3, group=torch.tensor([5, 6, 5, 6])).tolist() == [0, 1, 2, 3]
    assert nms(chain[:0], score[:0], 0.3).tolist() == []


def test_suppression_equals_a_loop_over_shapelys_overlaps() -> None:
    boxes, draw = rectangles(70, "nms"), generator("scores")
    score = (torch.rand(70, generator=draw) * 20).round() / 20  # with ties
    group = torch.randint(3, (70,), generator=draw)
    shapes = [polygon(*values) for values in boxes.tolist()]
    kept: list[int] = []
    for i in sorted(range(70), key=lambda i: (-float(score[i]), i)):
        rivals = [k for k in kept if group[k] == group[i]]
        iou = [shapes[i].intersection(shapes[k]).area / shapes[i].union(shapes[k]).area for k in rivals]
        if max(iou, default=0.0) <= 0.2:
            kept.append(i)
    assert 10 < len(kept) < 60
    assert nms(boxes, score, 0.2, group).tolist() == kept
    order = score.argsort(descending=True, stable=True)
    assert order[unsuppressed_reference(boxes[order], group[order], 0.2)].tolist() == kept


def test_points_on_a_face_are_inside_and_the_first_box_has_a_shared_point() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 4, 2, 2, 0], [1, 0, 1, 4, 2, 2, 0], [0, 0, 1, 4, 2, 2, math.pi / 2]])
    points = torch.tensor([[0.0, 0, 1], [2, 1, 2], [2.01, 0, 1], [0, 2, 0.5], [0, 0, 2.1], [-2, 0, 0]])
    first, count = points_in_boxes(points, boxes)
    assert first.tolist() == [0, 0, 1, 2, -1, 0]
    assert count.tolist() == [3, 3, 2]
    frames = torch.tensor([0, 1, 0, 1, 0, 1])
    first, count = points_in_boxes(points, boxes, frames, torch.tensor([0, 1, 1]))
    assert first.tolist() == [0, 1, -1, 2, -1, -1]
    assert count.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="both or neither"):
        points_in_boxes(points, boxes, frames)


def test_membership_equals_that_of_the_boxes_themselves() -> None:
    boxes = cuboid_rows(20, "members").float()
    noun = Boxes(boxes[:, :3], boxes[:, 3:6], boxes[:, 6], torch.zeros(20, 2), torch.zeros(20).long())
    torch.testing.assert_close(cuboids(noun), boxes)
    xyz = torch.randn(2000, 3, generator=generator("points")) * torch.tensor([3.0, 2.0, 1.0])
    inside = noun.contains(xyz)
    expected = torch.where(inside.any(0), inside.int().argmax(0), -1)
    frames = torch.zeros(2000).long(), torch.zeros(20).long()
    for first, count in (points_in_boxes(xyz, boxes), members_reference(xyz, boxes, *frames)):
        assert count.sum() > 500
        assert torch.equal(first, expected)
        assert torch.equal(count, inside.sum(1))


def test_the_operators_are_registered_as_torch_expects() -> None:
    a, b = rectangles(6, "g").view(2, 3, 5), rectangles(8, "h").view(2, 4, 5)
    opcheck(torch.ops.cofield.overlap.default, (a, b))
    opcheck(torch.ops.cofield.overlap.default, (a.float(), b.float()))
    opcheck(torch.ops.cofield.unsuppressed.default, (rectangles(9, "i"), torch.arange(9) // 4, 0.1))
    points = torch.randn(30, 3, generator=generator("j"))
    frames = torch.arange(30) % 2, torch.arange(5) % 2
    opcheck(torch.ops.cofield.points_in_boxes.default, (points, cuboid_rows(5, "k").float(), *frames))
