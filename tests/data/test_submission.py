import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cofield.classes import ATTRIBUTES, DETECTION, KITTI, LIDARSEG, SEMANTICKITTI, UNKNOWN
from cofield.data.export import export
from cofield.data.export_kitti import kitti_labels
from cofield.data.files import read_labels
from cofield.data.kitti import Kitti
from cofield.data.nuscenes import NuScenes
from cofield.data.nuscenes_truth import lidar_tokens, official_truth
from cofield.data.semantickitti import read_point_labels
from cofield.data.simulate import World
from cofield.data.submission import (
    MapRaster,
    in_world,
    read_detections,
    read_kitti,
    read_map,
    write_detections,
    write_kitti,
    write_lidarseg,
    write_lidarseg_meta,
    write_map,
    write_semantickitti,
)
from cofield.draw import generator
from cofield.frame import Boxes
from cofield.geometry import wrap_angle
from cofield.grid import BoxGrid
from cofield.metrics.kitti import KittiAP
from cofield.metrics.nuscenes import NuScenesScore


@pytest.fixture(scope="module")
def world() -> World:
    world = World("tiny")
    return World("tiny", rig=replace(world.rig, lidar=(0.0, 0.0, 1.73), beams=8, azimuths=120, sweeps=1))


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("submission")
    export(world, "nuscenes", root / "nuscenes", 9)
    export(world, "kitti", root / "kitti", 9)
    return root


@pytest.fixture(scope="module")
def source(folder) -> NuScenes:
    return NuScenes(folder / "nuscenes", "all", "v1.0-mini", cameras=())


def drawn(count: int = 5) -> Boxes:
    draw = generator("drawn")
    return Boxes(
        centre=torch.randn(count, 3, generator=draw, dtype=torch.float64) * 500,
        size=torch.rand(count, 3, generator=draw, dtype=torch.float64) + 0.5,
        yaw=torch.randn(count, generator=draw, dtype=torch.float64),
        velocity=torch.randn(count, 2, generator=draw, dtype=torch.float64),
        label=torch.randint(len(DETECTION), (count,), generator=draw),
        score=torch.rand(count, generator=draw, dtype=torch.float64),
        attribute=torch.randint(-1, len(ATTRIBUTES), (count,), generator=draw),
    )


def test_detections_come_back_as_they_were_written(tmp_path) -> None:
    boxes = {"a": drawn(5), "b": drawn(0), "c": drawn(3)}
    assert write_detections(tmp_path / "found.json", boxes.items()) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    back = read_detections(tmp_path / "found.json", ["c", "b", "a"])
    assert list(back) == ["a", "b", "c"]
    for token, before in boxes.items():
        after = back[token]
        for name in ("centre", "size", "velocity", "label", "score", "attribute"):
            assert torch.equal(getattr(after, name), getattr(before, name))
        torch.testing.assert_close(wrap_angle(after.yaw - before.yaw), torch.zeros(len(before)).double())
    meta = json.loads((tmp_path / "found.json").read_text())["meta"]
    assert meta == {"use_camera": True, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": False}


def test_a_detection_has_the_official_fields(tmp_path) -> None:
    boxes = Boxes(
        centre=torch.tensor([[1.0, 2, 3]]),
        size=torch.tensor([[4.0, 2, 1.5]]),
        yaw=torch.tensor([math.pi / 2]),
        velocity=torch.tensor([[torch.nan, torch.nan]]),
        label=torch.tensor([DETECTION.index("bus")]),
        score=torch.tensor([0.5]),
    )
    write_detections(tmp_path / "found.json", [("a", boxes)], sensors=("lidar",))
    (record,) = json.loads((tmp_path / "found.json").read_text())["results"]["a"]
    assert record["size"] == [2.0, 4.0, 1.5]
    assert record["rotation"] == pytest.approx([math.sqrt(0.5), 0, 0, math.sqrt(0.5)])
    assert record["velocity"] == [0.0, 0.0]
    assert record["sample_token"] == "a"
    assert record["translation"] == [1.0, 2.0, 3.0]
    assert (record["detection_name"], record["attribute_name"]) == ("bus", "vehicle.stopped")
    assert record["detection_score"] == 0.5


def test_truth_written_as_detections_scores_one(source, tmp_path) -> None:
    frames = [source[i] for i in range(len(source))]
    assert sum(len(frame.boxes) for frame in frames) > 20
    sure = [replace(frame.boxes, score=torch.ones(len(frame.boxes))) for frame in frames]
    pairs = [(f.token, in_world(boxes, f.world_T_ego)) for f, boxes in zip(frames, sure, strict=True)]
    write_detections(tmp_path / "found.json", pairs)
    truth = {each.token: each for each in official_truth(source)}
    assert list(truth) == [frame.token for frame in frames]
    metric = NuScenesScore()
    for token, boxes in read_detections(tmp_path / "found.json", truth).items():
        known = truth[token]
        assert (boxes.centre - known.boxes.centre).abs().max() < 1e-4
        assert wrap_angle(boxes.yaw - known.boxes.yaw).abs().max() < 1e-5
        seen = boxes.select(known.boxes.num_points > 0)
        metric.add(token, seen, known.boxes, known.position, known.racks)
    found = metric.compute()
    there = found.ap[:, 3] > 0
    assert there.sum() >= 3
    torch.testing.assert_close(found.ap[there], torch.ones(int(there.sum()), 4).double())
    assert found.errors[there].nan_to_num().max() < 1e-4


def test_radar_returns_and_bicycle_racks_are_known(source) -> None:
    tables = Path(source.root) / source.version
    labels = json.loads((tables / "sample_annotation.json").read_text())
    categories = json.loads((tables / "category.json").read_text())
    instances = json.loads((tables / "instance.json").read_text())
    rack = next(each["token"] for each in categories if each["name"] == "static_object.bicycle_rack")
    labels[0]["num_radar_pts"] = 1000
    owner = labels[-1]["instance_token"]
    next(each for each in instances if each["token"] == owner)["category_token"] = rack
    before = sum(len(each.boxes) for each in official_truth(source))
    copy = source.root.parent / "changed"
    (copy / source.version).mkdir(parents=True)
    for path in tables.glob("*.json"):
        (copy / source.version / path.name).write_text(path.read_text())
    (copy / source.version / "sample_annotation.json").write_text(json.dumps(labels))
    (copy / source.version / "instance.json").write_text(json.dumps(instances))
    changed = list(official_truth(NuScenes(copy, "all", source.version, cameras=())))
    racks = sum(len(each.racks) for each in changed)
    assert racks == sum(label["instance_token"] == owner for label in labels)
    assert sum(len(each.boxes) for each in changed) == before - racks
    assert max(count for each in changed for count in each.boxes.num_points.tolist()) >= 1000


def good(token: str = "a") -> dict[str, Any]:
    return {
        "sample_token": token,
        "translation": [1.0, 2.0, 3.0],
        "size": [1.0, 2.0, 3.0],
        "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, 0.0],
        "detection_name": "car",
        "detection_score": 0.5,
        "attribute_name": "vehicle.moving",
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"detection_name": "cat"}, "has no 'cat'; it has car"),
        ({"attribute_name": "vehicle.flying"}, "has no 'vehicle.flying'"),
        ({"translation": [math.nan, 0, 0]}, "translation of a box is not finite"),
        ({"velocity": [0, math.inf]}, "velocity of a box is not finite"),
        ({"detection_score": math.nan}, "score of a box is not finite"),
        ({"detection_score": -1.0}, "a score is -1"),
        ({"rotation": [1.0, 1.0, 0, 0]}, "length 1.41421; quaternions"),
        ({"rotation": [0.0, 0, 0, 0]}, "length 0; quaternions"),
        ({"size": [1.0, 0.0, 1.0]}, "sizes are more than 0"),
        ({"size": [1.0, 2.0]}, "not complete"),
        ({"sample_token": "z"}, "says that it is of sample z"),
        ({"translation": "far"}, "not complete or not of numbers"),
    ],
)
def test_a_broken_box_is_refused_with_the_reason_and_its_sample(change: dict, reason: str, tmp_path) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"meta": {}, "results": {"b": [good("b")], "a": [good(), good() | change]}}))
    with pytest.raises(ValueError, match=f"found.json, sample a.*{reason}"):
        read_detections(path, ["a", "b"])


def test_files_that_are_not_of_the_split_or_not_whole_are_refused(tmp_path) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"meta": {}, "results": {"a": [good()], "b": [good("b")] * 501}}))
    with pytest.raises(ValueError, match="sample b has 501 boxes; at most 500"):
        read_detections(path)
    path.write_text(json.dumps({"meta": {}, "results": {"a": [good()]}}))
    with pytest.raises(ValueError, match="sample b is missing, and 1 others"):
        read_detections(path, ["a", "b", "c"])
    with pytest.raises(ValueError, match="sample a is not of this split"):
        read_detections(path, [])
    missing = good()
    del missing["velocity"]
    path.write_text(json.dumps({"meta": {}, "results": {"a": [missing]}}))
    with pytest.raises(ValueError, match=r"sample a: a box is not complete.*velocity"):
        read_detections(path)
    for text in ("{", "[]", '{"meta": {}}', '{"results": []}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="is no detection file"):
            read_detections(path)


def test_what_no_file_may_hold_is_not_written(tmp_path) -> None:
    path, boxes = tmp_path / "found.json", drawn(501)
    for broken, reason in (
        (boxes, "501 boxes"),
        (replace(boxes.select(torch.arange(3)), score=None), "need scores"),
        (replace(boxes, label=boxes.label - 10), "none of 10 classes"),
        (
            replace(boxes.select(torch.arange(3)), yaw=torch.full((3,), torch.nan).double()),
            "rotation of a box is not finite",
        ),
    ):
        with pytest.raises(ValueError, match=f"sample a.*{reason}"):
            write_detections(path, [("a", broken)])
    with pytest.raises(ValueError, match="sample a came twice"):
        write_detections(path, [("a", drawn(1)), ("a", drawn(1))])
    with pytest.raises(ValueError, match="no input is called sonar"):
        write_detections(path, [], sensors=("sonar",))
    assert not path.exists()


def test_kitti_results_come_back_and_score_one(world, folder, tmp_path) -> None:
    tokens = [f"{i:06d}" for i in range(9)]
    for i, token in enumerate(tokens):
        frame = world[i]
        boxes = replace(frame.boxes, score=torch.linspace(0.1, 0.9, len(frame.boxes)))
        with pytest.raises(ValueError, match=f"frame {token}: predicted boxes need scores"):
            write_kitti(tmp_path, token, frame.boxes, kitti_labels(boxes.label, DETECTION), frame.cameras[0])
        write_kitti(tmp_path, token, boxes, kitti_labels(boxes.label, DETECTION), frame.cameras[0])
    found = read_kitti(tmp_path, tokens)
    truth = read_kitti(folder / "kitti" / "training" / "label_2", tokens, scored=False)
    source = Kitti(folder / "kitti", "trainval")
    metric = KittiAP({"Car": 0.7})
    for i, token in enumerate(tokens):
        predicted, true = found[token], truth[token]
        assert predicted.label.tolist() == true.label.tolist()
        assert len(true) == len(source[i].boxes)
        torch.testing.assert_close(predicted.centre, true.centre, atol=1e-4, rtol=0)
        # The camera's axes are turned upright: what is far in ego is far here.
        torch.testing.assert_close(true.centre[:, 0], source[i].boxes.centre[:, 0], atol=2.0, rtol=0)
        metric.add(token, predicted, true)
    seen = metric.compute()
    assert sum(len(boxes) for boxes in truth.values()) > 10
    assert seen.r11[:, 0, 2].min() > 0


def test_broken_kitti_results_are_refused_with_their_file(tmp_path) -> None:
    line = "Car 0.00 0 -1.5 10 20 30 40 1.5 1.6 4.0 1.0 1.7 20.0 -1.6"
    cases = {
        "000001": (line, "has no 000002.txt", ["000001", "000002"]),
        "000003": (f"{line}\n{line} 0.5", "000003.txt.*no score", ["000003"]),
        "000004": (line.replace("Car", "Cat") + " 0.5", "000004.txt, line 1.*is no KITTI label", ["000004"]),
        "000005": (line.replace("20.0", "nan") + " 0.5", "000005.txt: a position is not finite", ["000005"]),
        "000006": (line.replace("Car", "DontCare") + " 0.5", "000006.txt: a box has no class", ["000006"]),
        "000007": (line + " nan", "000007.txt: a score is not finite", ["000007"]),
    }
    for stem, (text, reason, tokens) in cases.items():
        (tmp_path / f"{stem}.txt").write_text(text + (" 0.5" if stem == "000001" else ""))
        with pytest.raises(ValueError, match=reason):
            read_kitti(tmp_path, tokens)
    (tmp_path / "000008.txt").write_text("")
    assert len(read_kitti(tmp_path, ["000008"])["000008"]) == 0
    assert KITTI.names[int(read_kitti(tmp_path, ["000001"])["000001"].label)] == "Car"


def test_point_labels_are_written_as_the_official_readers_want_them(source, tmp_path) -> None:
    frame, token = source[3], lidar_tokens(source)[3]
    label = frame.points.labels.clamp(min=0)
    path = write_lidarseg(tmp_path, "val", token, label)
    # The source's own label file is named after the same scan.
    assert (source.root / "lidarseg" / "v1.0-mini" / path.name).is_file()
    assert path.parent == tmp_path / "lidarseg" / "val"
    assert (read_labels(path, "u1", len(label)) == label.numpy() + 1).all()
    meta = json.loads(write_lidarseg_meta(tmp_path, "val", ("lidar",)).read_text())["meta"]
    assert (meta["use_lidar"], meta["use_camera"]) == (True, False)
    words = torch.arange(len(SEMANTICKITTI)).repeat(3)
    path = write_semantickitti(tmp_path, "08/000012", words)
    assert path == tmp_path / "sequences" / "08" / "predictions" / "000012.label"
    assert torch.equal(read_point_labels(path, len(words), moving=False)[0], words)
    for write, count in (
        (write_semantickitti, len(SEMANTICKITTI)),
        (lambda *a: write_lidarseg(tmp_path, "val", *a[1:]), len(LIDARSEG)),
    ):
        with pytest.raises(ValueError, match=f"frame 08/1 has labels .*one of {count} classes"):
            write(tmp_path, "08/1", torch.tensor([0, UNKNOWN]))


def test_map_rasters_come_back(tmp_path) -> None:
    grid = BoxGrid((-4.0, -3.0, -1.0), (0.5, 0.5, 4.0), (16, 12, 1))
    probability = torch.rand(2, 12, 16, generator=generator("map"))
    raster = MapRaster("abc", probability, ("walkway", "divider"), grid)
    back = read_map(write_map(tmp_path, raster))
    assert (back.token, back.names, back.grid) == ("abc", raster.names, grid)
    torch.testing.assert_close(back.probability, probability, atol=5e-4, rtol=0)
    np.savez(
        tmp_path / "odd.npz",
        probability=np.full((1, 1, 1), 2.0),
        names=["a"],
        lower=[0.0] * 3,
        cell=[1.0] * 3,
        count=[1] * 3,
    )
    with pytest.raises(ValueError, match=r"odd.npz: a probability is not between 0 and 1"):
        read_map(tmp_path / "odd.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(ValueError, match=r"text.npz is no map raster"):
        read_map(tmp_path / "text.npz")
