import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cofield import cli
from cofield.classes import COMMON, LIDARSEG, SEMANTICKITTI, UNKNOWN, Classes, translate
from cofield.data.export import export
from cofield.data.simulate import World
from cofield.frame import Batch
from cofield.metrics.iou import PointIoU
from cofield.train.across import left_out, score_across
from cofield.train.build import build_finetuning
from cofield.train.config import PointClasses
from cofield.train.run import finetune
from cofield.train.semi import SemiSegment
from scans import Town, config, few


@dataclass(frozen=True)
class Kitti(Town):
    """The same frames, whose labels count SemanticKITTI's classes."""

    point_classes: Classes | None = SEMANTICKITTI


def says(
    task: SemiSegment, source: Town, monkeypatch: pytest.MonkeyPatch, changed: dict[int, int] | None = None
) -> None:
    """Let the task say what is true of a source's points, in its own classes; or another label for some of them."""
    true = {source[i].token: source[i].points.labels for i in range(len(source))}
    assert source.point_classes is not None

    def forward(batch: Batch) -> Tensor:
        assert batch.points.labels is None, "truth is not shown to whom is asked"
        labels = torch.cat([true[token] for token in batch.tokens])
        said = translate(labels, source.point_classes, task.classes).clamp(min=0)
        for label, other in (changed or {}).items():
            said[labels == label] = other
        return said

    monkeypatch.setattr(task, "forward", forward)


@pytest.mark.parametrize(("head", "town"), [("semantickitti", Town(2)), ("nuscenes-lidarseg", Kitti(2))])
def test_who_is_right_about_all_that_has_a_common_name_scores_one(
    head: str, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = build_finetuning(config(few("supervised"), head=PointClasses(classes=head)))
    assert isinstance(task, SemiSegment)
    says(task, town, monkeypatch)
    scores = score_across(task, town, [0, 1], 2)
    spaces = {name: value for name, value in scores.items() if not name.startswith("miou")}
    # A lidarseg bus is an other-vehicle of SemanticKITTI, which has no common name; a two-wheeler is one of several.
    exact = {"car", "truck", "pedestrian", "road", "sidewalk", "terrain", "manmade", "vegetation"}
    known = exact & set(spaces)
    assert len(known) >= 7
    assert set(spaces) - known <= {"two_wheeler"}, "what the head has no word for is not held against it"
    assert {name: spaces[name] for name in known} == dict.fromkeys(known, 1.0)
    assert set(spaces) <= set(COMMON.names)


def test_a_class_without_a_common_name_is_a_miss_where_something_known_is(monkeypatch: pytest.MonkeyPatch) -> None:
    task, town = build_finetuning(config(few("supervised"))), Kitti(1)
    assert isinstance(task, SemiSegment)
    fence, cone = SEMANTICKITTI.index("fence"), LIDARSEG.index("traffic_cone")
    says(task, town, monkeypatch)
    plain = score_across(task, town, [0], 1)
    says(task, town, monkeypatch, {fence: cone, SEMANTICKITTI.index("parking"): LIDARSEG.index("car")})
    missed = score_across(task, town, [0], 1)
    labels, now = town[0].points.labels, town[0].points.age == 0
    assert labels is not None
    manmade = translate(labels[now], SEMANTICKITTI, COMMON) == COMMON.index("manmade")
    assert plain["manmade"] == 1
    assert missed["manmade"] == pytest.approx(float(1 - (labels[now][manmade] == fence).float().mean()))
    assert missed["manmade"] < 1
    assert missed["car"] == plain["car"] == 1, "what is said of unscored points does not matter"


def test_it_is_said_what_cannot_be_compared() -> None:
    words = left_out(LIDARSEG, SEMANTICKITTI)
    for part in (
        "semantickitti's other-vehicle, parking, other-ground are not scored",
        "nuscenes-lidarseg's barrier, construction_vehicle, traffic_cone, trailer, other_flat are wrong wherever",
        "bus semantickitti does not know",
    ):
        assert part in words
    assert "bus semantickitti does not know" in left_out(SEMANTICKITTI, LIDARSEG)


def test_a_run_is_evaluated_on_another_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World("tiny", split="val")
    export(world, "semantickitti", tmp_path / "kitti", 8)  # the second scene's first frame is its validation split
    run = tmp_path / "run"
    assert finetune(config(few("supervised")), run, Town(), Town(2))
    command = ["evaluate", str(run), "--source", "semantickitti", "--root", str(tmp_path / "kitti"), "--json"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--results", str(tmp_path / "results.json")])
    assert ended.value.code == 0
    told = capsys.readouterr()
    assert "semantickitti's other-vehicle, parking, other-ground are not scored" in told.err
    scores = json.loads(told.out)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {(row["source"], row["classes"]) for row in rows} == {("semantickitti", "common")}
    assert {row["metric"]: row["value"] for row in rows} == scores
    # The same frame as it was before it was exported, scored in the same classes; there is a bus nowhere near.
    import cofield

    frame, counted = world[7], PointIoU([*COMMON.names, "none"])
    assert frame.points.labels is not None
    said = translate(cofield.load(run)(frame), LIDARSEG, COMMON)
    true = translate(frame.points.labels, LIDARSEG, COMMON)
    true = torch.where(true == COMMON.index("bus"), UNKNOWN, true)
    counted.add(torch.where(said < 0, len(COMMON), said), true, frame.points.xyz_ego)
    assert {name: scores[name] for name in ("car", "road", "manmade", "miou")} == pytest.approx(
        {name: counted.compute()[name] for name in ("car", "road", "manmade", "miou")}, abs=0.01
    )
