"""Named runs. A recipe is a function; a variant is `replace` of another."""

from collections.abc import Callable
from dataclasses import replace

from cofield.grid import BoxGrid
from cofield.train.config import Data, Optim, Pretraining

TOWN = BoxGrid(lower=(-25.6, -25.6, -1.6), cell=(0.8, 0.8, 0.8), count=(64, 64, 8))


def world_small() -> Pretraining:
    """Cameras and LiDAR of the small synthetic world."""
    return Pretraining(grid=TOWN, data=Data("world:small", store=True), optim=Optim(steps=1400))


def world_tiny() -> Pretraining:
    """The same with half the beams, and short: the demo."""
    small = world_small()
    return replace(small, data=replace(small.data, source="world:tiny"), optim=replace(small.optim, steps=400))


def world_small_camera() -> Pretraining:
    """Only the cameras are encoded; the LiDAR still supervises."""
    small = world_small()
    return replace(small, model=replace(small.model, lidar="none"))


def world_small_lidar() -> Pretraining:
    """Only the LiDAR is encoded; the cameras still supervise."""
    small = world_small()
    return replace(small, model=replace(small.model, camera="none"))


RECIPES: dict[str, Callable[[], Pretraining]] = {
    "world:tiny": world_tiny,
    "world:small": world_small,
    "world:small-camera": world_small_camera,
    "world:small-lidar": world_small_lidar,
}


def recipe(name: str) -> Pretraining:
    """The recipe of that name."""
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()
