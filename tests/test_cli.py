import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cofield.cli import VERBS, main
from cofield.train.config import Pretraining
from cofield.train.recipes import recipe_for, repeat


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


def test_the_doctor_finds_a_working_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ready"]
    assert report["missing"] == []
    assert report["packages"]["torch"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["render", "world:tinny", "--out", "x"], "tinny"),
        (["render", "world:tiny@nowhere", "--out", "x"], "nowhere"),
        (["render", "moon", "--out", "x"], "moon"),
        (["render", "world:tiny", "--out", "x", "--split", "middle"], "middle"),
        (["render", "world:tiny", "--out", "x", "--frames", "0"], "frames"),
        (["render", "world:tiny", "--out", "x", "--framse", "2"], "--framse"),
        (["render", "world:tiny", "--out", "x", "--frames", "71"], "1 to 70 frames"),
        (["render", "world:tiny", "--out", "x", "--beams", "0"], "beam"),
        (["render", "world:tiny", "--out", "x", "--camera", "0", "0", "-2", "0", "0"], "above the road"),
        (["render", "world:tiny", "--out", "x", "--camera", "0", "0"], "--camera"),
        (["rendre", "world:tiny"], "rendre"),
        (["pretrain"], "world:small"),
        (["pretrain", "world:huge"], "world:huge"),
        (["pretrain", "map:world:small"], "cofield finetune"),
        (["pretrain", "world:tiny", "--loss.color", "3"], "--loss.color"),
        (["pretrain", "world:tiny", "--optim.steps", "many"], "many"),
        (["finetune", "map:world:tiny"], "--trunk"),
        (["finetune", "map:world:tiny", "--trunk", "nowhere", "--run", "{tmp}/run"], "there is no trunk at nowhere"),
        (["finetune", "map:world:tiny", "--trunk", "none", "--labels.fraction", "0", "--run", "{tmp}/run"], "fraction"),
        (["evaluate", "nowhere"], "nowhere is no run"),
        (["report", "nowhere", "--out", "x.html"], "nowhere is no run"),
        (["sweep", "name", "--inits", "pretrained"], "--trunks"),
        (["recipes", "moon"], "moon"),
        (["check-data", "moon", "--root", "{tmp}"], "moon"),
        (["export", "world:tiny", "--format", "paper", "--root", "{tmp}/out", "--frames", "1"], "paper"),
        (["export", "kitti", "--format", "nuscenes", "--root", "{tmp}/out"], "--root"),
    ],
)
def test_a_wrong_request_is_one_clear_sentence(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(each.replace("{tmp}", str(tmp_path)) for each in arguments)) == 2
    streams = capsys.readouterr()
    assert words in streams.err
    assert "Traceback" not in streams.err + streams.out


def test_an_interrupted_verb_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, "segments", stopped)
    assert run("segments", "world:tiny") == 130
    assert capsys.readouterr().err == "cofield: interrupted\n"


def test_recipes_are_listed_printed_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes") == 0
    assert "world:small " in capsys.readouterr().out
    assert run("recipes", "world:small") == 0
    assert "steps: 1400" in capsys.readouterr().out
    assert run("recipes", "world:small", "--diff", "world:tiny") == 0
    assert "optim.steps was 1400 and is 400" in capsys.readouterr().out


def test_the_command_that_repeats_a_run_gives_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = recipe_for("world:small", Pretraining)
    wanted = replace(
        base,
        data=replace(base.data, source="world:small@report", store=False, workers=2),
        loss=replace(base.loss, colour=5.0, masked_only=("range", "colour")),
        optim=replace(base.optim, steps=3, validate_every=7),
    )
    taken = []
    monkeypatch.setattr("cofield.train.run.pretrain", lambda config, folder: taken.append(config) or True)
    words = repeat(wanted).split()
    assert words[:2] == ["cofield", "pretrain"]
    assert run(*words[1:], "--run", str(tmp_path)) == 0
    assert taken == [wanted]


def test_help_is_instant() -> None:
    """The fastest of five, so that a busy machine does not matter; it is about a tenth of this when idle."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cofield", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0


def test_a_camera_that_the_car_does_not_carry_is_drawn(tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    assert run("render", "world:tiny", "--out", str(out), "--frames", "1", "--camera", "-8", "0", "6", "0", "15") == 0
    assert list(out.glob("*extra.png"))
    assert list(out.glob("*.ply"))


def test_a_written_world_is_what_it_should_be_and_a_broken_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "kitti"
    assert run("export", "world:tiny", "--format", "kitti", "--root", str(root), "--frames", "2") == 0
    assert run("check-data", "kitti", "--root", str(root), "--out", str(tmp_path / "check"), "--frames", "1") == 0
    assert "OK" in capsys.readouterr().out
    assert list((tmp_path / "check").glob("*.png"))
    for scan in root.glob("training/velodyne/*.bin"):
        scan.write_bytes(scan.read_bytes()[:-7])
    assert run("check-data", "kitti", "--root", str(root), "--out", str(tmp_path / "check"), "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert any("velodyne" in finding["where"] + finding["problem"] for finding in found["findings"])
