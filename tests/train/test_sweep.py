import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cofield.frame import Frame, Maps
from cofield.models.mapseg import MapHead
from cofield.train import run, sweep
from cofield.train.build import seeded
from cofield.train.config import Data, Finetuning, Head, Labels, MapTuning, Optim, Start
from cofield.train.recipes import recipe_for
from cofield.train.results import interval, paired_difference, read_results, write_results
from cofield.train.run import finetune, open_finetuned, open_run, pretrain
from cofield.train.sweep import Cell, Sweep, cells, claimed, configured, rows, run_sweep
from streets import GRID, Hand, config, frame


class Mapped(Hand):
    """Hand-made frames with a map."""

    def __getitem__(self, index: int) -> Frame:
        with seeded("raster"):
            grid = MapHead(8, GRID, width=8).grid
        layers = torch.zeros(6, *grid.shape[1:], dtype=torch.bool)
        layers[:, :, : 10 + index] = True
        return replace(frame(f"frame {index}"), maps=Maps(layers, grid))


def tuning(**groups: object) -> MapTuning:
    base = config()
    parts = {
        "data": Data(source="hand", batch=2, workers=0, validation=3),
        "model": base.model,
        "head": Head(width=8),
        "optim": Optim(steps=4, rate=1e-3, precision="32", save_every=2, validate_every=4),
        "labels": Labels(fraction=0.5),
    }
    return MapTuning(grid=GRID, **parts | groups)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    base = config()
    pretrain(replace(base, optim=replace(base.optim, steps=2)), folder, Hand(), Hand(2))
    return folder


def test_fine_tuning_starts_from_the_trunk_and_writes_what_it_did(tmp_path: Path, pretrained: Path) -> None:
    scores = finetune(tuning(start=Start(str(pretrained))), tmp_path / "run", Mapped(6), Mapped(3))
    assert scores is not None
    assert 0 <= scores["miou"] <= 1
    assert json.loads((tmp_path / "run" / "scores.json").read_text()) == scores
    assert len(json.loads((tmp_path / "run" / "labels.json").read_text())["frames"]) == 3
    assert "0 missing, 0 unexpected, 0 mismatched" in (tmp_path / "run" / "loading.txt").read_text()
    assert finetune(tuning(start=Start(str(pretrained))), tmp_path / "run") == scores, "finished runs are left alone"
    _, task = open_finetuned(tmp_path / "run")
    assert task.trunk.grid == GRID
    with pytest.raises(ValueError, match="needs a pre-training one"):
        open_run(tmp_path / "run")
    with pytest.raises(ValueError, match="makes a fine-tuned one"):
        open_finetuned(pretrained)


def test_a_run_is_loaded_as_a_function_of_a_frame(tmp_path: Path, pretrained: Path) -> None:
    import cofield

    volume = cofield.load(pretrained)(frame("a"))
    assert volume.features.shape == (1, 8, 5, 16, 24)
    finetune(tuning(), tmp_path / "run", Mapped(6), Mapped(3))
    prediction = cofield.load(tmp_path / "run")(frame("a"))
    assert prediction.probability.shape == (8, 32, 48)
    assert torch.equal(prediction["vehicle"], prediction.probability[6])
    with pytest.raises(KeyError, match="no layer is called 'sky'; there is drivable_area"):
        prediction["sky"]
    with pytest.raises(ValueError, match="is no run"):
        cofield.load(tmp_path)


def test_the_trunk_makes_a_difference_from_the_first_step_and_the_seed_pairs_the_rest(
    tmp_path: Path, pretrained: Path
) -> None:
    fresh, warm = run.build_finetuning(tuning()), run.build_finetuning(tuning(start=Start(str(pretrained))))
    run.start_trunk(warm.trunk, tuning(start=Start(str(pretrained))))
    heads = zip(fresh.head.state_dict().values(), warm.head.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in heads)
    trunks = zip(fresh.trunk.state_dict().values(), warm.trunk.state_dict().values(), strict=True)
    assert not all(torch.equal(a, b) for a, b in trunks)
    with pytest.raises(ValueError, match="there is no trunk at"):
        run.start_trunk(warm.trunk, tuning(start=Start(str(tmp_path))))


def test_a_sweep_is_every_combination_once() -> None:
    plan = Sweep(
        (0.5, 1.0), seeds=(0, 1), inits=("scratch", "pretrained", "scratch-equal-compute"), trunks=("a", "runs/b")
    )
    every = cells(plan, steps=10)
    assert len(every) == len({cell.name for cell in every}) == 2 * 2 * (1 + 2 + 1)
    assert {cell.steps for cell in every if cell.init == "scratch-equal-compute"} == {plan.equal_steps}
    assert every[0] == Cell(0.5, "frames", 0, "scratch", None, 10)
    assert "pretrained-from-b-0.5-frames-seed1" in {cell.name for cell in every}
    with pytest.raises(ValueError, match="--trunks names"):
        Sweep(inits=("pretrained",))


def test_a_sweep_writes_a_file_per_cell_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def pretend(config: Finetuning, folder: Path) -> dict[str, float] | None:
        if len(done) == 2:
            return None
        done.append(config)
        return {"miou": 0.1 * len(done), "vehicle": 0.5}

    monkeypatch.setattr(sweep, "finetune", pretend)
    plan = Sweep((0.5,), seeds=(0, 1, 2), inits=("scratch",))
    left = run_sweep(tuning(), plan, tmp_path / "results", tmp_path / "runs")
    assert [cell.seed for cell in left] == [2]
    done.clear()
    assert run_sweep(tuning(), plan, tmp_path / "results", tmp_path / "runs") == []
    assert [each.optim.seed for each in done] == [2]
    assert done[0].labels.seed == 2
    rows = read_results(tmp_path / "results")
    assert [row["value"] for row in rows if row["metric"] == "miou"] == [0.1, 0.2, 0.1]
    assert {"task", "source", "fraction", "split", "init", "seed", "metric", "value"} <= set(rows[0])
    assert not list((tmp_path / "results").glob(".*"))
    longer = replace(tuning(), optim=replace(tuning().optim, steps=5))
    with pytest.raises(ValueError, match=r"seed0\.json has steps 4, this sweep 5; choose another NAME"):
        run_sweep(longer, plan, tmp_path / "results", tmp_path / "runs")
    # A cell of another recipe is not taken for this one's; where data are, and who loads them, is no other recipe.
    other = replace(tuning(), optim=replace(tuning().optim, rate=0.5))
    with pytest.raises(ValueError, match=r"seed0\.json has config [0-9a-f]{12}, this sweep [0-9a-f]{12}; choose"):
        run_sweep(other, plan, tmp_path / "results", tmp_path / "runs")
    elsewhere = replace(tuning(), data=replace(tuning().data, root="/elsewhere", workers=3))
    assert run_sweep(elsewhere, plan, tmp_path / "results", tmp_path / "runs") == []


def test_cells_written_before_they_had_a_digest_are_known_by_the_recipe_of_their_command(tmp_path: Path) -> None:
    plan, target = Sweep((0.5,), seeds=(0,), inits=("supervised",)), tmp_path / "supervised-0.5-frames-seed0.json"
    base = recipe_for("lidarseg:world:small", Finetuning)
    base = replace(base, optim=replace(base.optim, steps=4))
    (cell,) = cells(plan, 4)
    old = rows(configured(base, cell), cell, {"miou": 0.5})
    for row in old:
        del row["config"]
    write_results(target, old, 1.0, "cofield sweep cells --recipe lidarseg:world:small --fractions 0.5 --steps 4")
    assert run_sweep(base, plan, tmp_path, tmp_path) == []
    for command in ("--recipe lidarseg:world:small-cylinder", "--recipe map:gone", "--recipe", ""):
        write_results(target, old, 1.0, f"cofield sweep cells --steps 4 {command}")
        with pytest.raises(ValueError, match=r"json has config .*, this sweep [0-9a-f]{12}; choose"):
            run_sweep(base, plan, tmp_path, tmp_path)
    for row in old:
        del row["source"]
    write_results(target, old, 1.0)
    with pytest.raises(ValueError, match="has source None, this sweep"):
        run_sweep(base, plan, tmp_path, tmp_path)


def test_trunks_are_told_apart_by_name_and_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"two have one name: runs/a/cylinder, runs/b/cylinder"):
        Sweep(inits=("pretrained",), trunks=("runs/a/cylinder", "runs/b/cylinder"))
    monkeypatch.setattr(sweep, "finetune", lambda config, folder: {"miou": 0.5})
    for place, weights in (("one", b"first"), ("two", b"second")):
        (tmp_path / place / "trunk").mkdir(parents=True)
        (tmp_path / place / "trunk" / run.TRUNK).write_bytes(weights)

    def sweep_from(place: str) -> list[Cell]:
        plan = Sweep((0.5,), (0,), inits=("pretrained",), trunks=(str(tmp_path / place / "trunk"),))
        return run_sweep(tuning(), plan, tmp_path / "results", tmp_path / "runs")

    assert sweep_from("one") == []
    (tmp_path / "one").rename(tmp_path / "moved")
    assert sweep_from("moved") == [], "where a trunk is makes no other cell"
    with pytest.raises(ValueError, match="choose another NAME"):
        sweep_from("two")


def test_a_cell_whose_changes_name_a_folder_is_one_file() -> None:
    (cell,) = cells(Sweep((0.5,), (0,), inits=("supervised+data.root=/data/nuscenes",)), 4)
    assert cell.name == "supervised+data.root=-data-nuscenes-0.5-frames-seed0"


def test_cells_of_other_sensors_are_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "finetune", lambda config, folder: {"miou": 0.5})
    for source in ("world:small@report", "world:small@report+delay=0.1"):
        base = tuning(data=Data(source=source))
        assert run_sweep(base, Sweep((0.5,), seeds=(2,), inits=("scratch",)), tmp_path, tmp_path) == []
    assert {row["cell"]: row["source"] for row in read_results(tmp_path)} == {
        "scratch-0.5-frames-seed2": "world:small@report",
        "scratch-0.5-frames-seed2+delay=0.1": "world:small@report+delay=0.1",
    }


def test_a_cell_that_another_process_holds_is_left_to_it_and_one_of_a_dead_process_is_not(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with claimed(lock) as first:
        assert first
        with claimed(lock) as second:
            assert not second
        assert lock.exists()
    assert not lock.exists()
    gone = 2**22 + 12345  # beyond the largest process number
    lock.write_text(f"{os.uname().nodename} {gone}")
    with claimed(lock) as third:
        assert third
        sweep._give_up(lock)
        assert lock.exists(), "the lock of a living process stays"
    assert not list(tmp_path.iterdir())
    sweep._give_up(lock)


def test_an_interval_is_students() -> None:
    known = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert known.mean == 3.0
    assert known.high - known.mean == pytest.approx(2.776 * 1.5811 / 5**0.5, rel=1e-3)
    assert str(interval([0.5])) == "0.500"
    with pytest.raises(ValueError, match="at least one value"):
        interval([])


def test_a_paired_difference_cancels_what_seeds_have_in_common() -> None:
    there = [{"seed": s, "value": v} for s, v in enumerate((0.1, 0.5, 0.9))]
    here = [{"seed": s, "value": v + 0.1} for s, v in enumerate((0.1, 0.5, 0.9))]
    both = paired_difference(here, there, key=lambda row: row["seed"])
    assert both.mean == pytest.approx(0.1)
    assert both.high - both.low < 1e-6
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference(here[:1], there[1:], key=lambda row: row["seed"])


def test_results_say_where_they_come_from_and_damaged_ones_are_named(tmp_path: Path) -> None:
    write_results(tmp_path / "one.json", [{"metric": "miou", "value": 0.5}], 1.25, "cofield sweep")
    content = json.loads((tmp_path / "one.json").read_text())
    assert content["command"] == "cofield sweep"
    assert set(content) == {"command", "commit", "machine", "seconds", "rows"}
    (tmp_path / "two.json").write_text("{}")
    with pytest.raises(ValueError, match=r"two.json holds no results"):
        read_results(tmp_path)
