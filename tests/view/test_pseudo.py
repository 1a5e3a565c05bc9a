from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cofield.classes import LIDARSEG, SEMANTICKITTI, UNKNOWN
from cofield.data import Source
from cofield.data.segment_cache import precompute
from cofield.data.segments import Felzenszwalb
from cofield.frame import Frame, collate
from cofield.models.pointseg import PointHead
from cofield.models.project import in_front
from cofield.train import pseudo as looking
from cofield.train.build import build_finetuning
from cofield.train.config import SegmentTuning
from cofield.train.pseudo import look_at, prior_needed, segments_of
from cofield.train.run import finetune
from cofield.train.semi import SemiSegment
from cofield.view import pictures
from cofield.view.paint import SEMANTIC_PALETTE
from cofield.view.pictures import around
from cofield.view.pseudo import (
    legend,
    looked_pictures,
    pooled,
    render_segmentation,
    report_segmentation,
    running_mean,
    shares_plot,
)
from scans import ROUND, TRUSTING, Town, config, few
from streets import GRID, frame


def with_truth(made: Frame) -> Frame:
    """The frame with a class for every pixel: road below, no class above."""
    semantics = torch.full((16, 40), LIDARSEG.index("driveable_surface"))
    semantics[:8] = UNKNOWN
    return replace(made, cameras=tuple(replace(camera, semantics=semantics) for camera in made.cameras))


def task_of(wish: SegmentTuning) -> SemiSegment:
    task = build_finetuning(wish).eval()
    assert isinstance(task, SemiSegment)
    return task


def halves(made: Frame) -> torch.Tensor:
    """Two segments of each image, left and right, and none in the last row."""
    label = (torch.arange(40) >= 20).long().expand(16, 40).clone()
    label[-1] = UNKNOWN
    return label.expand(len(made.cameras), 16, 40)


def test_rendered_pixels_have_a_class_an_entropy_and_their_segments_label() -> None:
    task, made = task_of(config(few())), with_truth(frame("a"))
    looked = look_at(task, made, halves(made))
    assert looked.entropy.isfinite().all()
    assert (looked.entropy <= 1).all()
    assert looked.segments is not None
    for n in range(2):
        for side in (slice(0, 20), slice(20, 40)):
            (label,) = looked.taught[n, :-1, side].unique().tolist()
            assert label != UNKNOWN, "without a threshold everything is kept"
    assert (looked.taught[:, -1] == UNKNOWN).all()
    assert looked.score["kept"] == 1
    assert looked.score["labelled"] == pytest.approx(15 / 16)
    known = looked.taught == LIDARSEG.index("driveable_surface")
    assert looked.score["recall"] == pytest.approx(float(known[:, 8:].float().mean()))
    again = look_at(task, made, halves(made))
    assert torch.equal(again.entropy, looked.entropy), "looking is deterministic"
    with pytest.raises(ValueError, match="frame a has no cameras, and so no pseudo-labels"):
        look_at(task, replace(made, cameras=()), None)


def test_together_the_sure_points_of_a_segment_outvote_unsure_rays() -> None:
    """A head that is sure of one class, and a field that is sure of none: rays alone keep nothing, points all."""
    made = with_truth(frame("a"))
    for together in (False, True):
        task = task_of(config(few(together=together), replace(TRUSTING, threshold=0.3)))
        assert isinstance(task.head, PointHead)
        assert task.field is not None
        assert task.field.kind is not None
        for last in (task.head.layers[-1], task.field.kind[-1]):
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)
        task.head.layers[-1].bias.data[5] = 50.0
        looked = look_at(task, made, halves(made))
        assert (looked.taught[:, :-1] == (5 if together else UNKNOWN)).all()
        assert looked.score["labelled"] == (pytest.approx(15 / 16) if together else 0)


def test_nothing_is_taught_where_nobody_is_sure() -> None:
    task, made = task_of(config(few(), replace(TRUSTING, threshold=1e-6))), frame("a")
    looked = look_at(task, made, halves(made))
    assert (looked.taught == UNKNOWN).all()
    assert looked.truth is None
    assert looked.score == {"kept": 0, "voting": 0, "labelled": 0}


def test_projected_points_are_scored_by_their_own_truth() -> None:
    task, made = task_of(config(few("projection"), replace(TRUSTING, segmenter="pixels"))), with_truth(frame("a"))
    looked = look_at(task, made, None)
    at = in_front(collate([made]))
    said = task(collate([made]))
    assert made.points.labels is not None
    assert looked.score["precision"] == pytest.approx(float((said == made.points.labels)[at.point].float().mean()))
    assert int((looked.said != UNKNOWN).sum()) == len(at.pixel.unique())
    shown = dict(looked_pictures(made, looked, LIDARSEG)[:6])
    assert {"classes of points", "pseudo-labels", "truth"} < set(shown)
    painted = (shown["classes of points"] != SEMANTIC_PALETTE[UNKNOWN]).any(-1)
    assert painted.sum() > (looked.said[0] != UNKNOWN).sum(), "points are drawn larger than a pixel"


def test_pictures_show_each_pixel_in_its_colour() -> None:
    task, made = task_of(config(few())), with_truth(frame("a"))
    looked = look_at(task, made, halves(made))
    shown = looked_pictures(made, looked, LIDARSEG)
    assert [name for name, _ in shown[:6]] == [
        "a-0",
        "rendered classes",
        "entropy",
        "segments",
        "pseudo-labels",
        "truth",
    ]
    assert {each.shape for _, each in shown} == {(16, 40, 3)}
    assert (shown[4][1] == SEMANTIC_PALETTE[looked.taught[0].numpy()]).all()
    assert (shown[11][1][8:] == SEMANTIC_PALETTE[LIDARSEG.index("driveable_surface")]).all()
    pixels = looked_pictures(
        replace(made, cameras=frame("a").cameras), replace(looked, segments=None, truth=None), LIDARSEG
    )
    assert np.ptp(pixels[3][1]) == np.ptp(pixels[5][1]) == 0, "what nobody knows is grey"
    assert legend(LIDARSEG).shape[1] == legend(SEMANTICKITTI).shape[1]


def test_segments_come_from_the_runs_folder_if_they_are_in_it(tmp_path: Path) -> None:
    town, wish = Town(), config(pseudo=replace(TRUSTING, segments=str(tmp_path)))
    precompute(town, Felzenszwalb(), tmp_path, [0])
    kept, made = segments_of(wish, "town", town[0]), segments_of(wish, "town", town[1])
    assert kept is not None
    assert made is not None
    assert torch.equal(kept[0], Felzenszwalb()(town[0].cameras[0], "frame 0"))
    assert made.shape == (2, 16, 40)
    assert segments_of(config(pseudo=replace(TRUSTING, segmenter="pixels")), "town", town[0]) is None
    with pytest.raises(ValueError, match="wanted is"):
        segments_of(config(pseudo=replace(wish.pseudo, segmenter="felzenszwalb-fine")), "town", town[0])


def test_the_prior_is_that_of_the_labelled_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "open_split", lambda *_: Town())
    assert prior_needed(config(), 16) is None
    prior = prior_needed(config(pseudo=replace(TRUSTING, caution=0.5)), 16)
    assert prior is not None
    assert prior.sum() == pytest.approx(1)


@pytest.mark.parametrize("method", ["nerf", "supervised"])
def test_a_run_is_drawn_and_reported(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen(Town):
        def __getitem__(self, index: int) -> Frame:
            return with_truth(super().__getitem__(index))

    town: Source = Seen(2)
    finetune(config(few(method), grid=ROUND), tmp_path / "run", Town(), Town(2))
    monkeypatch.setattr(pictures, "open_split", lambda *_: town)
    scores = render_segmentation(tmp_path / "run", tmp_path / "out", 1)
    assert 0 <= scores["miou"] <= 1
    assert ("pseudo.precision" in scores) == (method == "nerf")
    drawn = {path.name for path in (tmp_path / "out").iterdir()}
    assert drawn >= {"frame 0-predicted.png", "frame 0-predicted.ply"}
    if method == "nerf":
        with Image.open(tmp_path / "out" / "frame 0-pseudo.png") as sheet:
            assert sheet.size[0] == 6 * 320
    page = "".join(report_segmentation(tmp_path / "run", 1))
    for text in ("Pseudo-labels over training", "right pseudo-labels, of all"):
        assert (text in page) == (method == "nerf")
    assert "miou" in page


def test_shares_are_running_means_of_what_is_known(tmp_path: Path) -> None:
    values = np.array([np.nan, 1.0, np.nan, 3.0, 5.0])
    assert np.array_equal(running_mean(values, 2), np.array([np.nan, 1, 1, 3, 4]), equal_nan=True)
    log = tmp_path / "metrics.csv"
    log.write_text("step,split,name,value\n1,train,kept,nan\n2,train,kept,0.5\n1,train,precision,nan\n")
    drawn = shares_plot(log)
    assert drawn is not None
    assert "<svg" in drawn
    log.write_text("step,split,name,value\n1,train,loss,1.0\n")
    assert shares_plot(log) is None


def test_shares_of_frames_are_averaged_where_they_are_known() -> None:
    task, made = task_of(config(few())), with_truth(frame("a"))
    looked = look_at(task, made, halves(made))
    two = [replace(looked, score={"kept": 0.5, "precision": value}) for value in (0.25, float("nan"))]
    assert pooled(two) == {"kept": 0.5, "precision": 0.25}
    assert pooled([]) == {}


def test_a_cylinder_is_drawn_on_the_square_around_it() -> None:
    square = around(ROUND)
    assert (square.lower[:2], square.upper[:2], square.count[:2]) == ((-12.0, -12.0), (12.0, 12.0), (24, 24))
    assert around(GRID) is GRID
