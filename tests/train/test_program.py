import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

import cofield
from cofield import cli, data
from cofield.data.augment import Augment
from cofield.data.submission import MapRaster
from cofield.frame import Boxes, Frame
from cofield.train.build import build_finetuning
from cofield.train.config import BoxHead, BoxTuning, Data, Finetuning, Head, MapTuning, Optim, PointTuning
from cofield.train.predict import load
from cofield.train.program import export_model, program_of, read_program
from cofield.train.recipes import recipe
from cofield.train.run import claim, open_finetuned
from cofield.train.watch import LAST
from streets import GRID, Hand, config, frame

Pairs = dict[str, tuple[Callable[[Frame], Any], Callable[[Frame], Any]]]

SMALL = replace(config().model, bins=4)
LIDAR = replace(SMALL, camera="none")
BOXES = BoxHead(width=16, bev_width=8, bev_depth=1, bev_out=8, queries=5)
GROUPS: dict[str, Any] = {"data": Data(source="hand"), "model": SMALL, "optim": Optim(precision="32")}
RUNS: dict[str, Finetuning] = {
    "map": MapTuning(
        grid=GRID, head=Head(width=8), augment=Augment(resize=(0.4, 0.6), size=(8, 24), image_flip=0.5), **GROUPS
    ),
    "kitti": BoxTuning(grid=GRID, head=replace(BOXES, classes="kitti"), **GROUPS | {"model": LIDAR}),
    "points": PointTuning(grid=GRID, **GROUPS | {"model": LIDAR}),
}
# What a machine without Cofield does: the inputs and what is expected are in a file beside each program.
ALONE = """
import sys, torch
for path in sys.argv[1:]:
    given, expected = torch.load(path + ".case")
    said = torch.export.load(path).module()(**given)
    assert sorted(said) == sorted(expected), sorted(said)
    for name, value in expected.items():
        torch.testing.assert_close(said[name], value, atol=1e-5, rtol=1e-5)
assert "cofield" not in sys.modules
"""


def untrained(wanted: Finetuning, folder: Path) -> Path:
    """A run whose weights are those it starts with."""
    claim(wanted, folder)
    task = build_finetuning(wanted)
    torch.save({"state_dict": task.state_dict(), "global_step": 0}, folder / LAST)
    return folder


@contextmanager
def unchecked() -> Iterator[None]:
    """Without checks of shapes: those of a traced tensor are symbols, and to compare them makes them numbers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run with its program, made by the command line from a frame of fifty points."""
    folder = tmp_path_factory.mktemp("programs")
    with pytest.MonkeyPatch.context() as patch, unchecked():
        patch.setattr(data, "open_source", lambda *_: Hand())
        for name, wanted in RUNS.items():
            run = untrained(wanted, folder / name)
            with pytest.raises(SystemExit) as ended:
                cli.main(["export-model", str(run), str(folder / f"{name}.pt2")])
            assert ended.value.code == 0
    return folder


@pytest.fixture(scope="module")
def programs(exported: Path) -> Pairs:
    """Runs and their programs as functions of a frame."""
    return {name: (load(exported / name), load(exported / f"{name}.pt2")) for name in RUNS}


def numbers(prediction: object) -> dict[str, torch.Tensor]:
    match prediction:
        case MapRaster():
            return {"probability": prediction.probability}
        case Boxes():
            return {name: value for name, value in vars(prediction).items() if value is not None}
        case torch.Tensor():
            return {"labels": prediction}
    raise AssertionError(prediction)


def compare(run: Callable[[Frame], Any], program: Callable[[Frame], Any], given: Frame) -> dict[str, torch.Tensor]:
    expected, said = numbers(run(given)), numbers(program(given))
    torch.testing.assert_close(said, expected, atol=1e-5, rtol=1e-5, equal_nan=True)
    return said


@pytest.mark.parametrize("name", RUNS)
def test_a_program_says_of_other_frames_what_its_run_says(name: str, programs: Pairs) -> None:
    said = compare(*programs[name], frame("other", count=173, height=20, width=44))
    assert all(len(value) for value in said.values())
    compare(*programs[name], frame("empty", count=0))


def test_a_program_needs_torch_alone(exported: Path) -> None:
    for name in RUNS:
        _, card = read_program(exported / f"{name}.pt2")
        given = card.tensors(frame("other", count=211))
        _, task = open_finetuned(exported / name)
        expected = {key: value.detach() for key, value in program_of(task).eval()(**given).items()}
        torch.save((given, expected), exported / f"{name}.pt2.case")
    subprocess.run([sys.executable, "-c", ALONE, *(str(exported / f"{name}.pt2") for name in RUNS)], check=True)


def test_a_card_says_what_the_numbers_are(exported: Path) -> None:
    card = read_program(exported / "map.pt2")[1]
    assert (card.task, card.images, card.resize, card.size) == ("map", (2, 8, 24), 0.5, (8, 24))
    assert card.names[0] == "drivable_area"
    assert card.raster is not None
    assert card.raster["count"] == [48, 32, 1]
    card = read_program(exported / "kitti.pt2")[1]
    assert (card.task, card.images, card.overlap, card.least_score) == ("detect", None, 0.2, 0.05)
    assert card.names[5] == "Cyclist"


def test_what_a_kitti_program_is_given_is_in_view_and_says_no_velocity(exported: Path, programs: Pairs) -> None:
    other = frame("other", count=173)
    given = read_program(exported / "kitti.pt2")[1].tensors(other)
    assert 0 < len(given["xyz_ego"]) < 173
    assert programs["kitti"][1](other).velocity.isnan().all()


def test_a_frame_with_other_cameras_is_refused(programs: Pairs) -> None:
    with pytest.raises(ValueError, match="takes images, 2 of 8×24; other has 1 of 8×24: export it with such a frame"):
        programs["map"][1](frame("other", cameras=1))


def test_what_cannot_be_a_program_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = replace(RUNS["points"], model=replace(LIDAR, lidar="voxelnet", fuse="conv", voxel=(0.5, 0.5, 0.2)))
    with pytest.raises(ValueError, match=r"a VoxelNet cannot be exported: .* fine-tune with model.lidar pillars"):
        program_of(build_finetuning(wanted))
    few = recipe("lidarseg:nuscenes")
    assert isinstance(few, Finetuning)
    with pytest.raises(ValueError, match="a Cylinder3D cannot be exported"):
        program_of(build_finetuning(few))
    (tmp_path / "x.pt2").write_bytes(b"x")
    for arguments, reason in (
        (["export-model", str(tmp_path), "y.pt2"], "is no run"),
        (["export-model", str(tmp_path)], "Required options"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        assert reason in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"x\.pt2 is no program of ours .* cofield export-model writes one"):
        cofield.load(tmp_path / "x.pt2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["map:world:tiny", "boxes:world:tiny", "transfusion", "points:world:small"])
def test_the_programs_of_recipes_say_what_the_recipes_say(name: str, tmp_path: Path) -> None:
    wanted = recipe("boxes:world:tiny" if name == "transfusion" else name)
    assert isinstance(wanted, Finetuning)
    if isinstance(wanted, BoxTuning) and name == "transfusion":
        wanted = replace(wanted, head=replace(wanted.head, kind="transfusion"))
    run = untrained(replace(wanted, optim=replace(wanted.optim, precision="32")), tmp_path / "run")
    frames = cofield.open_source("world:tiny", split="val")
    with unchecked():
        export_model(run, tmp_path / "x.pt2", frames[0])
    compare(load(run), load(tmp_path / "x.pt2"), frames[9])


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"lift": "depth", "fuse": "conv"},
        {"lift": "plain", "fuse": "attention"},
        {"lidar": "none", "fuse": "add"},
        {"camera": "resnet50"},
        {"camera": "swin-t", "recompute": True},
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_other_encoders_lifts_and_fusions_are_programs_too(change: dict[str, Any], tmp_path: Path) -> None:
    run = untrained(replace(RUNS["map"], model=replace(SMALL, **change)), tmp_path / "run")
    size = {"height": 64, "width": 160}
    with unchecked():
        export_model(run, tmp_path / "x.pt2", frame("example", **size))
    compare(load(run), load(tmp_path / "x.pt2"), frame("other", **size))
