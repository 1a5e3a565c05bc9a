"""Named runs. A recipe is a function; a variant is `replace` of another."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from cofield.data.augment import Augment
from cofield.grid import BoxGrid, CylinderGrid, Triple
from cofield.train.config import (
    BoxHead,
    BoxTuning,
    Config,
    Data,
    Head,
    Labels,
    MapTuning,
    Model,
    Optim,
    PointClasses,
    PointTuning,
    Pretraining,
    Pseudo,
    SegmentTuning,
    Semi,
    flat,
)

Kind = TypeVar("Kind", bound=Config)
TOWN = BoxGrid(lower=(-25.6, -25.6, -1.6), cell=(0.8, 0.8, 0.8), count=(64, 64, 8))


def world_small() -> Pretraining:
    """Cameras and LiDAR of the small synthetic world."""
    return Pretraining(grid=TOWN, data=Data("world:small", store=True, workers=0), optim=Optim(steps=1400))


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


def map_world_small() -> MapTuning:
    """Map layers, vehicles and pedestrians on the small synthetic world; chosen for few labels, on its town `tune`."""
    return MapTuning(
        grid=TOWN,
        data=Data("world:small", store=True, workers=0, batch=2, validation=10_000),
        head=Head(gamma=0.0, balance=20.0),
        augment=Augment(flip_x=0.5, flip_y=0.5),
        optim=Optim(steps=200, rate=2e-3, validate_every=200),
    )


def map_world_tiny() -> MapTuning:
    """The same with half the beams."""
    small = map_world_small()
    return replace(small, data=replace(small.data, source="world:tiny"))


def boxes_world_small() -> BoxTuning:
    """All boxes of the small synthetic world, from every label: about an hour on two cores."""
    data = Data("world:small", store=True, workers=0, validation=10_000)
    return BoxTuning(grid=TOWN, data=data, optim=Optim(steps=5000, rate=1e-3, validate_every=1000))


def boxes_world_tiny() -> BoxTuning:
    """The same with half the beams."""
    small = boxes_world_small()
    return replace(small, data=replace(small.data, source="world:tiny"))


def boxes_nuscenes() -> BoxTuning:
    """Boxes of nuScenes from all labels: the released TransFusion head, schedule and augmentation, on small encoders.

    Of the released code: 200 queries, width 128, 8 heads, a map of 180×180 cells, 256×704 pixels, nine earlier sweeps,
    20 epochs at 1e-4, 16 frames a step. Ours: a trunk of the small worlds' width on that grid.
    """
    return BoxTuning(
        grid=BoxGrid((-54.0, -54.0, -5.0), (0.6, 0.6, 8.0), (180, 180, 1), (0.94, 0.0, 1.84)),
        data=Data("nuscenes", batch=16, workers=8, validation=10_000, sweeps=9),
        head=BoxHead("transfusion", 128, 128, 5, 512, finer=1, queries=200, heads=8),
        augment=Augment(
            resize=(0.38, 0.55),
            size=(256, 704),
            image_flip=0.5,
            image_turn_deg=5.4,
            scale=(0.9, 1.1),
            turn=math.pi / 4,
            shift=0.5,
            flip_x=0.5,
            flip_y=0.5,
        ),
        optim=Optim(steps=20 * 28_130 // 16, rate=1e-4, validate_every=5000, save_every=1000),
    )


def boxes_kitti() -> BoxTuning:
    """Cars, pedestrians and cyclists of KITTI from the LiDAR, in 40 epochs; all of it ours."""
    return BoxTuning(
        grid=BoxGrid((0.0, -40.0, -3.0), (0.4, 0.4, 4.0), (176, 200, 1), (0.0, 0.0, 1.73)),
        data=Data("kitti", batch=4, workers=4, validation=10_000),
        model=Model(camera="none"),
        head=BoxHead("centerpoint", 64, 128, 5, 256, finer=1, classes="kitti"),
        augment=Augment(scale=(0.95, 1.05), turn=math.pi / 4, flip_y=0.5),
        optim=Optim(steps=40 * 3_712 // 4, rate=1e-3, validate_every=5000, save_every=1000),
    )


def points_world_small() -> PointTuning:
    """The class of every LiDAR point of the small synthetic world."""
    data = Data("world:small", store=True, workers=0, batch=2, validation=10_000)
    return PointTuning(grid=TOWN, data=data, optim=Optim(steps=200, rate=2e-3, validate_every=200))


def lidarseg_world_small() -> SegmentTuning:
    """Points of the small synthetic world from few labels, other scans through their cameras: the prototype's sizes."""
    return SegmentTuning(
        grid=TOWN,
        data=Data("world:small", store=True, workers=0, batch=2, validation=10_000),
        labels=Labels(fraction=0.01),
        model=Model(camera="none"),
        semi=Semi(ramp=(0.2, 0.4)),
        pseudo=Pseudo(segmenter="exact", count=16, rays=24, samples=40, cameras=1),
        optim=Optim(steps=400, rate=2e-3, validate_every=400),
    )


def lidarseg_nuscenes() -> SegmentTuning:
    """nuScenes-lidarseg, 1 % of the keyframes labelled: Cylinder3D on the cells for few labels, and the NeRF head (p).

    The paper's: 240×180×20 cells, ρ to 50 m, φ ±π, z −5..3; 40 epochs at 1e-3; SAM. Ours: 4 + 4 scans a step, an
    epoch counted over all scans; 64 samples, 1,024 rays a camera, entropy 0.3, weight 0.5 over a fifth of the steps.
    """
    return SegmentTuning(
        grid=cylinder((240, 180, 20), (-5.0, 3.0), (0.94, 0.0, 1.84)),
        data=Data("nuscenes", batch=4, workers=8, validation=10_000),
        labels=Labels(fraction=0.01),
        model=Model(camera="none", width=32, norm="batch"),
        augment=Augment(scale=(0.95, 1.05), turn=math.pi, flip_x=0.5, flip_y=0.5),
        semi=Semi(unlabelled=4),
        pseudo=Pseudo(segmenter="sam"),
        optim=Optim(steps=40 * 28_130 // 8, rate=1e-3, validate_every=5000, save_every=1000),
    )


def lidarseg_nuscenes_full() -> SegmentTuning:
    """nuScenes-lidarseg from all labels: Cylinder3D's own 480×360×32 cells (p), without cameras."""
    few = lidarseg_nuscenes()
    return replace(
        few,
        grid=cylinder((480, 360, 32), (-5.0, 3.0), few.grid.origin_ego),
        labels=Labels(),
        semi=Semi(method="supervised"),
        optim=replace(few.optim, steps=40 * 28_130 // 4),
    )


def lidarseg_semantickitti() -> SegmentTuning:
    """SemanticKITTI, 1 % of the scans labelled, uniformly along each sequence; cells to z −4..2 (p)."""
    few = lidarseg_nuscenes()
    return replace(
        few,
        grid=cylinder((240, 180, 20), (-4.0, 2.0), (0.0, 0.0, 1.73)),
        data=replace(few.data, source="semantickitti"),
        head=PointClasses(classes="semantickitti"),
        optim=replace(few.optim, steps=40 * 19_130 // 8),
    )


def lidarseg_semantickitti_full() -> SegmentTuning:
    """SemanticKITTI from all labels: Cylinder3D's own 480×360×32 cells (p), without cameras."""
    few = lidarseg_semantickitti()
    return replace(
        few,
        grid=cylinder((480, 360, 32), (-4.0, 2.0), few.grid.origin_ego),
        labels=Labels(),
        semi=Semi(method="supervised"),
        optim=replace(few.optim, steps=40 * 19_130 // 4),
    )


def lidarseg_scribblekitti() -> SegmentTuning:
    """ScribbleKITTI: the same scans, where labelled only along a few lines."""
    few = lidarseg_semantickitti()
    return replace(few, data=replace(few.data, source="scribblekitti"))


def cylinder(count: tuple[int, int, int], height: tuple[float, float], zero: Triple) -> CylinderGrid:
    """Cells around a LiDAR at `zero`: ρ to 50 m, all around, and heights from and to."""
    low, high = height
    cell = (50 / count[0], 2 * math.pi / count[1], (high - low) / count[2])
    return CylinderGrid((0.0, -math.pi, low), cell, count, zero)


RECIPES: dict[str, Callable[[], Config]] = {
    "world:tiny": world_tiny,
    "world:small": world_small,
    "world:small-camera": world_small_camera,
    "world:small-lidar": world_small_lidar,
    "map:world:tiny": map_world_tiny,
    "map:world:small": map_world_small,
    "boxes:world:tiny": boxes_world_tiny,
    "boxes:world:small": boxes_world_small,
    "boxes:nuscenes": boxes_nuscenes,
    "boxes:kitti": boxes_kitti,
    "points:world:small": points_world_small,
    "lidarseg:world:small": lidarseg_world_small,
    "lidarseg:nuscenes": lidarseg_nuscenes,
    "lidarseg:nuscenes-full": lidarseg_nuscenes_full,
    "lidarseg:semantickitti": lidarseg_semantickitti,
    "lidarseg:semantickitti-full": lidarseg_semantickitti_full,
    "lidarseg:scribblekitti": lidarseg_scribblekitti,
}


def recipe(name: str) -> Config:
    """The recipe of that name."""
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()


def repeat(config: Pretraining) -> str:
    """The command that trains this configuration: the closest recipe, and a flag for every field that differs."""
    known = {name: make() for name, make in RECIPES.items()}
    mine = flat(config)
    changes = {
        name: {field: value for field, value in mine.items() if flat(other)[field] != value}
        for name, other in known.items()
        if isinstance(other, Pretraining)
    }
    name = min(changes, key=lambda each: len(changes[each]))
    return " ".join(["cofield pretrain", name, *(_flag(field, value) for field, value in changes[name].items())])


def _flag(field: str, value: object) -> str:
    group, _, name = field.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return f"--{group}.{'' if value else 'no-'}{name}"
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join([f"--{group}.{name}", *map(str, values)])


def recipe_for(name: str, kind: type[Kind]) -> Kind:
    """The recipe of that name, which must be of the kind asked for."""
    chosen = recipe(name)
    if not isinstance(chosen, kind):
        verb = "pretrain" if isinstance(chosen, Pretraining) else "finetune"
        raise ValueError(f"{name} is a recipe for cofield {verb}; here fit {', '.join(fitting(kind))}")
    return chosen


def fitting(kind: type) -> list[str]:
    """The names of the recipes of a kind."""
    return [name for name, make in RECIPES.items() if isinstance(make(), kind)]
