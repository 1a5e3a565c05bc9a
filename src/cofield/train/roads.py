"""Runs at the papers' size: nuScenes and KITTI, and synthetic worlds that look like them.

docs/recipes.md says of every field where its value is from: (p) a paper, (r) the released code, the rest is ours.
"""

import math
from dataclasses import replace
from typing import TypeVar

from cofield.data.augment import Augment
from cofield.grid import BoxGrid, CylinderGrid, Triple
from cofield.models.mask import Masking
from cofield.train.config import (
    BoxHead,
    BoxTuning,
    Data,
    Head,
    Labels,
    MapTuning,
    Model,
    Optim,
    PointClasses,
    Pretraining,
    Pseudo,
    SegmentTuning,
    Semi,
)
from cofield.train.views import Sampling

Tuning = TypeVar("Tuning", BoxTuning, MapTuning)
NUSCENES = BoxGrid((-54.0, -54.0, -5.0), (0.6, 0.6, 8.0), (180, 180, 1), (0.94, 0.0, 1.84))
KITTI = BoxGrid((0.0, -40.0, -3.0), (0.4, 0.4, 4.0), (176, 200, 1), (0.0, 0.0, 1.73))
KEYFRAMES, SCANS = 28_130, 3_712  # of nuScenes and KITTI for training
LABELLED_SCANS = 19_130  # of SemanticKITTI for training
MOVED = Augment(scale=(0.9, 1.1), turn=math.pi / 4, shift=0.5, flip_x=0.5, flip_y=0.5)
PAPER = Model(
    camera="swin-t",
    lidar="voxelnet",
    recompute=True,
    lift="depth",
    fuse="conv",
    width=256,
    camera_width=256,
    lidar_width=256,
    bins=118,
    bin_step=0.5,
)


def nuscenes() -> Pretraining:
    """Cameras at 256×704 and LiDAR of nuScenes with nine earlier sweeps: Swin-T and VoxelNet, as in the paper."""
    return Pretraining(
        grid=NUSCENES,
        data=Data("nuscenes", batch=16, workers=8, sweeps=9),
        model=PAPER,
        mask=Masking(patch=8, image_ratio=0.5, lidar_ratio=0.7, lidar_cell=0.6),
        views=Sampling(pixels=1024, beams=4096, above=2048, samples=64, each=True),
        augment=replace(MOVED, resize=(0.38, 0.55), size=(256, 704), image_flip=0.5, image_turn_deg=5.4),
        optim=Optim(
            steps=50 * KEYFRAMES // 16,
            rate=1e-4,
            rate_batch=16,
            accumulate=8,
            save_every=500,
            validate_every=2000,
        ),
    )


def nuscenes_small() -> Pretraining:
    """Cameras at 128×352 and one LiDAR sweep of nuScenes."""
    large = nuscenes()
    return replace(
        large,
        data=replace(large.data, sweeps=0),
        mask=replace(large.mask, patch=4),
        augment=replace(large.augment, resize=(0.19, 0.275), size=(128, 352)),
    )


def nuscenes_laptop() -> Pretraining:
    """For a laptop, nuScenes: the small encoders of the synthetic worlds, 128×352 pixels, cells of 0.8 m."""
    return Pretraining(
        grid=BoxGrid((-38.4, -38.4, -4.0), (0.8, 0.8, 0.8), (96, 96, 10), NUSCENES.origin_ego),
        data=Data("nuscenes", workers=1),
        views=Sampling(pixels=1024, beams=512, above=256, samples=48),
        augment=replace(nuscenes_small().augment, turn=0.0, scale=(1.0, 1.0), image_turn_deg=0.0),
        optim=Optim(steps=7000),
    )


def kitti_laptop() -> Pretraining:
    """For a laptop, KITTI: as nuscenes-laptop, at 128×416."""
    small = nuscenes_laptop()
    return replace(
        small,
        grid=BoxGrid((0.0, -25.6, -3.2), (0.8, 0.8, 0.8), (64, 64, 8), KITTI.origin_ego),
        data=Data("kitti", workers=1),
        augment=replace(small.augment, resize=(0.35, 0.375), size=(128, 416), flip_x=0.0, shift=0.0),
    )


def kitti() -> Pretraining:
    """The left colour camera at 256×832 and the LiDAR of KITTI; the paper's encoders on ranges of ours."""
    return replace(
        nuscenes(),
        grid=KITTI,
        data=Data("kitti", batch=16, workers=8),
        model=replace(PAPER, voxel=(0.05, 0.05, 0.1), bins=138),
        augment=replace(
            MOVED,
            resize=(0.7, 0.75),
            size=(256, 832),
            image_flip=0.5,
            scale=(0.95, 1.05),
            shift=0.0,
            flip_x=0.0,
        ),
        optim=replace(nuscenes().optim, steps=50 * SCANS // 16),
    )


def world_nuscenes_like() -> Pretraining:
    """The same as nuscenes on a synthetic world with its sensors, without the data set."""
    real = nuscenes()
    return replace(real, data=_world("nuscenes-like"), augment=replace(MOVED, image_flip=0.5), optim=_shorter(real))


def world_kitti_like() -> Pretraining:
    """The same as kitti on a synthetic world with its sensors, without the data set."""
    real = kitti()
    return replace(real, data=_world("kitti-like"), optim=_shorter(real))


def boxes_nuscenes() -> BoxTuning:
    """Boxes of nuScenes from all labels, 20 epochs: the released TransFusion head on the trunk of `nuscenes`."""
    return _boxes(nuscenes(), BoxHead("transfusion", 128, 128, 5, 512, finer=1, queries=200, heads=8), KEYFRAMES)


def boxes_nuscenes_small() -> BoxTuning:
    """The same on the trunk of `nuscenes-small`."""
    return _boxes(nuscenes_small(), boxes_nuscenes().head, KEYFRAMES)


def map_nuscenes() -> MapTuning:
    """The six map layers of nuScenes at ±50 m in cells of 0.5 m, from all labels, 20 epochs; on `nuscenes`."""
    return _map(nuscenes(), KEYFRAMES)


def map_nuscenes_small() -> MapTuning:
    """The same on the trunk of `nuscenes-small`."""
    return _map(nuscenes_small(), KEYFRAMES)


def boxes_nuscenes_released() -> BoxTuning:
    """The same for weights released by BEVFusion or NS-MAE (--trunk FILE.pth): their norms, places and depths."""
    return _released(boxes_nuscenes())


def map_nuscenes_released() -> MapTuning:
    """The map for weights released by BEVFusion or NS-MAE (--trunk FILE.pth): their norms, places and depths."""
    return _released(map_nuscenes())


def boxes_kitti() -> BoxTuning:
    """Cars, pedestrians and cyclists of KITTI, 40 epochs: a CenterPoint head on the trunk of `kitti`."""
    tuned = _boxes(kitti(), BoxHead("centerpoint", 64, 128, 5, 256, finer=1, classes="kitti"), SCANS)
    return replace(tuned, optim=replace(tuned.optim, steps=40 * SCANS // 16))


def boxes_world_nuscenes_like() -> BoxTuning:
    """Boxes of the synthetic world with nuScenes' sensors."""
    return _as_world(boxes_nuscenes(), world_nuscenes_like())


def boxes_world_kitti_like() -> BoxTuning:
    """Boxes of the synthetic world with KITTI's sensors; its classes are nuScenes'."""
    real = boxes_kitti()
    return _as_world(replace(real, head=replace(real.head, classes="nuscenes-detection")), world_kitti_like())


def map_world_nuscenes_like() -> MapTuning:
    """The map of the synthetic world with nuScenes' sensors. Its map ends with the raster, so frames are not turned."""
    tuned = _as_world(map_nuscenes(), world_nuscenes_like())
    return replace(tuned, augment=Augment(flip_x=0.5, flip_y=0.5))


def _boxes(before: Pretraining, head: BoxHead, frames: int) -> BoxTuning:
    optim = replace(before.optim, steps=20 * frames // 16, validate_every=5000)
    data = replace(before.data, validation=10_000)
    assert isinstance(before.grid, BoxGrid)
    return BoxTuning(before.grid, "detect", data, model=before.model, patch=before.mask.patch,
                     augment=before.augment, optim=optim, head=head)  # fmt: skip


def _map(before: Pretraining, frames: int) -> MapTuning:
    boxes = _boxes(before, BoxHead(), frames)
    head = Head(width=128, cells=200, cell=0.5, occupied=False)
    return MapTuning(boxes.grid, "map", boxes.data, model=boxes.model, patch=boxes.patch, augment=boxes.augment,
                     optim=boxes.optim, head=head)  # fmt: skip


def _released(ours: Tuning) -> Tuning:
    """Norms that stay as they were learned; bins whose middle is where the released ones begin."""
    return replace(ours, model=replace(ours.model, norm="frozen", metres=True, bin_lower=0.75))


def _world(name: str) -> Data:
    return Data(f"world:{name}", store=True, workers=1)


def _shorter(real: Pretraining) -> Optim:
    return replace(real.optim, steps=3500, rate_batch=4, accumulate=4, save_every=100, validate_every=500)


def _as_world(real: Tuning, before: Pretraining) -> Tuning:
    optim = replace(before.optim, steps=1400)
    return replace(real, data=replace(before.data, validation=10_000), augment=before.augment, optim=optim)


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
        optim=Optim(steps=40 * KEYFRAMES // 8, rate=1e-3, validate_every=5000, save_every=1000),
    )


def lidarseg_nuscenes_full() -> SegmentTuning:
    """nuScenes-lidarseg from all labels: Cylinder3D's own 480×360×32 cells (p), without cameras."""
    return _all_labels(lidarseg_nuscenes(), (-5.0, 3.0), KEYFRAMES)


def lidarseg_semantickitti() -> SegmentTuning:
    """SemanticKITTI, 1 % of the scans labelled, uniformly along each sequence; cells to z −4..2 (p)."""
    few = lidarseg_nuscenes()
    return replace(
        few,
        grid=cylinder((240, 180, 20), (-4.0, 2.0), (0.0, 0.0, 1.73)),
        data=replace(few.data, source="semantickitti"),
        head=PointClasses(classes="semantickitti"),
        optim=replace(few.optim, steps=40 * LABELLED_SCANS // 8),
    )


def lidarseg_semantickitti_full() -> SegmentTuning:
    """SemanticKITTI from all labels: Cylinder3D's own 480×360×32 cells (p), without cameras."""
    return _all_labels(lidarseg_semantickitti(), (-4.0, 2.0), LABELLED_SCANS)


def lidarseg_scribblekitti() -> SegmentTuning:
    """ScribbleKITTI: the same scans, where labelled only along a few lines."""
    few = lidarseg_semantickitti()
    return replace(few, data=replace(few.data, source="scribblekitti"))


def cylinder_nuscenes() -> Pretraining:
    """Cylinder3D of lidarseg:nuscenes, before any label: from LiDAR alone, taught by beams, heights and cameras."""
    return _unlabelled(lidarseg_nuscenes(), nuscenes())


def cylinder_semantickitti() -> Pretraining:
    """The same for lidarseg:semantickitti; without image_2 and image_3, beams and heights alone teach."""
    return _unlabelled(lidarseg_semantickitti(), kitti())


def _unlabelled(few: SegmentTuning, paper: Pretraining) -> Pretraining:
    """The trunk, scans and turns of a segmentation; what is hidden, rays and image size of a paper's pre-training."""
    return Pretraining(
        grid=few.grid,
        data=replace(few.data, batch=8, validation=paper.data.validation),
        model=few.model,
        mask=paper.mask,
        views=paper.views,
        augment=replace(few.augment, resize=paper.augment.resize, size=paper.augment.size),
        optim=replace(few.optim, save_every=paper.optim.save_every, validate_every=paper.optim.validate_every),
    )


def _all_labels(few: SegmentTuning, height: tuple[float, float], scans: int) -> SegmentTuning:
    return replace(
        few,
        grid=cylinder((480, 360, 32), height, few.grid.origin_ego),
        labels=Labels(),
        semi=Semi(method="supervised"),
        optim=replace(few.optim, steps=40 * scans // 4),
    )


def cylinder(count: tuple[int, int, int], height: tuple[float, float], zero: Triple) -> CylinderGrid:
    """Cells around a LiDAR at `zero`: ρ to 50 m, all around, and heights from and to."""
    low, high = height
    cell = (50 / count[0], 2 * math.pi / count[1], (high - low) / count[2])
    return CylinderGrid((0.0, -math.pi, low), cell, count, zero)
