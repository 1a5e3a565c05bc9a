from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cofield.data import open_source
from cofield.data.kitti_tracking import VAL
from cofield.data.submission import read_kitti
from cofield.grid import BoxGrid
from cofield.train.build import build_finetuning
from cofield.train.config import BoxHead, BoxTuning, Data, Model
from cofield.train.predict import write_predictions
from cofield.train.score_files import score_file, score_kitti

CALIBRATION = "P2: 60 0 60 0 0 60 18 0 0 0 1 0\nR_rect 1 0 0 0 1 0 0 0 1\nTr_velo_cam 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
# Of each frame, the labels as the object benchmark would have them; here a sitting person is a Person.
LABELS = {
    0: [
        "Car 0 0 -1.2 10 2 30 66 1.5 1.6 4.0 2.0 1.7 20.0 -1.57",
        "Pedestrian 0 1 0.3 40 2 50 66 1.8 0.6 0.8 -3.0 1.7 9.0 0.3",
        "DontCare -1 -1 -10 5 6 7 8 -1 -1 -1 -1000 -1000 -1000 -10",
    ],
    2: ["Car 1 0 -1.2 10 2 30 66 1.5 1.6 4.0 2.0 1.7 18.0 -1.57", "Cyclist 0 0 0 60 2 80 64 1.7 0.6 1.8 1 1.7 12 0.1"],
    3: ["Person_sitting 0 0 0.3 10 2 20 66 1.2 0.6 0.8 -3.0 1.7 9.0 0.3"],
}
FOUND = {
    0: ["Car 0 0 -1.2 10 2 30 66 1.5 1.6 4.0 2.1 1.7 20.0 -1.57 0.9", "Car 0 0 0 1 2 9 66 1.5 1.6 4 -5 1.7 20 0 0.3"],
    2: ["Cyclist 0 0 0 60 2 80 64 1.7 0.6 1.8 1 1.7 12 0.1 0.8", "Car 0 0 0 9 2 30 66 1.5 1.6 4 2 1.7 18 -1.57 0.7"],
    3: [],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A held-out sequence of three frames, and one to train on."""
    folder = tmp_path / "training"
    for sequence in (f"{VAL[0]:04d}", "0000"):
        for name in ("calib", "label_02", f"velodyne/{sequence}", f"image_02/{sequence}"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / f"calib/{sequence}.txt").write_text(CALIBRATION)
        lines = [f"{number} {track} {line}\n" for number, rows in LABELS.items() for track, line in enumerate(rows)]
        text = "".join(lines).replace("Person_sitting", "Person")
        (folder / f"label_02/{sequence}.txt").write_text(text)
        for number in LABELS:
            points = np.array([[10, 1, -1, 0.5], [18, -2, -1, 0.2], [-5, 0, -1, 0.1]], np.float32)
            points.tofile(folder / f"velodyne/{sequence}/{number:06d}.bin")
            Image.new("RGB", (120, 70)).save(folder / f"image_02/{sequence}/{number:06d}.png")
    return tmp_path


def write(folder: Path, texts: dict[int, list[str]]) -> Path:
    for number, lines in texts.items():
        path = folder / f"{VAL[0]:04d}" / f"{number:06d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_frames_of_tracking_sequences_score_as_frames_of_the_object_benchmark(root: Path, tmp_path: Path) -> None:
    found, labels = write(tmp_path / "found", FOUND), write(tmp_path / "labels", LABELS)
    tokens = [f"{VAL[0]:04d}/{number:06d}" for number in LABELS]
    expected = score_kitti(read_kitti(found, tokens), read_kitti(labels, tokens, scored=False))
    assert expected["space.Car.easy.r11"] > 0, "a car was found"
    assert expected["space.Cyclist.easy.r11"] > 0
    assert score_file(found, "kitti", root, "val") == pytest.approx(expected, nan_ok=True)
    first = score_kitti(read_kitti(found, tokens[:1]), read_kitti(labels, tokens[:1], scored=False))
    assert first["space.Cyclist.easy.r11"] != expected["space.Cyclist.easy.r11"], "the cyclist comes later"
    for token in tokens[1:]:
        (found / token).with_suffix(".txt").unlink()
    assert score_file(found, "kitti", root, "val", 1) == pytest.approx(first, nan_ok=True)


def test_predictions_of_a_sequence_are_a_text_a_frame_that_is_read_again(root: Path, tmp_path: Path) -> None:
    grid = BoxGrid(lower=(0.0, -10.0, -2.0), cell=(1.0, 1.0, 5.0), count=(24, 20, 1))
    head = BoxHead(width=8, bev_width=8, bev_depth=1, bev_out=8, classes="kitti")
    small = Model(width=8, lidar_width=16, camera="none")
    task = build_finetuning(BoxTuning(grid=grid, data=Data("kitti", str(root)), model=small, head=head)).eval()
    source = open_source("kitti", root, "val")
    with torch.no_grad():
        folder = write_predictions(task, source, [0, 1, 2], "val", tmp_path / "out")
    assert sorted(path.name for path in (folder / "0001").glob("*.txt")) == ["000000.txt", "000002.txt", "000003.txt"]
    assert "space.Car.easy.r40" in score_file(folder, "kitti", root, "val")
    (folder / "0001" / "000002.txt").unlink()
    with pytest.raises(ValueError, match=r"has no 000002\.txt; every frame of the split needs a file"):
        score_file(folder, "kitti", root, "val")


def test_a_split_without_labels_is_refused(root: Path, tmp_path: Path) -> None:
    (root / "training").rename(root / "testing")
    folder = write(tmp_path / "found", FOUND)
    (folder / "0001").rename(folder / "0000")
    write(folder, FOUND)
    with pytest.raises(ValueError, match=r"split 'test' of .* has no labels"):
        score_file(folder, "kitti", root, "test")
