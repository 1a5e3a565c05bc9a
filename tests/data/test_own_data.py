import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cofield.data import Source
from cofield.data.export import export
from cofield.data.kitti import Kitti
from cofield.data.simulate import World
from cofield.geometry import inverse

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_data.py"


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    """Three frames of the synthetic world as somebody's recorder might write them."""
    root, world = tmp_path_factory.mktemp("logs"), World("tiny")
    for index in range(3):
        frame = world[index]
        camera, boxes = frame.cameras[0], frame.boxes
        ego_T_lidar = np.eye(4)
        ego_T_lidar[:3, 3] = frame.origins_ego[0]
        xyz_lidar = frame.points.xyz_ego - frame.origins_ego[0]
        np.savez(
            root / f"drive7-{index:05d}.npz",
            car=frame.world_T_ego,
            lidar=ego_T_lidar,
            camera=inverse(camera.cam_T_ego).double(),
            intrinsics=camera.pix_T_cam[:3, :3].double(),
            image=(camera.image * 255).byte().permute(1, 2, 0),
            points=torch.cat([xyz_lidar, frame.points.intensity[:, None] * 255], -1),
            boxes=torch.cat([boxes.centre, boxes.size, boxes.yaw[:, None], boxes.label[:, None].float()], -1),
            time=frame.time,
        )
    return root


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) < 60


def test_own_logs_are_a_source_with_the_same_frames(logs):
    source, world = runpy.run_path(str(EXAMPLE))["Logs"](logs), World("tiny")
    assert isinstance(source, Source)
    assert source.scenes() == ["drive7"] * 3
    for before, after in zip((world[i] for i in range(3)), source, strict=True):
        assert torch.allclose(after.points.xyz_ego, before.points.xyz_ego, atol=1e-5)
        assert torch.allclose(after.points.intensity, before.points.intensity, atol=1e-5)
        assert torch.allclose(after.cameras[0].pix_T_ego, before.cameras[0].pix_T_ego, atol=1e-3)
        assert torch.allclose(after.boxes.centre, before.boxes.centre)


def test_own_logs_can_be_exported(logs, tmp_path):
    source = runpy.run_path(str(EXAMPLE))["Logs"](logs)
    export(source, "kitti", tmp_path / "kitti")
    assert len(Kitti(tmp_path / "kitti", "trainval")) == 3


def test_the_example_runs_as_it_says(logs):
    done = subprocess.run([sys.executable, EXAMPLE, logs], capture_output=True, text=True, check=True)
    assert done.stdout == "OK\n"
    assert len(list((logs / "pictures").glob("*.png"))) == 3
