import math

import numpy as np
import pytest
import torch

from cofield.classes import KITTI, UNKNOWN
from cofield.data.folders import lost_files, open_folder
from cofield.data.kitti import LIDAR_HEIGHT
from cofield.data.kitti_tracking import EARTH, KittiTracking, read_poses

CALIBRATION = """P2: 700 0 600 45 0 710 170 -0.3 0 0 1 0.005
R_rect 1 0 0 0 1 0 0 0 1
Tr_velo_cam 0 -1 0 0.01 0 0 -1 -0.08 1 0 0 -0.27
Tr_imu_velo 1 0 0 -0.8 0 1 0 0.3 0 0 1 -0.8
"""
LABELS = """0 -1 DontCare -1 -1 -10 5 6 7 8 -1000 -1000 -1000 -10 -1 -1 -1
0 4 Car 0 1 -1.2 10 20 30 40 1.5 1.6 4.0 2.0 1.7 20.0 -1.57
2 4 Car 0 1 -1.2 10 20 30 40 1.5 1.6 4.0 2.0 1.7 18.0 -1.57
2 7 Person 0 0 0.3 10 20 30 40 1.2 0.6 0.8 -3.0 1.7 9.0 0.3
"""


def navigation(frames: int) -> np.ndarray:
    """Lines of a car that drives north-east, a metre a frame, and turns left."""
    rows = np.zeros((frames, 30))
    step = np.arange(frames) / math.sqrt(2)
    rows[:, 0] = 49.0 + np.rad2deg(step / EARTH)
    rows[:, 1] = 8.0 + np.rad2deg(step / (EARTH * math.cos(math.radians(49.0))))
    rows[:, 2], rows[:, 5] = 115.0, math.pi / 4 + 0.1 * np.arange(frames)
    return rows


@pytest.fixture
def root(tmp_path):
    """Two sequences; scan 1 of the first is missing, as some of the benchmark are."""
    from PIL import Image

    folder = tmp_path / "training"
    for name in ("calib", "label_02", "oxts"):
        (folder / name).mkdir(parents=True)
    for sequence, frames in (("0000", (0, 2, 3)), ("0001", (0,))):
        for name in ("velodyne", "image_02"):
            (folder / name / sequence).mkdir(parents=True)
        (folder / f"calib/{sequence}.txt").write_text(CALIBRATION)
        (folder / f"label_02/{sequence}.txt").write_text(LABELS)
        np.savetxt(folder / f"oxts/{sequence}.txt", navigation(4))
        for frame in frames:
            np.array([[10, 1, -1, 0.5]], np.float32).tofile(folder / f"velodyne/{sequence}/{frame:06d}.bin")
            Image.new("RGB", (120, 37)).save(folder / f"image_02/{sequence}/{frame:06d}.png")
    return tmp_path


def test_frames_are_found_by_name_and_posed_by_number(root):
    source = KittiTracking(root)
    frames = list(source)
    assert [frame.token for frame in frames] == ["0000/000000", "0000/000002", "0000/000003"]
    assert source.scenes() == ["0000"] * 3
    assert [frame.time for frame in frames] == pytest.approx([0.0, 0.2, 0.3])
    assert len(KittiTracking(root, "val")) == 1
    assert len(KittiTracking(root, "trainval")) == 4
    assert KittiTracking(root, "1").scenes() == ["0001"]


def test_the_world_is_the_first_frame_and_the_car_moves_as_its_navigation_says(root):
    frames = list(KittiTracking(root))
    assert torch.allclose(frames[0].world_T_ego, torch.eye(4, dtype=torch.float64), atol=1e-12)
    # The unit sits 0.8 m behind and 0.3 m left of the LiDAR's axis; it moves 2 m ahead, and the car turns by 0.2.
    here = frames[1].world_T_ego
    unit = torch.tensor([-0.8, 0.3, LIDAR_HEIGHT - 0.8, 1.0], dtype=torch.float64)
    assert (here @ unit - unit)[:3].tolist() == pytest.approx([2.0, 0.0, 0.0], abs=1e-4)
    assert math.atan2(here[1, 0], here[0, 0]) == pytest.approx(0.2)


def test_axes_of_the_navigation_unit_are_ahead_left_and_up(tmp_path):
    rows = np.zeros((3, 30))
    rows[:, 3:6] = [[0, 0, math.pi / 2], [0, 0.1, 0], [0.1, 0, 0]]
    np.savetxt(tmp_path / "a.txt", rows)
    turned, nose_down, left_up = read_poses(tmp_path / "a.txt")[:, :3, :3]
    assert turned[:, 0].tolist() == pytest.approx([0, 1, 0], abs=1e-9)  # facing north
    assert nose_down[2, 0] == pytest.approx(-math.sin(0.1))
    assert left_up[2, 1] == pytest.approx(math.sin(0.1))


def test_labels_belong_to_their_frame_and_carry_their_track(root):
    first, third, last = (frame.boxes for frame in KittiTracking(root))
    assert first.label.tolist() == [UNKNOWN, KITTI.index("Car")]
    assert third.label.tolist() == [KITTI.index("Car"), KITTI.index("Person_sitting")]
    assert (first.track.tolist(), third.track.tolist()) == ([-1, 4], [4, 7])
    assert len(last) == 0
    assert first.centre[1].tolist() == pytest.approx([20.27, -1.99, -1.7 + 0.75 - 0.08 + LIDAR_HEIGHT], abs=1e-5)


def test_a_folder_of_sequences_is_known_by_its_layout(root):
    source = open_folder("kitti", root, "all")
    assert isinstance(source, KittiTracking)
    assert len(source) == 4
    assert source[0].cameras[0].image.shape == (3, 37, 120)
    assert lost_files(source) == {}
    (root / "training/image_02/0000/000002.png").unlink()
    assert lost_files(source) == {root / "training/image_02/0000/000002.png": [1]}


def test_without_navigation_or_labels_there_are_none(root):
    (root / "training/oxts/0000.txt").unlink()
    assert torch.equal(KittiTracking(root)[2].world_T_ego, torch.eye(4, dtype=torch.float64))
    (root / "training").rename(root / "testing")
    source = KittiTracking(root, "test")
    assert len(source) == 4
    assert source[0].boxes is None


def test_what_is_broken_is_named(root):
    folder = root / "training"
    np.savetxt(folder / "oxts/0000.txt", navigation(2))
    with pytest.raises(ValueError, match=r"oxts/0000\.txt has 2 lines but there is a frame 000003"):
        KittiTracking(root)[2]
    (folder / "oxts/0000.txt").write_text("1 2 x\n")
    with pytest.raises(ValueError, match=r"oxts/0000\.txt is no table of numbers"):
        KittiTracking(root)[0]
    (folder / "oxts/0000.txt").write_text("1 2 3\n")
    with pytest.raises(ValueError, match=r"oxts/0000\.txt has lines without six finite numbers"):
        KittiTracking(root)[0]
    for line in ("0 1 Car 0 0", "x 1 Car", "0 1", LABELS.splitlines()[1].replace("20.0", "far")):
        (folder / "label_02/0000.txt").write_text(line + "\n")
        with pytest.raises(ValueError, match=r"label_02/0000\.txt, line 1: .* is no KITTI label"):
            KittiTracking(root)[0]
    with pytest.raises(FileNotFoundError, match=r"velodyne has no scans of split '5'"):
        KittiTracking(root, "5")
    with pytest.raises(ValueError, match="split is one of train, val"):
        KittiTracking(root, "validation")
