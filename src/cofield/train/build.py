"""Configuration to objects: the one wiring diagram."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cofield.classes import LIDARSEG, SEMANTICKITTI
from cofield.draw import Key, counted_seed
from cofield.grid import Grid
from cofield.models.bev import Bev
from cofield.models.camera import ConvCamera, MaskToken
from cofield.models.centerpoint import CenterPoint
from cofield.models.field import Background, Field
from cofield.models.fuse import Fuse
from cofield.models.lidar import Pillars
from cofield.models.lift import DepthBins, Lift
from cofield.models.mapseg import MapHead
from cofield.models.pointseg import PointHead
from cofield.models.transfusion import TransFusion
from cofield.models.trunk import CameraBranch, Trunk
from cofield.train.config import BoxHead, BoxTuning, Finetuning, MapTuning, Model, PointTuning, Pretraining
from cofield.train.tasks import Detect, MapSegment, PointSegment, Pretrain, Supervised


def build_trunk(model: Model, grid: Grid, patch: int) -> Trunk:
    """The encoders that the model names, and what joins them. What is not used is not built."""
    match model.camera:
        case "none":
            camera = None
        case "conv":
            encoder = ConvCamera(model.camera_width)
            lift = Lift(encoder.width, encoder.stride, grid, model.width, DepthBins(count=model.bins))
            camera = CameraBranch(MaskToken(patch), encoder, lift)
    match model.lidar:
        case "none":
            lidar = None
        case "pillars":
            lidar = Pillars(grid, model.width, model.lidar_width)
    return Trunk(camera, lidar, Fuse(model.width, sum(branch is not None for branch in (camera, lidar))), grid)


def build_pretraining(config: Pretraining) -> Pretrain:
    """The trunk, the field it is rendered from, and the task that trains both; weights follow from the seed."""
    terms = config.loss.terms()
    painted = terms["colour"] > 0
    channels = {"colour": 3} if painted or terms["above_colour"] > 0 else {}
    with seeded(config.optim.seed, "weights"):
        trunk = build_trunk(config.model, config.grid, config.mask.patch)
        field = Field(config.model.width, channels, config.model.field_width)
        background = Background() if painted else None
    optim = config.optim.scaled(config.data.batch)
    return Pretrain(trunk, field, background, config.mask, config.views, config.loss, optim)


def build_finetuning(config: Finetuning) -> Supervised:
    """The trunk and a fresh head, and the task that trains both."""
    with seeded(config.optim.seed, "weights"):
        trunk = build_trunk(config.model, config.grid, config.patch)
    optim = config.optim.scaled(config.data.batch)
    with seeded(config.optim.seed, "head"):
        match config:
            case MapTuning(head=wish):
                head = MapHead(config.model.width, config.grid, wish.width, wish.finer, wish.gamma, wish.balance)
                return MapSegment(trunk, head, optim)
            case BoxTuning(head=wish):
                return Detect(trunk, build_box_head(wish, config.model.width, config.grid), optim)
            case PointTuning(head=wish):
                spaces = {classes.space: classes for classes in (LIDARSEG, SEMANTICKITTI)}
                head = PointHead(config.model.width, config.grid, spaces[wish.classes], wish.width)
                return PointSegment(trunk, head, optim)
    raise ValueError(f"no task is called {type(config).__name__}")


def build_box_head(wish: BoxHead, channels: int, grid: Grid) -> CenterPoint | TransFusion:
    """The detection head, on its two-dimensional network."""
    bev = Bev(channels, grid, wish.bev_width, wish.bev_depth, wish.bev_out, wish.finer)
    match wish.kind:
        case "centerpoint":
            return CenterPoint(bev, wish.width)
        case "transfusion":
            return TransFusion(bev, wish.width, wish.queries)


@contextmanager
def seeded(*keys: Key) -> Iterator[None]:
    """Within it torch's global generator, from which layers draw their first weights, follows from the keys."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted_seed(*keys))
        yield
