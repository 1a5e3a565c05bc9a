"""The recipes' grids lie around real sensors as the papers' ranges lie around theirs: in the LiDAR's own frame."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cofield.data.folders import open_folder
from cofield.grid import Grid
from cofield.train.recipes import RECIPES, recipe

# Of each distinct grid: a recipe, how high its LiDAR is above the road, and the share of each scan's points inside.
GRIDS = {
    "nuscenes": (1.84, (0.932,)),
    "nuscenes-laptop": (1.84, (0.937,)),
    "lidarseg:nuscenes": (1.84, (0.925,)),
    "kitti": (1.73, (0.545, 0.512, 0.502)),
    "kitti-laptop": (1.73, (0.546, 0.472, 0.496)),
    "lidarseg:semantickitti": (1.73, (0.983, 0.983)),
}


def space(grid: Grid) -> tuple[object, ...]:
    """What a grid encloses, whatever its cells."""
    return type(grid), tuple(round(x, 6) for x in (*grid.lower, *grid.upper, *grid.origin_ego))


def scan_of(files: list[Path], points: int) -> np.ndarray:
    """The rows of the scan among a frame's files."""
    (path,) = (each for each in files if "velodyne" in each.parts or "LIDAR_TOP" in each.parts)
    return np.fromfile(path, np.float32).reshape(points, -1)


def inside_in_the_scan(grid: Grid, scan: np.ndarray, ahead: int) -> np.ndarray:
    """Which rows of a scan are in the grid, said in the sensor's axes; `ahead` is the one that looks forward."""
    forward, height = scan[:, ahead], scan[:, 2]
    left = -scan[:, 0] if ahead else scan[:, 1]
    plan = np.stack([np.hypot(forward, left), np.arctan2(left, forward)] if grid.wraps[1] else [forward, left], 1)
    place = np.concatenate([plan, height[:, None]], 1)
    return np.asarray(((place >= grid.lower) & (place < grid.upper)).all(1))


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_holds_the_share_of_real_scans_that_the_scan_itself_says_and_the_road_where_it_is(
    name: str, realdata: Path
) -> None:
    height, shares = GRIDS[name]
    config = recipe(name)
    grid, kind = config.grid, config.data.source
    source = open_folder(kind, realdata / kind, "all")
    for index, share in enumerate(shares):
        xyz_ego = source[index].points.xyz_ego
        inside = grid.contains(xyz_ego)
        turned = kind == "nuscenes"
        told = inside_in_the_scan(grid, scan_of(source.files(index), len(xyz_ego)), ahead=1 if turned else 0)
        # nuScenes' LiDAR is turned by a quarter, and leans by a degree: points at the border change sides.
        assert (told == inside.numpy()).mean() > (0.985 if turned else 0.9999)
        assert told.mean() == pytest.approx(share, abs=0.01 if turned else 1e-3)
        assert float(inside.float().mean()) == pytest.approx(share, abs=1e-3)
        road = xyz_ego[(xyz_ego[:, 0] > 4) & (xyz_ego[:, 0] < 12) & (xyz_ego[:, 1].abs() < 2)]
        assert len(road) > 1000
        assert float(grid.coordinates(road)[:, 2].median()) == pytest.approx(-height, abs=0.1)
        assert grid.contains(road).float().mean() > 0.99
        assert torch.allclose(source[index].origins_ego[0], torch.tensor(grid.origin_ego), atol=0.01)


def test_no_recipe_of_real_data_has_a_grid_that_is_not_measured() -> None:
    known = {(config.data.source, space(config.grid)) for config in map(recipe, GRIDS)}
    for name in RECIPES:
        config = recipe(name)
        if not config.data.source.startswith("world"):
            assert (config.data.source.replace("scribble", "semantic"), space(config.grid)) in known, name
