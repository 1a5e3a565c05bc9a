import shutil

import pytest
import torch

from cofield.classes import KITTI, UNKNOWN
from cofield.data.files import read_points
from cofield.data.kitti import LIDAR_HEIGHT, Kitti, read_boxes, read_calibration, rectified_T_ego
from cofield.geometry import inverse, project, transform

# Camera axes turned to x forward, y left, z up without any tilt.
LEVEL_T_CAM = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)


def in_image(camera, xyz_ego):
    uv, depth = project(camera.pix_T_ego, xyz_ego)
    height, width = camera.image.shape[-2:]
    return (depth > 0) & (uv >= 0).all(-1) & (uv < uv.new_tensor([width, height])).all(-1)


def names(boxes):
    return ["DontCare" if label == UNKNOWN else KITTI.names[label] for label in boxes.label.tolist()]


def test_real_frames_have_the_known_points_images_and_points_in_view(realdata):
    frames = list(Kitti(realdata / "kitti", "trainval"))
    assert [frame.token for frame in frames] == ["000000", "000001", "000002"]
    assert [len(frame.points) for frame in frames] == [115384, 120268, 126891]
    assert [tuple(f.cameras[0].image.shape[1:]) for f in frames] == [(370, 1224), (375, 1242), (375, 1242)]
    seen = [int(in_image(frame.cameras[0], frame.points.xyz_ego).sum()) for frame in frames]
    assert seen == [20285, 18630, 20210]
    assert all(frame.points.intensity.max() <= 1 for frame in frames)


def test_real_boxes_hold_the_known_points_in_the_camera_frame(realdata):
    held = {}
    for token in ("000000", "000001", "000002"):
        folder = realdata / "kitti" / "training"
        boxes = read_boxes(folder / "label_2" / f"{token}.txt", LEVEL_T_CAM)
        xyz_lidar = torch.from_numpy(read_points(folder / "velodyne" / f"{token}.bin", 4)[:, :3]).double()
        xyz_ego = xyz_lidar + torch.tensor([0, 0, LIDAR_HEIGHT], dtype=torch.float64)
        calibration = read_calibration(folder / "calib" / f"{token}.txt")
        xyz_level = transform(LEVEL_T_CAM @ rectified_T_ego(calibration), xyz_ego).float()
        held[token] = dict(zip(names(boxes), boxes.contains(xyz_level).sum(1).tolist(), strict=True))
        held[token].pop("DontCare", None)
    assert held == {
        "000000": {"Pedestrian": 376},
        "000001": {"Truck": 70, "Car": 9, "Cyclist": 18},
        "000002": {"Misc": 1351, "Car": 67},
    }


def test_real_boxes_upright_in_the_ego_frame_hold_nearly_the_same_points(realdata):
    frame = Kitti(realdata / "kitti", "trainval")[2]
    held = dict(zip(names(frame.boxes), frame.boxes.contains(frame.points.xyz_ego).sum(1).tolist(), strict=True))
    assert held == {"Misc": pytest.approx(1351, rel=0.01), "Car": pytest.approx(67, abs=1)}
    # The road is at height zero: so is the bottom of a car.
    assert (frame.boxes.centre[:, 2] - frame.boxes.size[:, 2] / 2).abs().max() < 0.6


def test_a_sequence_has_one_scene_and_ten_frames_a_second(realdata):
    source = Kitti(realdata / "kitti" / "sequence", "train", sequence=True)
    assert len(source) == 8
    assert set(source.scenes()) == {"sequence"}
    assert source[3].time == pytest.approx(0.3)
    assert source[-1].time == pytest.approx(0.7)
    assert source[3].boxes is None


def small_root(tmp_path, label="Car 0.10 1 -1.2 10 20 30 40 1.5 1.6 4.0 2.0 1.7 20.0 -1.57\n"):
    """One frame with a tilted LiDAR and two unequal cameras."""
    from PIL import Image

    for name in ("velodyne", "calib", "label_2", "image_2", "image_3"):
        (tmp_path / "training" / name).mkdir(parents=True)
    folder = tmp_path / "training"
    torch.tensor([[10.0, 1, -1, 0.5], [20, -2, 0, 0.25]]).numpy().tofile(folder / "velodyne/000007.bin")
    lines = [
        "P2: 700 0 600 45 0 710 170 -0.3 0 0 1 0.005",
        "P3: 700 0 600 -340 0 710 170 2.2 0 0 1 0.003",
        "R0_rect: 1 0 0 0 1 0 0 0 1",
        "Tr_velo_to_cam: 0 -1 0 0.01 0 0 -1 -0.08 1 0 0 -0.27",
        "",
    ]
    (folder / "calib/000007.txt").write_text("\n".join(lines))
    (folder / "label_2/000007.txt").write_text(label)
    for name in ("image_2", "image_3"):
        Image.new("RGB", (120, 37), (10, 20, 30)).save(folder / name / "000007.png")
    return tmp_path


def test_both_cameras_project_as_their_matrices_say(tmp_path):
    source = Kitti(small_root(tmp_path), "trainval", cameras=("image_3", "image_2"))
    frame = source[0]
    # Camera z is LiDAR x, camera x is minus LiDAR y, camera y is minus LiDAR z.
    x, y, z = -1 + 0.01, 1 - 0.08, 10 - 0.27
    for camera, shift in zip(frame.cameras, ((-340, 2.2, 0.003), (45, -0.3, 0.005)), strict=True):
        uv, depth = project(camera.pix_T_ego, frame.points.xyz_ego[:1])
        w = z + shift[2]
        expected = [(700 * x + 600 * z + shift[0]) / w, (710 * y + 170 * z + shift[1]) / w]
        assert uv[0].tolist() == pytest.approx(expected, abs=1e-3)
        assert float(depth) == pytest.approx(w, abs=1e-5)
    # Moving by P3's offset: the right camera is left of the point by the base line.
    assert frame.cameras[0].cam_T_ego[0, 3] < frame.cameras[1].cam_T_ego[0, 3]


def test_a_label_becomes_an_upright_box_about_its_centre(tmp_path):
    boxes = Kitti(small_root(tmp_path), "trainval")[0].boxes
    # Heading -π/2 in the camera is along its z axis: ego x. The centre is half a height above the bottom.
    assert boxes.yaw.tolist() == pytest.approx([0.0], abs=1e-3)
    assert boxes.centre[0].tolist() == pytest.approx([20.27, -1.99, -1.7 + 0.75 - 0.08 + LIDAR_HEIGHT], abs=1e-5)
    assert boxes.size[0].tolist() == pytest.approx([4.0, 1.6, 1.5])
    assert boxes.box2d[0].tolist() == [10, 20, 30, 40]
    assert (float(boxes.truncation), int(boxes.occlusion)) == (pytest.approx(0.1), 1)


def test_a_dont_care_region_keeps_only_its_rectangle(tmp_path):
    line = "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10\n"
    boxes = Kitti(small_root(tmp_path, line), "trainval")[0].boxes
    assert boxes.label.tolist() == [UNKNOWN]
    assert boxes.centre.isnan().all()
    assert boxes.box2d[0, 0] == pytest.approx(503.89)
    assert not boxes.contains(torch.zeros(1, 3)).any()


def test_an_empty_label_file_is_a_frame_without_boxes(tmp_path):
    assert len(Kitti(small_root(tmp_path, ""), "trainval")[0].boxes) == 0


def test_images_can_be_read_smaller(tmp_path):
    source = Kitti(small_root(tmp_path), "trainval", scale=0.5)
    camera, full = source[0].cameras[0], Kitti(tmp_path, "trainval")[0].cameras[0]
    assert camera.image.shape == (3, 18, 60)
    assert camera.pix_T_cam[0, 0] == full.pix_T_cam[0, 0] / 2
    assert camera.pix_T_cam[1, 1] == pytest.approx(float(full.pix_T_cam[1, 1]) * 18 / 37)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("velodyne/000007.bin", r"000007\.bin is missing"),
        ("image_2/000007.png", r"000007\.png is missing"),
        ("calib/000007.txt", r"calib/000007\.txt is missing"),
        ("label_2/000007.txt", r"label_2/000007\.txt is missing"),
    ],
)
def test_a_missing_file_is_named(tmp_path, broken, message):
    source = Kitti(small_root(tmp_path), "trainval")
    assert len(source) == 1
    (tmp_path / "training" / broken).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        source[0]


def test_a_broken_label_or_calibration_names_file_and_line(tmp_path):
    source = Kitti(small_root(tmp_path, "Car 0 0\n"), "trainval")
    with pytest.raises(ValueError, match=r"000007\.txt, line 1: 'Car 0 0' is no KITTI label"):
        source[0]
    (tmp_path / "training/calib/000007.txt").write_text("P2: 1 2 x\n")
    with pytest.raises(ValueError, match=r"calib/000007\.txt, line 1: could not convert"):
        source[0]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("Tr_velo_to_cam", "Tr_cam_to_road", r"000007\.txt has no Tr_velo_to_cam or Tr \(it has P2, P3"),
        ("P2:", "P1:", r"000007\.txt has no P2; fetch the file again, or leave out image_2"),
        ("0 -1 0 0.01", "0 -9 0 0.01", r"000007\.txt: no rotation: .*; fetch the file again"),
    ],
)
def test_a_calibration_that_lacks_something_is_named(tmp_path, before, after, message):
    path = small_root(tmp_path) / "training/calib/000007.txt"
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(ValueError, match=message):
        Kitti(tmp_path, "trainval")[0]


def test_a_wrong_root_and_a_missing_split_say_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"velodyne is missing; the root of KITTI holds"):
        Kitti(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train\.txt is missing.*trainval and test"):
        len(Kitti(small_root(tmp_path), "train"))


def test_a_test_split_has_no_labels(tmp_path):
    shutil.move(small_root(tmp_path) / "training", tmp_path / "testing")
    shutil.rmtree(tmp_path / "testing/label_2")
    source = Kitti(tmp_path, "test")
    assert len(source) == 1
    assert source[0].boxes is None


def test_ego_from_camera_and_back_is_rigid(realdata):
    calibration = read_calibration(realdata / "kitti/training/calib/000000.txt")
    cam0_T_ego = rectified_T_ego(calibration)
    assert torch.allclose(inverse(cam0_T_ego) @ cam0_T_ego, torch.eye(4, dtype=torch.float64), atol=1e-12)
