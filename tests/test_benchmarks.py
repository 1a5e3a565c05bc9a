"""The scripts under benchmarks/ that no other check runs: a few steps of the smallest recipe."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cofield.train.config import SegmentTuning
from cofield.train.recipes import recipe
from cofield.train.run import finetune

SCRIPTS = Path(__file__).parent.parent / "benchmarks"


def ran(script: str, *arguments: str) -> str:
    """What a script prints."""
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_parts_of_a_step_are_all_of_it_and_one_frame_is_learned(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    ran("step.py", "world:tiny", "--one-frame", "--steps", "12", "--threads", "1", "--out", str(out))
    rows = json.loads(out.read_text())["rows"]
    assert sum(row["share"] for row in rows if "share" in row) == pytest.approx(1, abs=0.01)
    terms = {row["term"]: row for row in rows if "term" in row}
    assert set(terms) == {"colour", "depth", "range", "free", "height", "above_colour"}
    assert terms["range"]["last_five"] < terms["range"]["first_five"]
    (last,) = (row for row in rows if "without_gradient" in row)
    assert last["without_gradient"] == []


@pytest.mark.slow
def test_a_frame_by_heart_is_measured_and_painted(tmp_path: Path) -> None:
    out, pictures = tmp_path / "frame.json", tmp_path / "pictures"
    ran("overfit.py", "world:tiny", "--steps", "3", "--run", str(tmp_path / "run"), "--pictures", str(pictures),
        "--out", str(out))  # fmt: skip
    metrics = {row["metric"] for row in json.loads(out.read_text())["rows"]}
    assert {"psnr", "psnr_mean_image", "range_error"} <= metrics
    assert (pictures / "world-tiny-cameras.png").is_file()


@pytest.mark.slow
def test_a_frame_is_timed_as_a_run_and_as_a_program_with_any_sensors(tmp_path: Path) -> None:
    out = tmp_path / "predict.json"
    ran("predict.py", "points:world:small", "--frames", "1", "--out", str(out))
    rows = json.loads(out.read_text())["rows"]
    cases = {(row["sensors"], row["backend"], row["precision"]) for row in rows}
    for sensors in ("cameras and LiDAR", "LiDAR", "cameras"):
        assert {(sensors, "run", "32"), (sensors, "program", "32")} <= cases
    assert all(row["ms"] > 0 and row["gib"] > 0 for row in rows)


@pytest.mark.slow
def test_pseudo_labels_of_a_run_are_scored_by_rendering_and_by_projecting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COFIELD_CACHE", str(tmp_path / "cache"))
    few = recipe("lidarseg:world:small")
    assert isinstance(few, SegmentTuning)
    few = replace(few, data=replace(few.data, source="world:tiny", validation=1), optim=replace(few.optim, steps=2))
    run, out = tmp_path / "run", tmp_path / "pseudo.json"
    finetune(few, run)
    ran("pseudo_labels.py", str(run), "--sources", "world:tiny@tune", "--frames", "1", "--out", str(out))
    rows = json.loads(out.read_text())["rows"]
    assert {row["route"] for row in rows} == {"rendered", "projected"}
    assert {row["metric"] for row in rows if row["route"] == "rendered"} >= {"pixels, all, precision"}
    assert all(0 <= row["value"] <= 1 for row in rows)


@pytest.mark.slow
def test_the_layout_of_a_volume_is_timed(tmp_path: Path) -> None:
    out = tmp_path / "layout.json"
    ran("layout.py", "--rounds", "1", "--out", str(out))
    assert len(json.loads(out.read_text())["rows"]) == 2
