import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cofield import cli
from cofield.classes import DETECTION, LIDARSEG, MAP_LAYERS, SEMANTICKITTI, UNKNOWN, Classes
from cofield.data import Source, open_source
from cofield.data.export import export
from cofield.data.submission import (
    MapRaster,
    in_world,
    read_map,
    write_detections,
    write_lidarseg,
    write_map,
    write_semantickitti,
)
from cofield.draw import generator
from cofield.frame import Boxes, Frame, Maps
from cofield.grid import BoxGrid
from cofield.models.mapseg import LAYERS
from cofield.train import score_files
from cofield.train.build import build_finetuning
from cofield.train.config import Data, Head, MapTuning, Optim, PointClasses, PointTuning, SegmentTuning
from cofield.train.predict import score, write_predictions
from cofield.train.run import finetune
from cofield.train.score_files import score_file, without_images
from scans import config as segmenting
from scans import few
from streets import GRID, Hand, config, frame

PLAIN = {
    "data": Data(source="world:tiny", batch=1, workers=0, validation=1),
    "model": config().model,
    "optim": Optim(steps=1, precision="32", save_every=1, validate_every=1),
}
FINE = BoxGrid((-4.0, -3.0, -1.0), (0.5, 0.5, 4.0), (16, 12, 1))


@dataclass(frozen=True)
class Street(Hand):
    """Frames by hand that have everything: labelled points, some without a class, a car and a map.

    The map's first layer covers the columns up to 8 in frame 0 and one more in each later one; the others nothing.
    """

    box_classes: Classes | None = DETECTION
    point_classes: Classes | None = LIDARSEG
    grid: BoxGrid = FINE

    def __getitem__(self, index: int) -> Frame:
        made = frame(f"00/{index}" if self.point_classes == SEMANTICKITTI else f"frame {index}")
        assert made.points.labels is not None
        labels = torch.where(torch.arange(len(made.points)) % 7 == 0, UNKNOWN, made.points.labels)
        layers = torch.zeros(6, *self.grid.shape[1:], dtype=torch.bool)
        layers[0, :, : 8 + index] = True
        car = Boxes(
            centre=torch.tensor([[0.0, 0.0, 1.0]]),
            size=torch.tensor([[4.0, 2.0, 1.5]]),
            yaw=torch.zeros(1),
            velocity=torch.zeros(1, 2),
            label=torch.tensor([DETECTION.index("car")]),
        )
        points, maps = replace(made.points, labels=labels), Maps(layers, self.grid)
        return replace(made, points=points, boxes=car, maps=maps)

    def scenes(self) -> list[str]:
        return ["00" if self.point_classes == SEMANTICKITTI else "scene"] * self.frames


@pytest.fixture
def street(monkeypatch: pytest.MonkeyPatch) -> Street:
    """Three frames, which every source name opens."""
    made = Street(3)
    monkeypatch.setattr(score_files, "open_source", lambda *_, **__: made)
    return made


def keyframe(source: Source, index: int) -> tuple[str, Tensor]:
    """A frame's token and the labels of its own sweep's points, where unlabelled ones are called something."""
    seen = source[index]
    assert seen.points.labels is not None
    return seen.token, seen.points.labels[seen.points.age == 0].clamp(min=0)


def written(source: Source, folder: Path) -> Path:
    """The truth as lidarseg files."""
    for index in range(len(source)):
        write_lidarseg(folder, "val", *keyframe(source, index))
    return folder


def mapped(source: Source, folder: Path) -> Path:
    """The truth of the six layers, and half of the car's cells, as rasters."""
    for index in range(len(source)):
        seen = source[index]
        assert seen.maps is not None
        probability = torch.zeros(len(LAYERS), *seen.maps.layers.shape[1:])
        probability[:6] = seen.maps.layers.float()
        probability[LAYERS.index("vehicle"), 4:6, 4:12] = 0.9
        write_map(folder, MapRaster(seen.token, probability, LAYERS, FINE))
    return folder


def ones(scores: dict[str, float]) -> None:
    assert len(scores) > 3
    assert scores == dict.fromkeys(scores, 1.0)


@pytest.mark.parametrize(
    "tuning",
    [
        PointTuning(grid=GRID, **PLAIN),
        PointTuning(grid=GRID, head=PointClasses(classes="semantickitti"), **PLAIN),
        segmenting(few("supervised")),
        segmenting(few("supervised"), head=PointClasses(classes="semantickitti")),
    ],
    ids=["points", "points-semantickitti", "lidarseg", "lidarseg-semantickitti"],
)
def test_label_files_score_what_their_run_does(
    tuning: PointTuning | SegmentTuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Street(3, point_classes=LIDARSEG if tuning.head.classes == LIDARSEG.space else SEMANTICKITTI)
    monkeypatch.setattr(score_files, "open_source", lambda *_, **__: source)
    task = build_finetuning(tuning).eval()
    assert (source[0].points.age > 0).any(), "only the keyframe is written"
    for indices in ([0, 1, 2], [0, 1]):
        with torch.no_grad():
            folder = write_predictions(task, source, indices, "val", tmp_path / str(len(indices)))
        assert score_file(folder, "hand", None, "val", len(indices)) == score(task, source, indices)


def test_rasters_score_what_their_run_does_in_the_half_precision_that_they_hold(
    street: Street, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = MapTuning(grid=GRID, head=Head(width=8, cells=10, cell=0.5), **PLAIN)
    task = build_finetuning(tuning).eval()
    with torch.no_grad():
        folder = write_predictions(task, street, [0, 1, 2], "val", tmp_path)
    exact = task.forward
    monkeypatch.setattr(task, "forward", lambda batch: exact(batch).half().float())
    assert score_file(folder, "hand", None, "val") == score(task, street, [0, 1, 2])


def test_a_run_on_a_world_is_predicted_and_scored_from_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(PointTuning(grid=GRID, **PLAIN), tmp_path / "run", Street(2), Street(1))

    def printed(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, "--frames", "2"])
        assert ended.value.code == 0
        return capsys.readouterr().out

    folder = printed("predict", str(tmp_path / "run"), "--out", str(tmp_path / "out")).split("are ")[1].strip()
    run = json.loads(printed("evaluate", str(tmp_path / "run"), "--json"))
    assert run["miou"] > 0
    assert json.loads(printed("evaluate", "--predictions", folder, "--source", "world:tiny", "--json")) == run


def test_truth_of_the_real_semantickitti_scans_scores_one(realdata: Path, tmp_path: Path) -> None:
    source = open_source("semantickitti", realdata / "semantickitti", "train")
    for index in range(len(source)):
        write_semantickitti(tmp_path, *keyframe(source, index))
    ones(score_file(tmp_path, "semantickitti", realdata / "semantickitti", "train"))


def test_truth_of_the_real_nuscenes_keyframe_scores_one(realdata: Path, tmp_path: Path) -> None:
    """Its points are real, their labels drawn: the sample has none."""
    real, root = realdata / "nuscenes", tmp_path / "nuscenes"
    (root / "v1.0-mini").mkdir(parents=True)
    (root / "lidarseg").mkdir()
    (root / "samples").symlink_to(real / "samples")
    tables = {path.stem: json.loads(path.read_text()) for path in (real / "v1.0-mini").glob("*.json")}
    (lidar,) = (each["token"] for each in tables["sample_data"] if "LIDAR_TOP" in each["filename"])
    tables["category"] = [row | {"index": index} for index, row in enumerate(tables["category"])]
    tables["lidarseg"] = [{"token": lidar, "sample_data_token": lidar, "filename": "lidarseg/drawn.bin"}]
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
    drawn = torch.randint(len(tables["category"]), (34688,), generator=generator("labels"))
    drawn.byte().numpy().tofile(root / "lidarseg" / "drawn.bin")
    source = open_source("nuscenes", root, "train")
    labels = keyframe(source, 0)[1]
    out = write_lidarseg(tmp_path / "out", "train", lidar, labels).parents[2]
    ones(score_file(out, "nuscenes", root, "train"))
    wrong = torch.where(labels == LIDARSEG.index("car"), LIDARSEG.index("truck"), labels)
    write_lidarseg(out, "train", lidar, wrong)
    assert score_file(out, "nuscenes", root, "train")["car"] == 0


def test_maps_score_the_share_of_cells_that_are_right(street: Street, tmp_path: Path) -> None:
    # Of the car's 4 × 2 metres, 8 × 4 cells, half is found; the layer has 8, 9 and 10 columns.
    assert score_file(mapped(street, tmp_path), "hand", None, "val") == {
        "drivable_area": 1.0,
        "vehicle": 0.5,
        "miou": 0.75,
    }
    raster = read_map(tmp_path / "frame 0.npz")
    for token in ("frame 1", "frame 2"):
        write_map(tmp_path, replace(raster, token=token))
    scores = score_file(tmp_path, "hand", None, "val")
    assert scores["drivable_area"] == pytest.approx(24 / 27)


def test_maps_may_be_smaller_than_the_source_s_and_have_fewer_layers(street: Street, tmp_path: Path) -> None:
    inner = BoxGrid((-2.0, -2.0, 0.0), (0.5, 0.5, 1.0), (8, 8, 1))
    for index in range(3):
        covered = torch.zeros(1, 8, 8)
        covered[:, :, : 4 + index] = 1.0
        write_map(tmp_path, MapRaster(f"frame {index}", covered, ("drivable_area",), inner))
    assert score_file(tmp_path, "hand", None, "val") == {"drivable_area": 1.0, "miou": 1.0}


@pytest.fixture(scope="module")
def nuscenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("score") / "nuscenes"
    export(open_source("world:tiny", split="val"), "nuscenes", root, 2)
    return root


def test_a_nuscenes_map_is_drawn_on_the_raster_of_the_files_wherever_its_zero_is(
    nuscenes: Path, tmp_path: Path
) -> None:
    grid = BoxGrid((-16.0, -12.0, -1.0), (0.8, 0.8, 4.0), (40, 30, 1), origin_ego=(3.7, -1.3, 1.8))
    source = open_source("nuscenes", nuscenes, "val", map_grid=grid)
    for index in range(len(source)):
        seen = source[index]
        assert seen.maps is not None
        write_map(tmp_path, MapRaster(seen.token, seen.maps.layers.float(), MAP_LAYERS.names, grid))
    scores = score_file(tmp_path, "nuscenes", nuscenes, "val")
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0), abs=1e-3)


def test_boxes_of_some_frames_are_scored_against_those_frames(nuscenes: Path, tmp_path: Path) -> None:
    seen = open_source("nuscenes", nuscenes, "val")[0]
    assert seen.boxes is not None
    assert seen.boxes.num_points is not None
    boxes = in_world(seen.boxes.select(seen.boxes.num_points > 0), seen.world_T_ego)
    path = tmp_path / "found.json"
    write_detections(path, [(seen.token, replace(boxes, score=torch.ones(len(boxes)).double()))])
    scores = score_file(path, "nuscenes", nuscenes, "val", 1)
    assert max(value for name, value in scores.items() if name.startswith("ap.")) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"sample .* is missing"):
        score_file(path, "nuscenes", nuscenes, "val")


def test_too_few_and_too_many_frames_are_refused(street: Street, tmp_path: Path) -> None:
    points, maps = written(street, tmp_path / "points"), mapped(street, tmp_path / "maps")
    for folder in (points, maps):
        with pytest.raises(ValueError, match=r"3 files .* for the 2 frames of hand .* scored with --frames N"):
            score_file(folder, "hand", None, "val", 2)
    with pytest.raises(ValueError, match=r"lidarseg/train: there are 0 files \*.bin for the 3 frames"):
        score_file(points, "hand", None, "train")
    last = points / "lidarseg" / "val" / "frame 2_lidarseg.bin"
    last.rename(last.with_name("other_lidarseg.bin"))
    (maps / "frame 2.npz").rename(maps / "other.npz")
    with pytest.raises(ValueError, match=r"val has no frame 2_lidarseg.bin; every frame that is scored"):
        score_file(points, "hand", None, "val")
    with pytest.raises(ValueError, match=r"maps has no frame 2.npz; every frame that is scored"):
        score_file(maps, "hand", None, "val")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda labels: labels[:-1], "holds .* labels for a scan of .* points"),
        (lambda labels: np.where(labels == labels[3], 0, labels), r"has the label 0; .* refuses all else, 0 \(noise\)"),
        (lambda labels: np.where(labels == labels[3], 17, labels), "has the label 17; predictions count 16 classes"),
    ],
)
def test_a_broken_lidarseg_file_is_refused_by_name(
    change: Callable[[np.ndarray], np.ndarray], reason: str, street: Street, tmp_path: Path
) -> None:
    path = written(street, tmp_path) / "lidarseg" / "val" / "frame 1_lidarseg.bin"
    change(np.fromfile(path, np.uint8)).astype(np.uint8).tofile(path)
    with pytest.raises(ValueError, match=f"frame 1_lidarseg.bin.* {reason}"):
        score_file(tmp_path, "hand", None, "val")


def test_a_broken_semantickitti_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Street(1, point_classes=SEMANTICKITTI)
    monkeypatch.setattr(score_files, "open_source", lambda *_, **__: source)
    path = write_semantickitti(tmp_path, *keyframe(source, 0))
    words = np.fromfile(path, np.uint32)
    # An instance in the upper half and a moving car are as good as a car.
    cars = np.where(words == 10, 252 + (7 << 16), words).astype(np.uint32)
    for changed, reason in (
        (cars, None),
        (words[:-1], "holds .* labels for a scan of .* points"),
        (np.append(words[:-1], np.uint32(0)), "has the label 0, which is none of the 19 classes"),
        (np.append(words[:-1], np.uint32(99)), "has the label 99"),
    ):
        changed.tofile(path)
        if reason is None:
            ones(score_file(tmp_path, "hand", None, "val"))
            continue
        with pytest.raises(ValueError, match=f"0.label.* {reason}"):
            score_file(tmp_path, "hand", None, "val")


def test_rasters_of_other_cells_or_layers_are_refused(street: Street, tmp_path: Path) -> None:
    folder = mapped(street, tmp_path)
    last = read_map(folder / "frame 2.npz")
    moved = replace(last.grid, lower=(-3.5, -3.0, -1.0))
    fewer = MapRaster("frame 2", last.probability[:6], MAP_LAYERS.names, last.grid)
    for other in (replace(last, grid=moved), fewer):
        write_map(folder, other)
        with pytest.raises(ValueError, match=r"frame 2 has .*, and frame 0 has .*; all frames have the same"):
            score_file(folder, "hand", None, "val")
    for grid in (moved, replace(last.grid, lower=(-8.0, -6.0, -1.0), cell=(1.0, 1.0, 4.0))):
        for index in range(3):
            write_map(folder, replace(last, token=f"frame {index}", grid=grid))
        with pytest.raises(ValueError, match="their cells do not lie on each other"):
            score_file(folder, "hand", None, "val")
    for index in range(3):
        write_map(folder, MapRaster(f"frame {index}", last.probability[:1], ("sky",), last.grid))
    with pytest.raises(ValueError, match="no layer is called sky; there is drivable_area"):
        score_file(folder, "hand", None, "val")
    write_map(folder, replace(last, probability=last.probability[:, :-1]))
    with pytest.raises(ValueError, match=r"frame 2.npz: the probabilities are \[8, 11, 16\], .* ask for \[8, 12, 16\]"):
        read_map(folder / "frame 2.npz")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Street(3, point_classes=None), "holds labels of nuscenes-lidarseg, and the points of hand have none"),
        (Street(3, point_classes=SEMANTICKITTI), "have those of semantickitti"),
    ],
)
def test_labels_without_truth_of_their_classes_are_refused(
    source: Street, reason: str, street: Street, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(street, tmp_path)
    monkeypatch.setattr(score_files, "open_source", lambda *_, **__: source)
    with pytest.raises(ValueError, match=reason):
        score_file(folder, "hand", None, "val")


class Bare(Street):
    """No point has a class, and there is no map."""

    def __getitem__(self, index: int) -> Frame:
        made = super().__getitem__(index)
        labels = torch.full((len(made.points),), UNKNOWN)
        return replace(made, points=replace(made.points, labels=labels), maps=None)


def test_frames_without_any_truth_are_refused(street: Street, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points, maps = written(street, tmp_path / "points"), mapped(street, tmp_path / "maps")
    monkeypatch.setattr(score_files, "open_source", lambda *_, **__: Bare(3))
    with pytest.raises(ValueError, match="no point of these 3 frames of hand has a label"):
        score_file(points, "hand", None, "val")
    with pytest.raises(ValueError, match="hand has no map to score against"):
        score_file(maps, "hand", None, "val")


def test_what_a_path_holds_is_told_by_its_layout(street: Street, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere"):
        score_file(tmp_path / "nowhere", "hand", None, "val")
    with pytest.raises(ValueError, match=r"taken for KITTI's texts, which are scored against kitti and not hand"):
        score_file(tmp_path, "hand", None, "val")
    written(street, tmp_path)
    (tmp_path / "sequences").mkdir()
    with pytest.raises(ValueError, match="holds lidarseg and semantickitti; each is scored from a folder of its own"):
        score_file(tmp_path, "hand", None, "val")
    with pytest.raises(ValueError, match=r"_lidarseg.bin is no detection file"):
        score_file(tmp_path / "lidarseg" / "val" / "frame 0_lidarseg.bin", "hand", None, "val")


def test_a_world_without_its_images_has_the_same_points_boxes_and_map() -> None:
    source = open_source("world:tiny+beams=4", split="val")
    whole, plain = source[3], without_images(source)[3]
    assert (len(whole.cameras), len(plain.cameras), len(without_images(source))) == (4, 0, len(source))
    assert torch.equal(plain.points.xyz_ego, whole.points.xyz_ego)
    assert plain.points.labels is not None
    assert whole.points.labels is not None
    assert torch.equal(plain.points.labels, whole.points.labels)
    assert plain.boxes is not None
    assert whole.boxes is not None
    assert torch.equal(plain.boxes.centre, whole.boxes.centre)
    assert plain.maps is not None
    assert whole.maps is not None
    assert torch.equal(plain.maps.layers, whole.maps.layers)


def test_what_is_only_for_runs_is_refused_for_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--skip-broken"], ["--results", str(tmp_path / "results.json")]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["evaluate", "--predictions", str(tmp_path), "--source", "world:tiny", *flags])
        assert ended.value.code == 2
        assert "are for runs" in capsys.readouterr().err
