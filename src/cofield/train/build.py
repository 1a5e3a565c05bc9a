"""Configuration to objects: the one wiring diagram."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cofield.classes import DETECTION, KITTI, LIDARSEG, SEMANTICKITTI
from cofield.draw import Key, counted_seed
from cofield.grid import BoxGrid, CylinderGrid, Grid
from cofield.metrics.kitti import LEAST_IOU
from cofield.models.backbones import PaperCamera, ResNet, Swin
from cofield.models.bev import Bev
from cofield.models.camera import ConvCamera, MaskToken
from cofield.models.centerpoint import GROUPS, KITTI_GROUPS, CenterPoint
from cofield.models.cylinder import Cylinder3D, CylinderHead
from cofield.models.field import Background, Field
from cofield.models.fields import DistanceField, FrustumField
from cofield.models.fuse import AddFuse, AttentionFuse, ConvFuse, Fuse
from cofield.models.lidar import Pillars
from cofield.models.lift import DepthBins, DepthLSS, Lift
from cofield.models.mapseg import MapHead
from cofield.models.pointseg import PointHead
from cofield.models.transfusion import TransFusion
from cofield.models.trunk import CameraBranch, Trunk
from cofield.models.voxelnet import VoxelNet
from cofield.train.config import (
    BoxHead,
    BoxTuning,
    Finetuning,
    MapTuning,
    Model,
    PointTuning,
    Pretraining,
    SegmentTuning,
)
from cofield.train.semi import SemiSegment
from cofield.train.tasks import KittiDetect, MapSegment, NuScenesDetect, PointSegment, Pretrain, Supervised

POINT_CLASSES = {classes.space: classes for classes in (LIDARSEG, SEMANTICKITTI)}


def build_trunk(model: Model, grid: Grid, patch: int) -> Trunk:
    """The encoders that the model names, and what joins them. What is not used is not built."""
    widths: list[int] = []
    camera = lidar = None
    if model.camera != "none":
        encoder = build_camera(model)
        bins = DepthBins(model.bin_lower, model.bin_step, model.bins)
        shown = model.lidar != "none"  # A trunk of cameras alone is one that knows no points.
        if model.lift == "mean":
            width = model.width
            lift = Lift(encoder.width, encoder.stride, grid, width, bins, depth_input=shown)
        else:
            shown, width = shown and model.lift == "depth", model.lift_width
            lift = DepthLSS(encoder.width, encoder.stride, grid, width, bins, depth_input=shown, norm=model.norm)
        camera = CameraBranch(MaskToken(patch), encoder, lift)
        widths.append(width)
    match model.lidar:
        case "pillars":
            lidar = Pillars(grid, model.width, model.lidar_width)
            widths.append(model.width)
        case "voxelnet":
            if not isinstance(grid, BoxGrid):
                raise ValueError("the voxelnet fills a grid of boxes; a cylinder has an encoder of its own")
            height = "collapsed" if grid.count[2] == 1 else "kept"
            shape = (grid, model.lidar_width, model.voxel)
            lidar = VoxelNet(*shape, norm=model.norm, height=height, metres=model.metres)
            widths.append(model.lidar_width)
    return Trunk(camera, lidar, build_fuse(model, tuple(widths), grid), grid)


def build_encoder(model: Model, grid: Grid, patch: int) -> Trunk | Cylinder3D:
    """What the model encodes on a grid: a trunk on boxes, Cylinder3D on a cylinder, whose input is LiDAR alone."""
    if not isinstance(grid, CylinderGrid):
        return build_trunk(model, grid, patch)
    if model.camera != "none":
        raise ValueError(
            f"a cylinder is encoded from LiDAR alone, but model.camera is {model.camera}; with none, cameras still "
            "supervise"
        )
    if model.lidar != "pillars":
        raise ValueError(f"a cylinder has an encoder of its own; model.lidar {model.lidar} fills a grid of boxes only")
    return Cylinder3D(grid, model.width, model.norm, model.lidar_width)


def build_camera(model: Model) -> ConvCamera | PaperCamera:
    """The image encoder."""
    match model.camera:
        case "swin-t":
            backbone = Swin(weights=model.weights, recompute=model.recompute)
        case "resnet50":
            backbone = ResNet(norm=model.norm, weights=model.weights, recompute=model.recompute)
        case _:
            return ConvCamera(model.camera_width)
    return PaperCamera(backbone, model.camera_width, model.norm)


def build_fuse(model: Model, widths: tuple[int, ...], grid: Grid) -> Fuse | ConvFuse | AddFuse | AttentionFuse:
    """What joins the sensors' volumes."""
    match model.fuse:
        case "residual":
            if len(set(widths)) > 1:
                raise ValueError(
                    f"the residual fusion joins volumes of equal width, these have {widths}; use model.fuse conv, "
                    "add or attention"
                )
            return Fuse(model.width, len(widths))
        case "conv":
            return ConvFuse(widths, model.width, grid.count[2] == 1, model.norm)
        case "add":
            return AddFuse(widths, model.width)
        case "attention":
            return AttentionFuse(widths, model.width)


def build_pretraining(config: Pretraining) -> Pretrain:
    """The trunk, the field it is rendered from, and the task that trains both; weights follow from the seed."""
    terms = config.loss.terms()
    painted = terms["colour"] > 0
    shared = painted and config.model.field != "frustum"
    channels = {"colour": 3} if shared or terms["above_colour"] > 0 else {}
    with seeded(config.optim.seed, "weights"):
        trunk = build_encoder(config.model, config.grid, config.mask.patch)
        kind = DistanceField if config.model.field == "distance" else Field
        field = kind(config.model.width, channels, config.model.field_width, directions=config.model.directions)
        background = Background() if painted else None
        frustum = build_frustum(config, trunk) if config.model.field == "frustum" else None
    optim = config.optim.scaled(config.data.batch)
    sampler = config.model.sampler
    return Pretrain(trunk, field, background, config.mask, config.views, config.loss, optim, sampler, frustum)


def build_frustum(config: Pretraining, trunk: Trunk | Cylinder3D) -> FrustumField:
    """What camera rays are rendered from in place of the shared volume, which other views must then train."""
    terms = config.loss.terms()
    if isinstance(trunk, Cylinder3D) or trunk.camera is None:
        raise ValueError("model.field frustum looks into cameras' frusta, but model.camera is none; use density")
    if not any(terms[name] for name in ("colour", "depth")):
        raise ValueError(
            "model.field frustum shows cameras only: give loss.colour or loss.depth a weight, or use density"
        )
    if not any(terms[name] for name in ("range", "free", "height", "above_colour")):
        raise ValueError(
            "with model.field frustum cameras do not see the shared volume, and nothing would train it: give "
            "loss.range, free, height or above_colour a weight, or use density"
        )
    channels = {"colour": 3} if terms["colour"] > 0 else {}
    return FrustumField(trunk.camera.lift.shown, channels, config.model.field_width)


def build_finetuning(config: Finetuning) -> Supervised:
    """The trunk and a fresh head, and the task that trains both."""
    if isinstance(config, SegmentTuning):
        return build_segmentation(config)
    with seeded(config.optim.seed, "weights"):
        trunk = build_trunk(config.model, config.grid, config.patch)
    optim = config.optim.scaled(config.data.batch)
    with seeded(config.optim.seed, "head"):
        match config:
            case MapTuning(head=wish):
                shape = (wish.width, wish.finer, wish.gamma, wish.balance, wish.raster(config.grid), wish.occupied)
                return MapSegment(trunk, MapHead(config.model.width, config.grid, *shape), optim)
            case BoxTuning(head=wish):
                kind = KittiDetect if wish.classes == KITTI.space else NuScenesDetect
                return kind(trunk, build_box_head(wish, config.model.width, config.grid), optim)
            case PointTuning(head=wish):
                head = PointHead(config.model.width, config.grid, POINT_CLASSES[wish.classes], wish.width)
                return PointSegment(trunk, head, optim)
    raise ValueError(f"no task is called {type(config).__name__}")


def build_segmentation(config: SegmentTuning) -> SemiSegment:
    """Points to classes: a trunk on a grid of boxes, Cylinder3D on a cylinder; and the field that its method asks."""
    model, grid, classes = config.model, config.grid, POINT_CLASSES[config.head.classes]
    if model.camera != "none":
        raise ValueError(f"segmentation is inferred from LiDAR alone, but model.camera is {model.camera}; none fits")
    with seeded(config.optim.seed, "weights"):
        trunk = build_encoder(model, grid, config.patch)
    with seeded(config.optim.seed, "head"):
        if isinstance(grid, CylinderGrid):
            head = CylinderHead(len(classes), model.width, model.lidar_width)
        else:
            head = PointHead(model.width, grid, classes, config.head.width)
    field = None
    if config.semi.method == "nerf":
        with seeded(config.optim.seed, "field"):
            field = Field(model.width, {"semantics": len(classes)}, model.field_width)
    optim = config.optim.scaled(config.data.batch)
    return SemiSegment(trunk, head, field, classes, config.semi, config.pseudo, optim)


def build_box_head(wish: BoxHead, channels: int, grid: Grid) -> CenterPoint | TransFusion:
    """The detection head, on its two-dimensional network."""
    bev = Bev(channels, grid, wish.bev_width, wish.bev_depth, wish.bev_out, wish.finer)
    classes, groups, names = DETECTION, GROUPS, DETECTION.names
    if wish.classes == KITTI.space:
        classes, groups, names = KITTI, KITTI_GROUPS, tuple(LEAST_IOU)
    match wish.kind:
        case "centerpoint":
            return CenterPoint(bev, wish.width, groups, classes)
        case "transfusion":
            return TransFusion(bev, wish.width, wish.queries, wish.heads, names, classes)


@contextmanager
def seeded(*keys: Key) -> Iterator[None]:
    """Within it torch's global generator, from which layers draw their first weights, follows from the keys."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted_seed(*keys))
        yield
