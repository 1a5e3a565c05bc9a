import signal
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from cofield.classes import DETECTION
from cofield.data import open_source
from cofield.data.balance import balanced, classes_present
from cofield.data.paste import Objects
from cofield.frame import Batch, Frame
from cofield.grid import BoxGrid
from cofield.ops.boxes import cuboids, points_in_boxes
from cofield.train import watch
from cofield.train.config import BoxHead, BoxTuning, Data, Model, Optim, Rare
from cofield.train.run import OBJECTS, finetune, read_checkpoint
from cofield.train.tasks import Detect
from cofield.train.watch import LAST, read_metrics
from streets import Hand

GRID = BoxGrid(lower=(-25.6, -25.6, -1.6), cell=(1.6, 1.6, 6.4), count=(32, 32, 1))


class Kept(Hand):
    """Three frames of the town, cast once."""

    box_classes = DETECTION

    @cached_property
    def known(self) -> list[Frame]:
        town = open_source("world:tiny")
        return [replace(town[14 * index], cameras=()) for index in range(self.frames)]

    def __getitem__(self, index: int) -> Frame:
        return self.known[index]


FRAMES = Kept(3)


def tuning(**rare: Any) -> BoxTuning:
    return BoxTuning(
        grid=GRID,
        data=Data("world:tiny", batch=2, workers=0, validation=1),
        model=Model(width=8, lidar_width=16, camera="none"),
        head=BoxHead(width=8, bev_width=8, bev_depth=1, bev_out=8),
        optim=Optim(steps=4, precision="32", save_every=2, validate_every=4),
        rare=Rare(**{"least_points": 1} | rare),
    )


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that a run learns from, in their order."""
    seen: list[Batch] = []
    original = Detect.training_step

    def training_step(self: Detect, batch: Batch, index: int) -> torch.Tensor:
        seen.append(batch)
        return original(self, batch, index)

    monkeypatch.setattr(Detect, "training_step", training_step)
    return seen


def test_a_balanced_run_draws_each_frame_as_often_as_balancing_says(tmp_path: Path, taught: list[Batch]) -> None:
    chosen = balanced(classes_present(FRAMES), seed=0)
    assert len(set(chosen)) < len(chosen), "some frame is there twice"
    wanted = tuning(balanced=True)
    steps = len(chosen) // wanted.data.batch
    optim = replace(wanted.optim, steps=steps, validate_every=steps, save_every=steps)
    assert finetune(replace(wanted, optim=optim), tmp_path / "run", FRAMES, FRAMES)
    drawn = [token for batch in taught for token in batch.tokens]
    assert sorted(drawn) == sorted(FRAMES[index].token for index in chosen)


def test_a_pasting_run_learns_from_what_it_pasted_with_its_returns(tmp_path: Path, taught: list[Batch]) -> None:
    assert finetune(tuning(paste=4), tmp_path / "run", FRAMES, FRAMES)
    objects = Objects.load(tmp_path / "run" / OBJECTS)
    own = {FRAMES[index].token: FRAMES[index].boxes for index in range(len(FRAMES))}
    pasted = 0
    for batch in taught:
        for frame, (token, boxes) in enumerate(zip(batch.tokens, batch.boxes, strict=True)):
            before = own[token]
            assert boxes is not None
            assert before is not None
            added = boxes.select(torch.arange(len(before), len(boxes)))
            assert set(added.label.tolist()) <= set(objects.boxes.label.tolist())
            _, held = points_in_boxes(batch.points.xyz_ego[batch.sample == frame], cuboids(added))
            assert (held > 0).all()
            for label in added.label.unique():
                assert (boxes.label == label).sum() <= 4
            pasted += len(added)
    assert pasted


def test_a_balanced_and_pasting_run_that_was_stopped_and_resumed_equals_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tuning(balanced=True, paste=4)
    scores = finetune(wanted, tmp_path / "whole", FRAMES, FRAMES)
    original = watch.Watch.on_train_batch_end

    def stop_after_two(self: watch.Watch, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 2:
            signal.raise_signal(signal.SIGINT)
        original(self, trainer, *rest)

    monkeypatch.setattr(watch.Watch, "on_train_batch_end", stop_after_two)
    assert finetune(wanted, tmp_path / "halves", FRAMES, FRAMES) is None
    assert read_checkpoint(tmp_path / "halves" / LAST)["global_step"] == 2
    monkeypatch.setattr(watch.Watch, "on_train_batch_end", original)
    assert finetune(wanted, tmp_path / "halves", FRAMES, FRAMES) == pytest.approx(scores, abs=0, nan_ok=True)
    one, two = (read_checkpoint(tmp_path / each / LAST)["state_dict"] for each in ("whole", "halves"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert read_metrics(tmp_path / "whole" / "metrics.csv") == read_metrics(tmp_path / "halves" / "metrics.csv")


def test_nothing_is_pasted_where_images_would_not_show_it(tmp_path: Path) -> None:
    seeing = replace(tuning(paste=1), model=Model(width=8, camera_width=16, lidar_width=16, bins=12))
    with pytest.raises(ValueError, match=r"with rare\.paste choose model\.camera none"):
        finetune(seeing, tmp_path / "run", FRAMES, FRAMES)
