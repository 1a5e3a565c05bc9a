from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cofield.classes import UNKNOWN
from cofield.draw import generator
from cofield.frame import Batch, Points, SeenPoints, collate
from cofield.models.project import in_front, point_labels
from streets import frame


def batch_of(xyz: list[list[float]], cameras: int = 1) -> Batch:
    """A frame with these points; its camera is at (0.5, 0, 1.5), looks ahead, and a pixel is a 20th."""
    n = len(xyz)
    points = Points(torch.tensor(xyz), torch.zeros(n), torch.zeros(n), torch.zeros(n).long())
    return collate([replace(frame("a", cameras=cameras), points=points)])


def ahead(distance: float, left: float = 0.0) -> list[float]:
    """A point in the middle of a pixel left of the image's centre."""
    return [0.5 + distance, (0.025 + left) * distance, 1.5 - 0.025 * distance]


def seen_labels(batch: Batch, seen: SeenPoints, image: Tensor, agree: bool = False) -> list[int]:
    return point_labels(seen, image.flatten()[seen.pixel], len(batch.points), agree).tolist()


def test_a_point_gets_the_label_of_the_pixel_it_falls_on() -> None:
    batch = batch_of([ahead(4.0), ahead(4.0, left=0.5), ahead(-4.0), ahead(4.0, left=3.0)])
    image = torch.arange(16 * 40).view(1, 1, 16, 40)
    # Row 8, column 19 and ten columns further left; behind the camera and beside the image is no pixel.
    expected = [8 * 40 + 19, 8 * 40 + 9, UNKNOWN, UNKNOWN]
    assert seen_labels(batch, batch.seen_points(), image) == expected
    assert seen_labels(batch, in_front(batch), image) == expected
    image[0, 0, 8, 19] = UNKNOWN
    assert seen_labels(batch, batch.seen_points(), image)[0] == UNKNOWN


def test_a_point_behind_another_gets_its_label_only_in_the_plain_projection() -> None:
    batch = batch_of([ahead(4.0), ahead(12.0), ahead(4.3)])
    image = torch.full((1, 1, 16, 40), 7)
    assert seen_labels(batch, batch.seen_points(), image) == [7, 7, 7]
    # The third is within a tenth of the first's depth, the second three times as far.
    assert seen_labels(batch, in_front(batch), image) == [7, UNKNOWN, 7]
    assert seen_labels(batch, in_front(batch, slack=0.05), image) == [7, UNKNOWN, UNKNOWN]
    assert seen_labels(batch, in_front(batch, slack=2.5), image) == [7, 7, 7]


def test_a_wider_window_hides_what_shines_through_between_returns() -> None:
    # A return two columns beside one that is much nearer.
    batch = batch_of([ahead(4.0), ahead(12.0, left=0.1)])
    image = torch.full((1, 1, 16, 40), 7)
    assert seen_labels(batch, in_front(batch, window=3), image) == [7, 7]
    assert seen_labels(batch, in_front(batch, window=5), image) == [7, UNKNOWN]
    with pytest.raises(ValueError, match="odd number"):
        in_front(batch, window=4)


def test_cameras_far_apart_hide_nothing_from_each_other() -> None:
    batch = batch_of([ahead(4.0), [0.5 - 0.1, 12.0, 1.2]], cameras=2)
    image = torch.tensor([3, 5]).view(1, 2, 1, 1).expand(1, 2, 16, 40)
    assert seen_labels(batch, in_front(batch), image) == [3, 5]


def test_of_cameras_that_disagree_the_nearest_holds_or_none() -> None:
    row = torch.tensor
    seen = SeenPoints(row([0, 0, 1, 1, 2, 3, 3]), row([0, 1, 2, 3, 4, 5, 6]), row([5.0, 3.0, 2.0, 2.0, 9.0, 1.0, 4.0]))
    labels = row([1, 2, 6, 6, 4, UNKNOWN, 8])
    assert point_labels(seen, labels, 5).tolist() == [2, 6, 4, 8, UNKNOWN]
    assert point_labels(seen, labels, 5, agree=True).tolist() == [UNKNOWN, 6, 4, 8, UNKNOWN]


def test_the_order_of_cameras_and_points_does_not_matter() -> None:
    draw = generator("project")
    point, depth = torch.randint(40, (150,), generator=draw), torch.randint(1, 5, (150,), generator=draw).float()
    labels = torch.randint(-1, 4, (150,), generator=draw)
    order = torch.randperm(150, generator=draw)
    for agree in (False, True):
        one = point_labels(SeenPoints(point, point, depth), labels, 40, agree)
        other = point_labels(SeenPoints(point[order], point[order], depth[order]), labels[order], 40, agree)
        assert torch.equal(one, other)


def test_agreement_keeps_only_what_all_cameras_say() -> None:
    draw = generator("agree")
    point, labels = torch.randint(40, (150,), generator=draw), torch.randint(-1, 3, (150,), generator=draw)
    found = point_labels(SeenPoints(point, point, torch.ones(150)), labels, 41, agree=True)
    for p in range(41):
        said = set(labels[point == p].tolist()) - {UNKNOWN}
        assert found[p] == (said.pop() if len(said) == 1 else UNKNOWN)


def test_a_frame_without_cameras_or_points_labels_nothing() -> None:
    for empty in (batch_of([ahead(4.0)], cameras=0), batch_of([ahead(4.0)]).select_points(torch.tensor([False]))):
        seen = in_front(empty)
        assert len(seen.point) == 0
        assert (point_labels(seen, seen.pixel, len(empty.points)) == UNKNOWN).all()
