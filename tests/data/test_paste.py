from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cofield.data.paste import Objects, Pasting, collect, free
from cofield.frame import Boxes, Frame, Points
from streets import Hand, frame


def boxes(*rows: tuple[float, float, int]) -> Boxes:
    """Boxes of two metres at x, y with a label."""
    count = len(rows)
    return Boxes(
        centre=torch.tensor([[x, y, 1.0] for x, y, _ in rows]).reshape(count, 3),
        size=torch.full((count, 3), 2.0),
        yaw=torch.zeros(count),
        velocity=torch.zeros(count, 2),
        label=torch.tensor([label for _, _, label in rows]).long(),
        track=torch.arange(count),
    )


def points(*xy: tuple[float, float]) -> Points:
    count = len(xy)
    return Points(
        xyz_ego=torch.tensor([[x, y, 1.0] for x, y in xy]).reshape(count, 3),
        intensity=torch.arange(count) / 10,
        age=torch.zeros(count),
        origin=torch.full((count,), 1),
    )


def scene(token: str, what: Boxes, where: Points, sweeps: int = 2) -> Frame:
    return replace(frame(token), boxes=what, points=where, origins_ego=torch.zeros(sweeps, 3))


class Two(Hand):
    """A car with three returns and a bus with one, then another car with two."""

    def __getitem__(self, index: int) -> Frame:
        if index == 0:
            held = points((10.0, 0.0), (30.0, 30.0), (10.5, 0.5), (-10.0, 0.0), (9.5, 0.0))
            return scene("first", boxes((10, 0, 0), (-10, 0, 3)), held)
        return scene("second", boxes((0, 10, 0)), points((0.0, 10.0), (0.5, 10.5)))


def test_objects_are_boxes_with_the_points_inside_them() -> None:
    objects = collect(Two(2), most=10, least_points=2)
    assert objects.boxes.label.tolist() == [0, 0], "the bus holds too few returns"
    assert objects.offsets.tolist() == [0, 3, 5]
    assert objects.points.xyz_ego[:, 0].tolist() == [10.0, 10.5, 9.5, 0.0, 0.5]
    assert len(collect(Two(2), most=1, least_points=2)) == 1
    with pytest.raises(ValueError, match="no box of hand holds 9 returns"):
        collect(Two(2), most=10, least_points=9)


def test_objects_come_back_from_their_file(tmp_path: Path) -> None:
    objects = collect(Two(2), most=10, least_points=1)
    objects.save(tmp_path / "objects.safetensors")
    read = Objects.load(tmp_path / "objects.safetensors")
    torch.testing.assert_close(read.points.xyz_ego, objects.points.xyz_ego)
    torch.testing.assert_close(read.boxes.track, objects.boxes.track)
    assert read.boxes.score is None
    assert read.offsets.tolist() == objects.offsets.tolist()


def test_what_is_pasted_replaces_the_returns_inside_it_and_nothing_else() -> None:
    pasting = Pasting(collect(Two(2), most=10, least_points=1), fill=5, seed=0)
    empty = scene("empty", Boxes.empty(), points((10.2, 0.2), (20.0, 0.0)), sweeps=1)
    empty = replace(empty, boxes=replace(Boxes.empty(), track=torch.zeros(0).long()))
    full = pasting(empty, epoch=0)
    assert full.boxes is not None
    assert sorted(full.boxes.label.tolist()) == [0, 0, 3]
    assert full.boxes.track is not None
    assert full.boxes.track.tolist() == [-1, -1, -1]
    # One return of the scene was inside a pasted car.
    assert len(full.points) == 1 + 6
    assert full.points.xyz_ego[0].tolist() == [20.0, 0.0, 1.0]
    assert full.points.origin[1:].tolist() == [0] * 6, "there is one sweep here"
    again = pasting(empty, epoch=0)
    torch.testing.assert_close(again.points.xyz_ego, full.points.xyz_ego)


def test_nothing_is_pasted_on_what_stands_there_or_beyond_the_wanted_number() -> None:
    objects = collect(Two(2), most=10, least_points=1)
    taken = scene("taken", boxes((11, 0, 0), (0, 10, 0), (-10, 0, 3)), points((0.0, 0.0)))
    assert Pasting(objects, fill=5, seed=0)(taken, 0) is taken, "everything is in the way"
    enough = scene("enough", boxes((40, 0, 0), (40, 20, 3)), points((0.0, 0.0)))
    assert Pasting(objects, fill=1, seed=0)(enough, 0) is enough
    one = Pasting(objects, fill=2, seed=0)(enough, 0)
    assert one.boxes is not None
    assert sorted(one.boxes.label.tolist()) == [0, 0, 3, 3]


def test_of_candidates_that_overlap_each_other_the_first_is_free() -> None:
    row = boxes((0, 0, 0), (1.5, 0, 0), (3, 0, 0), (9, 0, 0))
    assert free(row, boxes((10, 0, 0))).tolist() == [True, False, True, False]
    assert free(row, Boxes.empty()).tolist() == [True, False, True, True]


def test_a_frame_without_labels_is_refused() -> None:
    pasting = Pasting(collect(Two(2), most=10, least_points=1), fill=5, seed=0)
    with pytest.raises(ValueError, match="has no boxes"):
        pasting(replace(frame("bare"), boxes=None), 0)
