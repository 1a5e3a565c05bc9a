"""Runs on the synthetic world: small enough for a laptop, so that a change of the method is tried in minutes."""

import math
from dataclasses import replace

from cofield.data.augment import Augment
from cofield.grid import BoxGrid, CylinderGrid
from cofield.train.config import (
    BoxTuning,
    Data,
    Head,
    Labels,
    MapTuning,
    Model,
    Optim,
    PointTuning,
    Pretraining,
    Pseudo,
    SegmentTuning,
    Semi,
)

TOWN = BoxGrid(lower=(-25.6, -25.6, -1.6), cell=(0.8, 0.8, 0.8), count=(64, 64, 8))

# Fine enough for kerbs and people, and open below: what a ray would find under the ground, nothing ever taught.
STREET = BoxGrid(lower=(-25.6, -25.6, -0.2), cell=(0.4, 0.4, 0.4), count=(128, 128, 16))

# Around the LiDAR, which stands above the ego frame's zero.
ROUND = CylinderGrid((0.0, -math.pi, -0.4), (40 / 96, 2 * math.pi / 128, 0.4), (96, 128, 16))


def world_small() -> Pretraining:
    """Cameras and LiDAR of the small synthetic world."""
    return Pretraining(grid=TOWN, data=Data("world:small", store=True, workers=0), optim=Optim(steps=1400))


def world_tiny() -> Pretraining:
    """The same with half the beams, and short: the demo."""
    small = world_small()
    return replace(small, data=replace(small.data, source="world:tiny"), optim=replace(small.optim, steps=400))


def world_small_frustum() -> Pretraining:
    """Cameras see what their own pixels knew before any fusion, as in the released code: an ablation."""
    small = world_small()
    return replace(small, model=replace(small.model, field="frustum"))


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
    """All boxes of the small synthetic world, from every label: half an hour on one core.

    Frames are not mirrored: of a single sweep the side of the road tells which way a car is heading.
    """
    data = Data("world:small", store=True, workers=0, validation=10_000)
    return BoxTuning(grid=TOWN, data=data, optim=Optim(steps=1000, rate=1e-3, validate_every=500))


def boxes_world_tiny() -> BoxTuning:
    """The same with half the beams."""
    small = boxes_world_small()
    return replace(small, data=replace(small.data, source="world:tiny"))


def points_world_small() -> PointTuning:
    """The class of every LiDAR point of the small synthetic world."""
    data = Data("world:small", store=True, workers=0, batch=2, validation=10_000)
    return PointTuning(grid=TOWN, data=data, optim=Optim(steps=200, rate=2e-3, validate_every=200))


def lidarseg_world_small() -> SegmentTuning:
    """Points of the small synthetic world from few labels, other scans through their cameras; ten minutes on one core.

    Chosen on its town `tune`: many steps of few scans, ranges of all of them, and segments of which half of the rays
    vote. Through small things, far away, a ray sees what is behind them, and is sure of it. Points vote beside rays,
    which on `report` made the difference.
    """
    return SegmentTuning(
        grid=STREET,
        data=Data("world:small", store=True, workers=0, batch=1, validation=10_000),
        labels=Labels(fraction=0.01),
        model=Model(camera="none", width=16, lidar_width=32),
        semi=Semi(unlabelled=1, ramp=(0.2, 0.4), ranges=0.5, together=True),
        pseudo=Pseudo(segmenter="exact", voters=12, smallest=100, count=16, rays=24, samples=40, cameras=1),
        optim=Optim(steps=1200, rate=4e-3, validate_every=1200),
    )


def lidarseg_world_small_cylinder() -> SegmentTuning:
    """The same with a small Cylinder3D on a cylinder; it starts from cylinder:world:small or from scratch."""
    boxes = lidarseg_world_small()
    return replace(boxes, grid=ROUND, model=replace(boxes.model, width=8))


def cylinder_world_small() -> Pretraining:
    """Cylinder3D of lidarseg:world:small-cylinder, before any label: from LiDAR alone, also taught by cameras."""
    tuned = lidarseg_world_small_cylinder()
    return replace(world_small(), grid=tuned.grid, model=tuned.model)
