"""The nuScenes reader and writer against the official devkit, which runs in an environment of its own.

$COFIELD_DEVKIT_PYTHON names that environment's interpreter; docs/datasets.md says how to make it.
"""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cofield.classes import DETECTION, LIDARSEG, UNKNOWN
from cofield.data.export import export
from cofield.data.nuscenes import MINI_VAL, VAL_RUNS, NuScenes
from cofield.data.nuscenes_index import DETECTION_NAMES, LIDARSEG_NAMES
from cofield.data.simulate import World
from cofield.geometry import project, wrap_angle
from cofield.grid import BoxGrid

MINI, SWEEPS = "v1.0-mini", 4


@pytest.fixture(scope="module")
def devkit():
    """Runs the devkit over a folder."""
    python = os.environ.get("COFIELD_DEVKIT_PYTHON")
    if not python:
        pytest.skip("COFIELD_DEVKIT_PYTHON names no Python with nuscenes-devkit")

    def run(root: Path, out: Path) -> dict[str, np.ndarray]:
        script = Path(__file__).parent / "oracles" / "devkit.py"
        done = subprocess.run([python, script, root, out, str(SWEEPS)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        with np.load(out) as archive:
            return dict(archive)

    return run


@pytest.fixture(scope="module")
def town(devkit, tmp_path_factory):
    """A world with a moving camera delay, as a folder, and what the devkit says of it."""
    world = World("nuscenes-like")
    mounts = tuple(replace(mount, size=(64, 176)) for mount in world.rig.cameras)
    world = World("nuscenes-like", rig=replace(world.rig, cameras=mounts, beams=12, azimuths=120, sweeps=4))
    folder = tmp_path_factory.mktemp("devkit")
    export(world, "nuscenes", folder / "nuscenes", 8)
    return folder / "nuscenes", devkit(folder / "nuscenes", folder / "found.npz")


@pytest.fixture(scope="module")
def real(devkit, realdata, tmp_path_factory):
    import shutil

    folder = tmp_path_factory.mktemp("devkit")
    shutil.copytree(realdata / "nuscenes", folder / "nuscenes", ignore=shutil.ignore_patterns(".cofield-*"))
    return folder / "nuscenes", devkit(folder / "nuscenes", folder / "found.npz")


@pytest.fixture(params=["town", "real"])
def both(request):
    root, found = request.getfixturevalue(request.param)
    return NuScenes(root, "all", MINI, sweeps=SWEEPS), found


def test_sweeps_agree(both):
    source, found = both
    for frame in source:
        expected = found[f"{frame.token}.xyz"]
        # The devkit leaves out the car also from the keyframe.
        age = torch.from_numpy(found[f"{frame.token}.age"]).float()
        assert len(age.unique()) == len(frame.origins_ego)
        later = frame.points.age > 0
        assert (later.sum(), (age > 0).sum()) == (int((age > 0).sum()), int(later.sum()))
        error = frame.points.xyz_ego[later] - torch.from_numpy(expected).float()[age > 0]
        assert not later.any() or error.abs().max() < 1e-4
        assert torch.allclose(frame.points.age[later], age[age > 0], atol=1e-6)


def test_projections_agree(both):
    source, found = both
    for frame in source:
        key = frame.points.age == 0
        assert np.abs(found[f"{frame.token}.world_T_ego"] - frame.world_T_ego.numpy()).max() < 1e-9
        for camera in frame.cameras:
            uv, depth = project(camera.pix_T_ego.double(), frame.points.xyz_ego[key].double())
            height, width = camera.image.shape[-2:]
            expected = torch.from_numpy(found[f"{frame.token}.uv.{camera.name}"])
            other = torch.from_numpy(found[f"{frame.token}.depth.{camera.name}"])
            assert (depth - other).abs().max() < 1e-4
            seen = (other > 1) & (expected >= 0).all(-1) & (expected < expected.new_tensor([width, height])).all(-1)
            assert seen.any()
            assert (uv - expected)[seen].abs().max() < 1e-3


def test_boxes_agree(both):
    source, found = both
    for frame in source:
        found_here = {name: found[f"{frame.token}.{name}"] for name in ("centre", "size", "heading", "velocity")}
        category = found[f"{frame.token}.category"].tolist()
        kept = [i for i, name in enumerate(category) if name in DETECTION_NAMES]
        labels = [DETECTION.index(DETECTION_NAMES[category[i]]) for i in kept]
        boxes = frame.boxes
        # Both list the labels in the order of the table.
        assert boxes.label.tolist() == labels
        assert np.abs(boxes.centre.numpy() - found_here["centre"][kept]).max() < 1e-4
        assert np.abs(boxes.size.numpy() - found_here["size"][kept][:, [1, 0, 2]]).max() < 1e-5
        heading = found_here["heading"][kept]
        yaw = torch.from_numpy(np.arctan2(heading[:, 1], heading[:, 0])).float()
        assert wrap_angle(boxes.yaw - yaw).abs().max() < 1e-5
        velocity = found_here["velocity"][kept] @ frame.world_T_ego[:3, :3].numpy()
        assert np.isnan(velocity).any(1).tolist() == boxes.velocity.isnan().any(1).tolist()
        flat = (found_here["velocity"][kept] * [1, 1, 0]) @ frame.world_T_ego[:3, :3].numpy()
        assert np.nanmax(np.abs(boxes.velocity.numpy() - flat[:, :2]), initial=0) < 1e-4
        assert found[f"{frame.token}.counts"][kept].sum() > 0


def test_the_devkit_counts_the_points_that_the_tables_state(real):
    root, found = real
    (frame,) = NuScenes(root, "all", MINI)
    counts = found[f"{frame.token}.counts"]
    assert (len(counts), counts.sum()) == (69, 1009)
    kept = [name in DETECTION_NAMES for name in found[f"{frame.token}.category"].tolist()]
    assert counts[kept].tolist() == frame.boxes.num_points.tolist()


def test_point_labels_agree(town):
    root, found = town
    for frame in NuScenes(root, "all", MINI, labels="lidarseg"):
        names = [LIDARSEG_NAMES.get(name) for name in found[f"{frame.token}.points.category"].tolist()]
        expected = [UNKNOWN if name is None else LIDARSEG.index(name) for name in names]
        assert frame.points.labels.tolist() == expected


def test_map_layers_agree(town):
    root, found = town
    grid = BoxGrid((-24.0, -24.0, -1.0), (0.4, 0.4, 2.0), (120, 120, 1))
    beyond, cells = torch.zeros(2, 5), torch.zeros(5)
    for frame in NuScenes(root, "all", MINI, map_grid=grid):
        theirs = torch.from_numpy(found[f"{frame.token}.map"]).float()
        ours = frame.maps.layers[:5].float()
        # The devkit also draws outlines, a cell wide: it covers what we cover, and nothing a cell further.
        wider = torch.nn.functional.max_pool2d(ours, 3, 1, 1)
        beyond += torch.stack([(ours > theirs).sum((1, 2)), (theirs > wider).sum((1, 2))])
        cells += ours.sum((1, 2))
    assert (cells[:3] > 500).all()
    assert (beyond <= 0.03 * cells + 10).all()


def test_the_official_splits_are_as_listed(real):
    _, found = real
    val = [f"scene-{number:04d}" for first, last in VAL_RUNS for number in range(first, last + 1)]
    assert found["val"].tolist() == val
    assert found["mini_val"].tolist() == [f"scene-{number:04d}" for number in MINI_VAL]
    assert not set(found["train"].tolist()) & set(val)
