import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cofield import cli
from cofield.data import open_source
from cofield.data.export import export
from cofield.data.submission import in_world, read_map, write_detections
from cofield.frame import Boxes, Frame
from cofield.train import predict
from cofield.train.config import BoxHead, BoxTuning, Data, Finetuning, Head, MapTuning, Optim, PointTuning
from cofield.train.predict import load, score_run
from cofield.train.run import finetune
from cofield.train.score_files import score_file
from streets import GRID, config, frame
from train.test_sweep import Mapped

GROUPS = {
    "data": Data(source="hand", batch=2, workers=0, validation=2),
    "model": config().model,
    "optim": Optim(steps=2, precision="32", save_every=2, validate_every=2),
}
TASKS: dict[str, Callable[[], Finetuning]] = {
    "map": lambda: MapTuning(grid=GRID, head=Head(width=8), **GROUPS),
    "centerpoint": lambda: BoxTuning(grid=GRID, head=BoxHead(width=8, bev_width=8, bev_depth=1, bev_out=8), **GROUPS),
    "transfusion": lambda: BoxTuning(
        grid=GRID, head=BoxHead("transfusion", width=16, bev_width=8, bev_depth=1, bev_out=8, queries=5), **GROUPS
    ),
    "points": lambda: PointTuning(grid=GRID, **GROUPS),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains_scores_and_writes_official_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    scores = finetune(TASKS[name](), run, Mapped(4), Mapped(2))
    assert scores
    monkeypatch.setattr(predict, "open_source", lambda *_: Mapped(2))
    again = score_run(run, results=tmp_path / "results.json")
    assert again == pytest.approx(scores, rel=1e-5, nan_ok=True), "what training measured last"
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["metric"] for row in rows} == set(scores)
    assert {(row["run"], row["trained_on"]) for row in rows} == {("run", TASKS[name]().data.source)}
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", str(run), "--out", str(tmp_path / "out")])
    assert ended.value.code == 0
    said = load(run)(frame("frame 0"))
    match name:
        case "map":
            written = read_map(tmp_path / "out" / "maps" / "frame 0.npz")
            torch.testing.assert_close(written.probability, said.probability, atol=1e-3, rtol=0)
        case "points":
            assert said.shape == (50,)
            files = sorted((tmp_path / "out" / "lidarseg" / "val").glob("*.bin"))
            now = frame("frame 0").points.age == 0
            assert list(files[0].read_bytes()) == (said[now] + 1).tolist()
        case _:
            assert isinstance(said, Boxes)
            results = json.loads((tmp_path / "out" / "detections.json").read_text())["results"]
            assert set(results) == {"frame 0", "frame 1"}
            assert len(results["frame 0"]) == len(said)


class Torn(Mapped):
    """The second frame cannot be read."""

    def __getitem__(self, index: int) -> Frame:
        if index == 1:
            raise ValueError("the file is torn")
        return super().__getitem__(index)


def test_a_frame_that_cannot_be_read_is_left_out_and_no_other_counts_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    finetune(TASKS["points"](), run, Mapped(4), Mapped(2))
    monkeypatch.setattr(predict, "open_source", lambda *_: Torn(3))
    with pytest.raises(ValueError, match="the file is torn"):
        score_run(run)
    score_run(run, skip_broken=True, results=tmp_path / "results.json")
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["frames"] for row in rows} == {2}
    predict.predict_run(run, out, skip_broken=True)
    names = {path.name for path in (out / "lidarseg" / "val").glob("*.bin")}
    assert names == {"frame 0_lidarseg.bin", "frame 2_lidarseg.bin"}


def test_truth_in_a_detection_file_scores_everything(tmp_path: Path) -> None:
    export(open_source("world:tiny", split="val"), "nuscenes", tmp_path, 2)
    truth = open_source("nuscenes", tmp_path, "val")

    def told(each: Frame) -> tuple[str, Boxes]:
        assert each.boxes is not None
        assert each.boxes.num_points is not None
        # Truth without returns does not count, so telling it would be a false alarm.
        boxes = in_world(each.boxes.select(each.boxes.num_points > 0), each.world_T_ego)
        return each.token, replace(boxes, score=torch.ones(len(boxes)).double())

    write_detections(tmp_path / "truth.json", [told(truth[index]) for index in range(len(truth))])
    scores = score_file(tmp_path / "truth.json", "nuscenes", tmp_path, "val")
    present = [value for name, value in scores.items() if name.startswith("ap.") and value > 0]
    assert len(present) >= 3
    assert present == pytest.approx([1.0] * len(present))


def test_evaluate_asks_for_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, reason in (
        (["evaluate"], "either a run"),
        (["evaluate", "--predictions", "x.json"], "--source says"),
        (["predict", str(tmp_path), "--out", str(tmp_path / "out")], "is no run"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        assert reason in capsys.readouterr().err
