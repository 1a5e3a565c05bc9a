"""What each term of a step is, by another computation or with an answer known beforehand."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cofield.classes import LIDARSEG, UNKNOWN
from cofield.data.augment import Augment
from cofield.data.fractions import Subset
from cofield.data.partly import Truth, has_label, still_labelled
from cofield.frame import Batch, Frame, Points, collate
from cofield.metrics.iou import PointIoU
from cofield.models.project import in_front
from cofield.models.render import Seen
from cofield.models.semantics import rendered_loss, segmentation_loss
from cofield.train import semi
from cofield.train.config import Labels, Optim, Pseudo, Semi
from cofield.train.run import finetune
from cofield.train.semi import Reading, SemiSegment, commonest, prior_of
from scans import TRUSTING, Town, config, few, made
from streets import camera, frame


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COFIELD_CACHE", str(tmp_path / "cache"))


def task_of(wanted: Semi, pseudo: Pseudo = TRUSTING) -> SemiSegment:
    return made(config(wanted, pseudo))[0]


def scan(xyz_ego: list[list[float]], labels: list[int] | None = None, same: bool = False) -> Frame:
    """A scan of those points, with two cameras: ahead and to the left, or both ahead from one place."""
    whole = frame("a", count=len(xyz_ego))
    known = torch.full((len(xyz_ego),), UNKNOWN) if labels is None else torch.tensor(labels)
    table = replace(whole.points, xyz_ego=torch.tensor(xyz_ego), labels=known)
    cameras = (camera("one"), camera("two")) if same else whole.cameras
    return replace(whole, points=table, cameras=cameras)


def sure_of(labels: Tensor, classes: int = len(LIDARSEG.names)) -> Tensor:
    """Logits of points of which the network is sure."""
    return 9.0 * torch.nn.functional.one_hot(labels, classes).float()


@pytest.mark.parametrize(("method", "on_the_left"), [("projection", 5), ("projection-consistent", UNKNOWN)])
def test_where_cameras_name_a_point_differently_it_is_taught_by_the_plain_projection_alone(
    method: str, on_the_left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One camera has one segment; the other, at the same place, tells left from right: five points against three."""
    task, far = task_of(few(method)), 8.0
    batch = collate([scan([[far, y, 1.5] for y in (3.0, 2.0, 1.0, -1.0, -2.0, -3.0, -4.0, -5.0)], same=True)])
    left = batch.points.xyz_ego[:, 1] > 0
    said = torch.where(left, 3, 5)
    segments = torch.zeros(batch.valid.shape, dtype=torch.long)
    segments[:, 1, :, :20], segments[:, 1, :, 20:] = 1, 2
    monkeypatch.setattr(task, "segments_of", lambda batch: segments)
    reading = Reading(sure_of(said))
    value, votes, _ = task.projected(batch, reading)
    wanted = torch.where(left, on_the_left, 5)
    assert torch.equal(votes.label, wanted[in_front(batch).point])
    torch.testing.assert_close(value, reading.loss(wanted))


def test_a_point_behind_another_neither_votes_nor_is_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(few("projection"))
    batch = collate([scan([[8.5, 0.0, 1.5], [16.5, 0.0, 1.5], [8.5, 3.0, 1.5]])])
    assert set(batch.seen_points().point.tolist()) == {0, 1, 2}
    monkeypatch.setattr(task, "segments_of", lambda batch: torch.zeros(batch.valid.shape, dtype=torch.long))
    reading = Reading(sure_of(torch.tensor([4, 7, 4])))
    value, votes, _ = task.projected(batch, reading)
    assert votes.label.tolist() == [4, 4]
    torch.testing.assert_close(value, reading.loss(torch.tensor([4, UNKNOWN, 4])))


def test_fog_before_a_wall_and_behind_it_is_as_wrong_as_it_is_far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen 2 m before the return and as much behind it means the return; its error is 2 m of its range."""
    task, classes = task_of(few("nerf")), len(LIDARSEG.names)
    one = collate([scan([[3.0, 1.0, 0.5], [4.0, -2.0, 1.5], [9.0, 2.0, 0.5], [-8.0, 5.0, 2.0]], [3, 2, 1, 0])])
    ranges: list[Tensor] = []

    def fog(field: Any, volume: Any, rays: Any, steps: Any, fixed: bool = False) -> Seen:
        known = torch.linalg.vector_norm(one.points.xyz_ego[rays.source] - rays.origin, dim=-1)
        ranges.append(known)
        half, even = torch.full((len(known), 2), 0.5), torch.full((len(known), classes), 1 / classes)
        away = torch.stack([known - 2, known + 2], -1)
        return Seen(known, torch.ones(len(known)), {"semantics": even}, half, away)

    monkeypatch.setattr(semi, "look", fog)
    shown, error = task.along_beams(one, task.read(one))
    (known,) = ranges
    assert known.min() < 5 < known.max()
    torch.testing.assert_close(error, (2 / known.clamp(min=5)).mean())
    assert float(shown) == pytest.approx(torch.log(torch.tensor(float(classes))))


def test_beams_that_teach_classes_are_those_of_labelled_points(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = made(config(few("nerf")))
    one = batch.select([0])
    assert one.points.labels is not None
    inside = task.trunk.grid.contains(one.points.xyz_ego)
    labelled = int(inside.nonzero()[7])
    alone = torch.full_like(one.points.labels, UNKNOWN)
    alone[labelled] = 3
    taken: list[Any] = []
    plain = semi.look

    def watched(field: Any, volume: Any, rays: Any, steps: Any, fixed: bool = False) -> Seen:
        taken.append(rays)
        return plain(field, volume, rays, steps, fixed)

    monkeypatch.setattr(semi, "look", watched)
    for labels, beams in ((alone, 1), (torch.full_like(alone, UNKNOWN), 16)):
        batch = replace(one, points=replace(one.points, labels=labels))
        task.along_beams(batch, task.read(batch))
        assert len(taken.pop().source) == beams


def test_together_pixels_and_points_are_both_taught_and_both_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = made(config(few("nerf", together=True)))
    others = batch.select([1])
    at, of_pixels = in_front(others), torch.arange(others.valid.numel()).view(others.valid.shape) % 16
    of_points = torch.arange(len(others.points)) % 16

    class Known(Truth):
        def pixels(self, batch: Batch) -> Tensor:
            return of_pixels

        def points(self, batch: Batch) -> Tensor:
            return of_points

    asked: list[Tensor] = []
    plain = semi.segment_pixels

    def watched(*given: Any) -> Tensor:
        asked.append(plain(*given))
        return asked[-1]

    monkeypatch.setattr(semi, "segment_pixels", watched)
    assert task.supplies.segments is not None
    task.supplies = replace(task.supplies, truth=Known(task.supplies.segments))
    seen: list[Tensor] = []
    monkeypatch.setattr(semi, "rendered_loss", lambda *given: seen.append(given[0]) or rendered_loss(*given))
    reading = task.read(others)
    value, votes, truth = task.rendered(others, reading)
    (pixels,) = asked
    assert truth is not None
    assert torch.equal(truth, torch.cat([of_pixels.flatten()[pixels], of_points[at.point]]))
    taught = torch.full((len(others.points),), UNKNOWN)
    taught[at.point] = votes.label[len(pixels) :]
    expected = rendered_loss(seen[0], votes.label[: len(pixels)]) + segmentation_loss(reading.points, taught)
    torch.testing.assert_close(value, expected)
    value.backward()
    field = task.field
    assert field is not None
    assert field.kind is not None
    last = field.kind[-1].weight.grad
    assert last is not None
    assert last.any(), "pixels teach the field"


@pytest.mark.parametrize("method", ["nerf", "together", "projection"])
def test_votes_know_how_often_classes_are_labelled(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = few("nerf", together=True) if method == "together" else few(method)
    task, batch = made(config(wanted, replace(TRUSTING, caution=0.5)))
    labels = Town()[0].points.labels
    assert labels is not None
    counts = torch.bincount(labels, minlength=16).float()
    prior = task.supplies.prior
    assert prior is not None
    torch.testing.assert_close(prior, counts / counts.sum())
    told: list[Any] = []
    plain = semi.vote
    monkeypatch.setattr(semi, "vote", lambda *given: told.append(given[-1]) or plain(*given))
    task.learn(batch, 1)
    assert told == [prior]
    assert task_of(few("nerf")).supplies.prior is None


def test_the_prior_counts_what_is_labelled_in_all_chosen_scans() -> None:
    first, second = scan([[5.0, 0.0, 1.0]] * 4, [2, 2, 3, UNKNOWN]), scan([[5.0, 0.0, 1.0]] * 2, [3, 1])

    @dataclass(frozen=True)
    class Two(Town):
        def __getitem__(self, index: int) -> Frame:
            return (first, second)[index]

    assert prior_of(Subset(Two(2), [0, 1]), 4).tolist() == pytest.approx([0.0, 0.2, 0.4, 0.4])


def test_each_term_has_the_weight_that_is_named_after_it() -> None:
    wanted = few("nerf", rendered=0.3, placed=0.7, ranges=0.2, weight=0.9, mixing=0.6, sure=0.01)
    task, batch = made(config(wanted))
    weights = {name: weight for name, (weight, _) in task.learn(batch, task.optim.steps)[0].items()}
    assert weights == {
        "points": 1.0,
        "beams": 0.3,
        "range": 0.3,
        "placed": 0.7,
        "pseudo": 0.9,
        "free_range": 0.2,
        "mixed": 0.6,
    }


def test_cells_are_taught_beside_points() -> None:
    draw = torch.Generator().manual_seed(0)
    points, cells = torch.randn(6, 4, generator=draw), torch.randn(3, 4, generator=draw)
    labels, slot = torch.tensor([0, 0, 1, 2, UNKNOWN, 3]), torch.tensor([0, 0, 0, 1, 2, 1])
    both = Reading(points, (cells, slot)).loss(labels)
    of_cells = segmentation_loss(cells, commonest(labels, slot, 3, 4))
    torch.testing.assert_close(both, segmentation_loss(points, labels) + of_cells)
    assert of_cells > 0.1


def test_only_points_of_the_scan_itself_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = task_of(few("projection")), collate([frame("a"), frame("b")])
    assert batch.points.labels is not None
    now = batch.points.age == 0
    assert 0 < int(now.sum()) < len(now)
    right = batch.points.labels.clamp(min=0)
    wrong_before = torch.where(now, right, (right + 1) % 16)
    monkeypatch.setattr(task, "forward", lambda batch: wrong_before)
    score: PointIoU = task.fresh_score()
    task.count(score, batch)
    assert score.compute()["miou"] == 1.0


class Scribbled(Town):
    """One point of each scan is labelled."""

    def __getitem__(self, index: int) -> Frame:
        made = super().__getitem__(index)
        assert made.points.labels is not None
        labels = torch.full_like(made.points.labels, UNKNOWN)
        labels[7] = 3
        return replace(made, points=replace(made.points, labels=labels))


def test_a_labelled_scan_never_becomes_one_of_the_others_by_augmentation(tmp_path: Path) -> None:
    """Its segments were never made, and its labels are there."""
    wish = config(
        few("nerf"),
        augment=Augment(drop_points=0.9),
        labels=Labels(fraction=0.4),
        optim=Optim(steps=6, precision="32", save_every=6, validate_every=6),
    )
    assert finetune(wish, tmp_path / "run", Scribbled(), Town(2)) is not None
    change, scribbled = Augment(drop_points=0.9), Scribbled()[0]
    drawn = [still_labelled(change, scribbled, epoch) for epoch in range(20)]
    assert all(map(has_label, drawn))
    assert len({len(each.points) for each in drawn}) > 1, "a scan that keeps its label is changed"
    bare = replace(scribbled, points=replace(scribbled.points, labels=torch.full((50,), UNKNOWN)))
    assert len(still_labelled(change, bare, 0).points) < 50


def test_points_that_are_not_finite_are_named_before_they_are_in_every_weight() -> None:
    whole = frame("broken one")
    for bad in (float("nan"), float("inf")):
        table: Points = replace(whole.points, xyz_ego=whole.points.xyz_ego.clone())
        table.xyz_ego[3, 1] = bad
        with pytest.raises(ValueError, match="frame broken one has points that are not finite"):
            collate([frame("fine"), replace(whole, points=table)])
        bright = replace(whole.points, intensity=whole.points.intensity.clone())
        bright.intensity[0] = bad
        with pytest.raises(ValueError, match="frame broken one has points"):
            collate([replace(whole, points=bright)])
