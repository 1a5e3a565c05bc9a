from dataclasses import replace

import pytest

from cofield.data.balance import balanced, classes_present
from cofield.frame import Boxes, Frame
from streets import Hand

CAR, BUS = frozenset({0}), frozenset({3})


def test_a_class_in_one_frame_of_four_is_drawn_as_often_as_the_others_together() -> None:
    # Cars are in three frames, the bus in one: (3 + 1) / 2 draws each.
    chosen = balanced([CAR, BUS, CAR, CAR], seed=0)
    assert chosen == sorted(chosen)
    assert chosen.count(1) == 2
    assert len(chosen) == 4
    assert len(set(chosen)) == 3, "no car comes twice while another has not come"


def test_frames_are_repeated_evenly_before_any_is_drawn_once_more() -> None:
    # 10 frames with cars, of which 2 have a bus too: 6 draws each.
    present = [CAR | BUS] * 2 + [CAR] * 8
    chosen = balanced(present, seed=1)
    counts = [chosen.count(index) for index in range(10)]
    assert sum(counts) == 12
    assert all(count in (3, 4) for count in counts[:2])
    assert all(count in (0, 1) for count in counts[2:])
    assert balanced(present, 1) == chosen
    assert any(balanced(present, seed) != chosen for seed in range(2, 6))


def test_what_is_balanced_already_stays_and_frames_without_classes_go() -> None:
    assert balanced([CAR, frozenset(), BUS], seed=0) == [0, 2]
    with pytest.raises(ValueError, match="none of 2 frames has a box"):
        balanced([frozenset(), frozenset()], seed=0)


class Some(Hand):
    def __getitem__(self, index: int) -> Frame:
        boxes = super().__getitem__(index).boxes if index else Boxes.empty()
        return replace(super().__getitem__(index), boxes=boxes)


def test_the_classes_present_are_those_of_the_boxes() -> None:
    assert classes_present(Some(2)) == [frozenset(), frozenset({0, 1, 2})]
