import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cofield.classes import COUNTERPARTS, DETECTION, KITTI, LIDARSEG, SEMANTICKITTI, UNKNOWN
from cofield.data.export import export, scene_splits
from cofield.data.kitti import Kitti
from cofield.data.semantickitti import SemanticKitti
from cofield.data.simulate import World
from cofield.geometry import project


@pytest.fixture(scope="module")
def world() -> World:
    world = World("tiny")
    # KITTI's LiDAR is 1.73 m above the road and in the middle of ego.
    return World("tiny", rig=replace(world.rig, lidar=(0.0, 0.0, 1.73), beams=8, azimuths=120, sweeps=2))


@pytest.fixture(scope="module")
def kitti(world, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("kitti")
    assert export(world, "kitti", root, 9) == 9
    return root


@pytest.fixture(scope="module")
def sequences(world, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("semantickitti")
    export(world, "semantickitti", root, 9)
    return root


def test_kitti_points_images_and_calibration_come_back(world, kitti):
    source = Kitti(kitti, "trainval")
    assert len(source) == 9
    # The world's other cameras look elsewhere, which KITTI's stereo pair cannot say.
    assert not (kitti / "training" / "image_3").exists()
    for index in (0, 8):
        before, after = world[index], source[index]
        key = before.points.age == 0
        assert torch.allclose(after.points.xyz_ego, before.points.xyz_ego[key], atol=1e-5)
        assert torch.allclose(after.points.intensity, before.points.intensity[key])
        assert torch.allclose(after.origins_ego, before.origins_ego[:1], atol=1e-5)
        camera, other = before.cameras[0], after.cameras[0]
        assert torch.allclose(camera.cam_T_ego, other.cam_T_ego, atol=1e-5)
        assert torch.allclose(camera.pix_T_cam, other.pix_T_cam, atol=1e-3)
        assert (camera.image - other.image).abs().max() <= 0.5 / 255 + 1e-6


def test_a_stereo_pair_keeps_both_its_cameras(world, tmp_path):
    left = world.rig.cameras[0]
    moved = left.cam_T_ego.clone()
    moved[0, 3] -= 0.5
    pair = World("tiny", rig=replace(world.rig, cameras=(left, replace(left, name="right", cam_T_ego=moved))))
    export(pair, "kitti", tmp_path / "k", 1)
    before, after = pair[0], Kitti(tmp_path / "k", "trainval", cameras=("image_2", "image_3"))[0]
    for camera, other in zip(before.cameras, after.cameras, strict=True):
        assert torch.allclose(camera.pix_T_ego, other.pix_T_ego, atol=1e-3)
        assert (camera.image - other.image).abs().max() <= 0.5 / 255 + 1e-6


def test_kitti_boxes_in_view_come_back_with_their_classes(world, kitti):
    source = Kitti(kitti, "trainval")
    names = set()
    for index in range(9):
        before, after = world[index], source[index].boxes
        distance = (after.centre[:, None] - before.boxes.centre).norm(dim=-1)
        nearest = distance.argmin(1)
        assert distance.amin(1).max() < 1e-3
        for label, own in zip(after.label.tolist(), before.boxes.label[nearest].tolist(), strict=True):
            assert KITTI.names[label] == COUNTERPARTS[DETECTION.space, KITTI.space][DETECTION.names[own]]
            names.add(KITTI.names[label])
        assert (before.boxes.num_points[nearest] > 0).all()
        assert torch.allclose(after.size, before.boxes.size[nearest], atol=1e-4)
        assert torch.allclose(torch.cos(after.yaw - before.boxes.yaw[nearest]), torch.ones(len(after)), atol=1e-4)
        camera = source[index].cameras[0]
        uv, _ = project(camera.pix_T_ego.expand(len(after), 4, 4), after.centre[:, None])
        inside = (uv[:, 0] >= after.box2d[:, :2] - 1) & (uv[:, 0] <= after.box2d[:, 2:] + 1)
        assert inside[after.truncation < 0.01].all()
    assert "Car" in names


def test_kitti_scenes_are_split_between_training_and_validation(kitti):
    train, val = Kitti(kitti, "train").tokens, Kitti(kitti, "val").tokens
    assert (len(train), len(val)) == (7, 2)
    assert not set(train) & set(val)


def test_real_kitti_labels_survive_export(realdata, tmp_path):
    source = Kitti(realdata / "kitti", "trainval")
    export(source, "kitti", tmp_path / "k")
    again = Kitti(tmp_path / "k", "trainval")
    for before, after in zip(source, again, strict=True):
        known = before.boxes.label != UNKNOWN
        assert torch.equal(after.boxes.label, before.boxes.label)
        assert (after.boxes.centre - before.boxes.centre)[known].abs().max() < 1e-3
        assert (after.boxes.yaw - before.boxes.yaw)[known].abs().max() < 1e-3
        assert torch.allclose(after.boxes.box2d, before.boxes.box2d, atol=1e-2)
        assert torch.allclose(after.points.xyz_ego, before.points.xyz_ego)
        assert torch.allclose(after.cameras[0].pix_T_ego, before.cameras[0].pix_T_ego, atol=1e-2, rtol=1e-5)


def test_semantickitti_scans_labels_and_poses_come_back(world, sequences):
    train, val = (SemanticKitti(sequences, split, cameras=("image_2",)) for split in ("train", "val"))
    assert (len(train), len(val)) == (7, 2)
    for before, after in ((world[3], train[3]), (world[8], val[1])):
        key = before.points.age == 0
        assert torch.allclose(after.points.xyz_ego, before.points.xyz_ego[key], atol=1e-5)
        table = COUNTERPARTS[LIDARSEG.space, SEMANTICKITTI.space]
        names = [table.get(LIDARSEG.names[label]) for label in before.points.labels[key].tolist()]
        expected = [UNKNOWN if name is None else SEMANTICKITTI.index(name) for name in names]
        assert after.points.labels.tolist() == expected
        assert torch.equal(after.points.instances == UNKNOWN, before.points.instances[key] == UNKNOWN)
        assert torch.allclose(after.cameras[0].pix_T_ego, before.cameras[0].pix_T_ego, atol=1e-3)
        assert after.time == pytest.approx(before.time)
    step = torch.linalg.inv(world[0].world_T_ego) @ world[6].world_T_ego
    assert torch.allclose(train[6].world_T_ego, step, atol=1e-5)


def test_real_scans_survive_export(realdata, tmp_path):
    source = SemanticKitti(realdata / "semantickitti")
    export(source, "semantickitti", tmp_path / "s")
    for before, after in zip(source, SemanticKitti(tmp_path / "s"), strict=True):
        assert torch.equal(after.points.labels, before.points.labels)
        assert torch.equal(after.points.instances == UNKNOWN, before.points.instances == UNKNOWN)
        assert torch.allclose(after.world_T_ego, before.world_T_ego, atol=1e-5)


def test_every_fifth_scene_is_for_validation():
    names = [f"s{i}" for i in range(7)]
    assert scene_splits([name for name in names for _ in range(3)]) == {
        "train": ["s0", "s2", "s3", "s4", "s5"],
        "val": ["s1", "s6"],
    }
    assert scene_splits(["a"]) == {"train": ["a"], "val": ["a"]}


def test_frames_that_cannot_be_read_are_left_out_of_an_export(kitti, tmp_path, caplog):
    root = shutil.copytree(kitti, tmp_path / "before")
    (root / "training/velodyne/000001.bin").write_bytes(bytes(15))
    source = Kitti(root, "trainval")
    with pytest.raises(ValueError, match=r"000001\.bin holds 15 bytes"):
        export(source, "kitti", tmp_path / "refused", 3)
    assert export(source, "kitti", tmp_path / "after", 3, skip_broken=True) == 2
    assert "000001.bin holds 15 bytes" in caplog.text
    assert torch.equal(Kitti(tmp_path / "after", "trainval")[1].points.xyz_ego, source[2].points.xyz_ego)


def test_a_wrong_format_folder_or_count_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="a format is one of nuscenes, kitti, semantickitti, got 'waymo'"):
        export(world, "waymo", tmp_path / "a", 1)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not empty; name a new folder"):
        export(world, "kitti", tmp_path, 1)
    with pytest.raises(OSError, match=r"cannot be written .*; name a folder that can"):
        export(world, "kitti", tmp_path / "file" / "b", 1)
    with pytest.raises(ValueError, match=r"nothing to write: .* asked for 0"):
        export(world, "kitti", tmp_path / "c", 0)
    with pytest.raises(ValueError, match="12 scenes, but SemanticKITTI has 11 labelled sequences"):
        export(world, "semantickitti", tmp_path / "d", 80)
