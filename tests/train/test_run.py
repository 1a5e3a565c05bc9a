import errno
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cofield.data.augment import Augment
from cofield.draw import generator
from cofield.train import checkpoint, run, watch
from cofield.train.build import build_pretraining, build_trunk, seeded
from cofield.train.checkpoint import load_trunk, read_trunk, save_trunk, write_whole
from cofield.train.config import Data, Labels, Model, Optim, PointTuning, as_yaml, load_config
from cofield.train.run import claim, finetune, open_run, pretrain, read_checkpoint
from cofield.train.views import Sampling
from cofield.train.watch import LAST, read_metrics
from streets import GRID, Hand, config


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / LAST)["state_dict"]


def assert_same_weights(one: Path, two: Path) -> None:
    others = weights(two)
    for name, value in weights(one).items():
        assert torch.equal(value, others[name]), name


def train(folder: Path, **optim: int) -> bool:
    base = config()
    return pretrain(replace(base, optim=replace(base.optim, **optim)), folder, Hand(), Hand(2))


@contextmanager
def interrupted_in(step: int) -> Iterator[None]:
    """Ctrl-C during that step."""
    original = watch.Watch.on_train_batch_end

    def stop(self, trainer, *rest) -> None:
        if trainer.global_step == step:
            signal.raise_signal(signal.SIGINT)
        original(self, trainer, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(watch.Watch, "on_train_batch_end", stop)
        yield


def test_a_run_leaves_its_configuration_its_curves_and_its_trunk(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train(folder)
    assert load_config(folder / "config.yaml") == config()
    curves = read_metrics(folder / "metrics.csv")
    assert [step for step, _ in curves["train", "loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in curves["held_out", "range_error"]] == [3, 6]
    assert {"colour", "depth", "range", "free", "height", "above_colour"} <= {name for _, name in curves}
    tensors, grid = read_trunk(folder / "trunk.safetensors")
    assert grid == GRID
    assert set(tensors) == set(build_pretraining(config()).trunk.state_dict())
    assert list(folder.glob("events.out.tfevents*"))
    (_, task), kept = open_run(folder), weights(folder)
    assert all(torch.equal(a, kept[name]) for name, a in task.state_dict().items())
    assert train(folder), "a finished run is left as it is"


def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(whole)
    with interrupted_in(4):
        assert not train(halves)
    assert read_checkpoint(halves / LAST)["global_step"] == 4
    assert train(halves)
    assert_same_weights(whole, halves)
    one, two = (read_metrics(folder / "metrics.csv") for folder in (whole, halves))
    assert one == two


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole)
    original = watch.Watch.on_train_batch_end

    def die_at_five(self, trainer, *rest) -> None:
        original(self, trainer, *rest)
        if trainer.global_step == 5:
            raise MemoryError

    monkeypatch.setattr(watch.Watch, "on_train_batch_end", die_at_five)
    with pytest.raises(MemoryError):
        train(killed)
    monkeypatch.setattr(watch.Watch, "on_train_batch_end", original)
    assert read_checkpoint(killed / LAST)["global_step"] == 4
    assert train(killed)
    assert_same_weights(whole, killed)
    assert read_metrics(whole / "metrics.csv") == read_metrics(killed / "metrics.csv")


@pytest.fixture(scope="module")
def in_pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, each of two pieces, that nothing disturbed."""
    folder = tmp_path_factory.mktemp("pieces")
    assert train(folder, accumulate=2)
    return folder


@pytest.mark.parametrize("how", ["asked", "killed"])
def test_a_run_that_ended_between_the_pieces_of_a_step_goes_on_as_if_it_had_not(
    how: str, in_pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to stop it takes the step's other piece first; killed it takes both again, from the last checkpoint."""
    step = int(torch.randint(2, 6, (), generator=generator("when", how)))
    original = watch.Watch.on_train_batch_end

    def end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if batch_idx == 2 * (step - 1):
            assert trainer.global_step == step - 1
            if how == "killed":
                raise MemoryError
            signal.raise_signal(signal.SIGINT)
        original(self, trainer, pl_module, outputs, batch, batch_idx)

    monkeypatch.setattr(watch.Watch, "on_train_batch_end", end)
    if how == "asked":
        assert not train(tmp_path, accumulate=2)
        assert read_checkpoint(tmp_path / LAST)["global_step"] == step
    else:
        with pytest.raises(MemoryError):
            train(tmp_path, accumulate=2)
    monkeypatch.setattr(watch.Watch, "on_train_batch_end", original)
    assert train(tmp_path, accumulate=2)
    assert_same_weights(in_pieces, tmp_path)
    one, two = (read_checkpoint(folder / LAST) for folder in (in_pieces, tmp_path))
    moments, again = (checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, two))
    assert all(torch.equal(value, again[row][name]) for row, each in moments.items() for name, value in each.items())
    assert read_metrics(in_pieces / "metrics.csv") == read_metrics(tmp_path / "metrics.csv")


def test_the_last_step_is_measured_also_where_it_is_no_multiple_of_anything(tmp_path: Path) -> None:
    assert train(tmp_path / "run", steps=5)
    assert [step for step, _ in read_metrics(tmp_path / "run" / "metrics.csv")["held_out", "range_error"]] == [3, 5]


def test_a_run_that_measures_nothing_ends_without_a_score(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = config(data=Data(source="hand", batch=2, workers=0, validation=0))
    optim = Optim(steps=3, precision="32", save_every=2, validate_every=2)
    tuning = PointTuning(grid=GRID, data=base.data, model=replace(base.model, camera="none"), optim=optim)
    assert finetune(tuning, tmp_path / "run", Hand(), Hand(2)) == {}
    assert "no held-out frame was measured, so there is no score" in capfd.readouterr().err
    assert finetune(tuning, tmp_path / "run", Hand(), Hand(2)) == {}


def test_a_run_does_not_go_on_with_other_labelled_frames(tmp_path: Path) -> None:
    """As when it was begun on half of a download."""
    base = config()
    optim = Optim(steps=4, precision="32", save_every=2, validate_every=4)
    tuning = PointTuning(
        grid=GRID,
        data=base.data,
        model=replace(base.model, camera="none"),
        optim=optim,
        labels=Labels(fraction=0.5),
    )
    with interrupted_in(2):
        assert finetune(tuning, tmp_path / "run", Hand(4), Hand(2)) is None
    with pytest.raises(ValueError, match=r"began with 2 of 4 frames of hand labelled; now it .*4 of 8 frames"):
        finetune(tuning, tmp_path / "run", Hand(8), Hand(2))
    with pytest.raises(ValueError, match="began with 2 of 4 frames of hand"):
        finetune(tuning, tmp_path / "run", Hand(4, name="other"), Hand(2))
    assert finetune(tuning, tmp_path / "run", Hand(4), Hand(2))


@pytest.mark.parametrize("every", [2, 5])
@pytest.mark.parametrize("when", ["in the last step", "while it was measured"])
def test_a_fine_tuning_that_was_interrupted_at_its_end_has_the_score_of_one_that_was_not(
    when: str, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = config()
    optim = Optim(steps=2, precision="32", save_every=2, validate_every=every)
    tuning = PointTuning(grid=GRID, data=base.data, model=replace(base.model, camera="none"), optim=optim)
    whole = finetune(tuning, tmp_path / "whole", Hand(), Hand(2))
    assert whole
    hook = "on_train_batch_end" if when == "in the last step" else "on_validation_end"
    original = getattr(watch.Watch, hook)

    def disturb(self, trainer, *rest) -> None:
        if trainer.global_step == 2:
            monkeypatch.setattr(watch.Watch, hook, original)
            if hook == "on_validation_end":
                raise MemoryError
            signal.raise_signal(signal.SIGINT)
        original(self, trainer, *rest)

    monkeypatch.setattr(watch.Watch, hook, disturb)
    if hook == "on_validation_end":
        with pytest.raises(MemoryError):
            finetune(tuning, tmp_path / "halves", Hand(), Hand(2))
    assert finetune(tuning, tmp_path / "halves", Hand(), Hand(2)) == whole
    assert json.loads((tmp_path / "halves" / "scores.json").read_text()) == whole
    assert read_metrics(tmp_path / "whole" / "metrics.csv") == read_metrics(tmp_path / "halves" / "metrics.csv")


def test_augmented_frames_train_and_another_seed_augments_otherwise(tmp_path: Path) -> None:
    base = config(optim=Optim(steps=2, precision="32", save_every=2, validate_every=2))
    changed = Augment(scale=(0.9, 1.1), turn=0.5, shift=0.5, flip_x=0.5, flip_y=0.5, drop_points=0.2, image_flip=0.5)
    results = {}
    for name, augment in (("plain", Augment()), ("changed", changed), ("again", changed)):
        assert pretrain(replace(base, augment=augment), tmp_path / name, Hand(), Hand(2))
        results[name] = weights(tmp_path / name)
    assert all(value.isfinite().all() for value in results["changed"].values())
    assert all(torch.equal(value, results["again"][name]) for name, value in results["changed"].items())
    assert not all(torch.equal(value, results["plain"][name]) for name, value in results["changed"].items())


def test_another_configuration_does_not_enter_a_run(tmp_path: Path) -> None:
    base = config()
    claim(base, tmp_path / "run")
    other = replace(base, loss=replace(base.loss, colour=7.0), optim=replace(base.optim, seed=3))
    with pytest.raises(ValueError, match=r"loss.colour was 30.0 and is 7.0, optim.seed was 0 and is 3"):
        claim(other, tmp_path / "run")


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    original = Path.open
    written = []

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *problem: object) -> None: ...

        def write(self, content: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    def sometimes_full(self: Path, mode: str = "r", **options):
        if "last.ckpt" in self.name and "w" in mode:
            written.append(self)
            if len(written) == 2:
                original(self, mode).close()
                return Full()
        return original(self, mode, **options)

    monkeypatch.setattr(Path, "open", sometimes_full)
    with pytest.raises(OSError, match=r"could not write .*last.ckpt .*No space left.* is untouched"):
        train(folder)
    monkeypatch.setattr(Path, "open", original)
    assert read_checkpoint(folder / LAST)["global_step"] == 2
    assert not list(folder.glob("*.part"))
    assert train(folder)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder)
    content = (folder / LAST).read_bytes()
    (folder / LAST).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"last.ckpt cannot be read .* Remove it to start over"):
        open_run(folder)
    with pytest.raises(ValueError, match="is no run"):
        open_run(tmp_path)


def test_writing_whole_replaces_or_leaves(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    with pytest.raises(OSError, match="could not write"):
        write_whole(tmp_path / "missing" / "file", b"three")


def test_a_configuration_with_a_wrong_field_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(as_yaml(config()))
    assert load_config(path) == config()
    path.write_text(as_yaml(config()).replace("rate:", "ratte:"))
    with pytest.raises(ValueError, match="ratte"):
        load_config(path)
    path.write_text(as_yaml(config()).replace("steps: 6", "steps: many"))
    with pytest.raises(ValueError, match="steps"):
        load_config(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="no configuration"):
        load_config(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Optim(steps=0), "optim.steps is at least 1, got 0"),
        (lambda: Optim(validate_every=0), "optim.validate_every is at least 1"),
        (lambda: Optim(save_every=-1), "optim.save_every is at least 1"),
        (lambda: Data(batch=0), "data.batch is at least 1"),
        (lambda: Data(validation=-1), "data.validation is at least 0"),
        (lambda: Model(width=0), "model.width is at least 1"),
        (lambda: Sampling(samples=1), "views.samples is at least 2"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused_by_name(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_no_group_of_the_config_has_more_fields_than_fit_on_a_screen() -> None:
    from cofield.train.config import flat

    groups = Counter(name.split(".")[0] for name in flat(config()))
    assert max(groups.values()) <= 20, groups
    assert all(name.count(".") <= 1 for name in flat(config())), "two levels"


@pytest.fixture
def trunk_file(tmp_path: Path) -> Path:
    path = tmp_path / "trunk.safetensors"
    save_trunk(build_pretraining(config()).trunk, path, {"steps": 3})
    return path


def test_a_trunk_comes_back_with_a_report_of_what_was_loaded(trunk_file: Path) -> None:
    with seeded("another"):
        fresh = build_trunk(config().model, GRID, 8)
    report = load_trunk(fresh, trunk_file)
    assert len(report.loaded) == len(fresh.state_dict())
    assert not report.missing + report.unexpected + report.mismatched
    own = fresh.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in read_trunk(trunk_file)[0].items())
    with safe_open(trunk_file, framework="pt") as file:
        assert file.metadata()["format"] == checkpoint.FORMAT


def test_parts_say_what_is_expected(trunk_file: Path) -> None:
    with seeded("another"):
        lidar_only = build_trunk(replace(config().model, camera="none"), GRID, 8)
    with pytest.raises(ValueError, match="1 mismatched"):
        load_trunk(lidar_only, trunk_file)
    before = lidar_only.fuse.layers[0].weight.clone()
    report = load_trunk(lidar_only, trunk_file, parts=("lidar",))
    assert report.loaded
    assert report.skipped
    assert torch.equal(lidar_only.fuse.layers[0].weight, before)
    with pytest.raises(ValueError, match=r"no part 'radar'; it has .*lidar"):
        load_trunk(lidar_only, trunk_file, parts=("radar",))
    with pytest.raises(ValueError, match="no part 'camera'"):
        load_trunk(lidar_only, trunk_file, parts=("camera",))


def test_a_trunk_of_another_grid_is_refused_unless_allowed(trunk_file: Path) -> None:
    shifted = replace(GRID, origin_ego=(1.0, 0.0, 0.0))
    other = build_trunk_on(shifted)
    with pytest.raises(ValueError, match=r"(?s)another grid.*there: .*here: .*--allow-grid-change"):
        load_trunk(other, trunk_file)
    assert load_trunk(other, trunk_file, allow_grid_change=True).loaded
    assert other.grid == shifted


def build_trunk_on(grid):
    with seeded("another"):
        return build_trunk(config().model, grid, 8)


def test_files_that_are_no_trunk_are_refused(tmp_path: Path, trunk_file: Path) -> None:
    fresh = build_trunk_on(GRID)
    with pytest.raises(ValueError, match="there is no trunk at"):
        load_trunk(fresh, tmp_path / "nowhere")
    content = trunk_file.read_bytes()
    trunk_file.write_bytes(content[: len(content) - 100])
    with pytest.raises(ValueError, match="is it complete"):
        load_trunk(fresh, trunk_file)


def test_the_precision_auto_is_what_the_machine_has() -> None:
    assert run.compute_type("32") is None
    assert run.compute_type("bf16") == torch.bfloat16
    assert run.compute_type("auto") in (None, torch.bfloat16)
