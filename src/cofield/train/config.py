"""What a run is: plain data, written beside its results so that it can be repeated exactly."""

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter, ValidationError

from cofield.data.augment import Augment
from cofield.data.fractions import Split
from cofield.grid import BoxGrid, Grid, grid_from_plain
from cofield.models.blocks import Norm
from cofield.models.mask import Masking
from cofield.train.few_labels import PIXELS, Pseudo, Semi
from cofield.train.least import at_least
from cofield.train.losses import Weights
from cofield.train.views import Sampling


@dataclass(frozen=True)
class Data:
    """Where frames come from.

    Args:
        source: world:PRESET[@TOWN], nuscenes[:VERSION], kitti, semantickitti or scribblekitti.
        root: the folder of a data set.
        skip_broken: step over frames that cannot be read, and say which.
        batch: frames per step.
        workers: processes that load frames beside the training.
        validation: held-out frames that a run is measured on; 0 measures nothing.
        store: keep frames on disk once they are read, for sources that compute them.
        sweeps: earlier LiDAR sweeps to add to each frame's own; None is what the source does by itself.
    """

    source: str = "world:small"
    root: str | None = None
    batch: int = 4
    workers: int = 1
    validation: int = 32
    store: bool = False
    skip_broken: bool = False
    sweeps: int | None = None

    def __post_init__(self) -> None:
        at_least("data", self, batch=1, workers=0, validation=0, sweeps=0)


@dataclass(frozen=True)
class Model:
    """The trunk and the field. The defaults are for small worlds; recipes of real data sets say what the papers had.

    On a cylinder the trunk is Cylinder3D: of what is said of encoders it has `norm`, `width` and `lidar_width`.

    Args:
        camera: the image encoder; swin-t and resnet50 are the papers', with LSS-FPN above.
        lidar: the point encoder; voxelnet is SECOND's sparse one.
        weights: of swin-t or resnet50: a local folder or a name on the hub; None starts at random.
        recompute: compute swin-t's and resnet50's layers again on the way back, to save memory.
        norm: of the papers' parts; what the other parts have is always per group.
        lift: means and visible colours (`mean`), or the released lift with or without the visible points' depth. With
            lidar none no lift is told of points.
        lift_width: channels of the released lift.
        fuse: residual (ours), or what the papers compare: conv, add, attention.
        width: channels of the shared volume.
        camera_width: channels of the image features.
        lidar_width: channels of the point features.
        voxel: the voxelnet's cells, in metres.
        metres: tell the voxelnet where points are in metres, as released weights expect, and not between its borders.
        bins: depths that the lift tells apart, `bin_step` metres each from `bin_lower` on.
        field: density, or a signed distance; or, as the released code (r), for camera rays what their own pixels knew
            before any fusion (frustum), and density for the others.
        field_width: of the field's hidden layers.
        directions: whether colour depends on where it is seen from.
        sampler: where rays look: evenly, more around known depths (guided), where a first look found something
            (twice), or more where visible points are (skipping). Guided knows the answer, so measuring looks evenly.
    """

    camera: Literal["conv", "swin-t", "resnet50", "none"] = "conv"
    lidar: Literal["pillars", "voxelnet", "none"] = "pillars"
    weights: str | None = None
    recompute: bool = False
    norm: Norm = "group"
    lift: Literal["mean", "depth", "plain"] = "mean"
    lift_width: int = 80
    fuse: Literal["residual", "conv", "add", "attention"] = "residual"
    width: int = 32
    camera_width: int = 64
    lidar_width: int = 64
    voxel: tuple[float, float, float] = (0.075, 0.075, 0.2)
    metres: bool = False
    bins: int = 36
    bin_lower: float = 1.0
    bin_step: float = 1.0
    field: Literal["density", "distance", "frustum"] = "density"
    field_width: int = 64
    directions: bool = True
    sampler: Literal["even", "guided", "twice", "skipping"] = "even"

    def __post_init__(self) -> None:
        at_least("model", self, lift_width=1, width=1, camera_width=1, lidar_width=1, bins=2, field_width=1)


@dataclass(frozen=True)
class Optim:
    """How a run learns.

    Args:
        rate: the highest learning rate; it rises to it over the `warmup` share of the steps and falls to nothing.
        rate_batch: the frames a step that `rate` is meant for; with another data.batch the rate is scaled in
            proportion. 0 leaves it as it is.
        clip: the gradient's largest norm.
        precision: of the encoders and the field's layers; geometry and rendering are always fp32. `auto` is bf16
            where the machine computes it natively.
        devices: GPUs, or processes on a machine without; each takes its share of every step's frames.
        nodes: machines, each with that many.
        accumulate: equal pieces that a step's frames are taken in, one after the other, to save memory.
        save_every: steps between checkpoints.
        validate_every: steps between validations; the last step has one in any case.
    """

    steps: int = 700
    rate: float = 2e-3
    rate_batch: int = 0
    weight_decay: float = 0.01
    clip: float = 35.0
    warmup: float = 0.3
    precision: Literal["auto", "32", "bf16"] = "auto"
    seed: int = 0
    devices: int = 1
    nodes: int = 1
    accumulate: int = 1
    save_every: int = 200
    validate_every: int = 200

    def __post_init__(self) -> None:
        at_least("optim", self, steps=1, devices=1, nodes=1, accumulate=1, save_every=1, validate_every=1, rate_batch=0)

    def scaled(self, batch: int) -> "Optim":
        """The same with the learning rate for so many frames a step."""
        return replace(self, rate=self.rate * batch / self.rate_batch, rate_batch=batch) if self.rate_batch else self


def _grid(values: Grid | dict[str, object]) -> Grid:
    """A grid of either kind. One that names none is of boxes, as pre-training runs had when they knew no other."""
    if isinstance(values, Grid):
        return values
    try:
        grid = grid_from_plain({"kind": "BoxGrid"} | values)
        return TypeAdapter(type(grid)).validate_python(asdict(grid))
    except (TypeError, ValidationError) as problem:
        raise ValueError(f"{values} is no grid: {problem}") from problem


AnyGrid = Annotated[Grid, PlainValidator(_grid), PlainSerializer(Grid.to_plain)]


@dataclass(frozen=True)
class Pretraining:
    """A whole pre-training run; on a grid of boxes, or of LiDAR alone on a cylinder."""

    grid: AnyGrid
    task: Literal["pretrain"] = "pretrain"
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    mask: Masking = field(default_factory=Masking)
    views: Sampling = field(default_factory=Sampling)
    loss: Weights = field(default_factory=Weights)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)


@dataclass(frozen=True)
class Start:
    """Where the trunk's first weights come from.

    Args:
        trunk: a pre-training run, or a trunk's file, or a released `.pth`; None is from scratch.
        parts: the parts to load (camera, lidar, fuse, camera.encoder, ...), each of which must match; empty is all.
        allow_grid_change: load a trunk that was trained on another grid.
    """

    trunk: str | None = None
    parts: tuple[str, ...] = ()
    allow_grid_change: bool = False


@dataclass(frozen=True)
class Labels:
    """Which frames are labelled.

    Args:
        split: `frames` takes every k-th frame along each sequence, `scenes` whole scenes.
        seed: which of the possible choices.
    """

    fraction: float = 1.0
    split: Split = "frames"
    seed: int = 0


@dataclass(frozen=True)
class Head:
    """The map segmentation head.

    Args:
        finer: raster cells along one cell of the trunk's grid.
        gamma: of the focal loss; 0 is plain cross-entropy.
        balance: the most that a layer's positive cells may weigh against its negative ones.
        cells, cell: a raster of its own: cells along each side of a square around the trunk's zero, and their size in
            metres. 0 cells is the trunk's grid made finer.
        occupied: whether to say where vehicles and pedestrians stand, beside the six layers.
    """

    width: int = 64
    finer: int = 2
    gamma: float = 2.0
    balance: float = 1.0
    cells: int = 0
    cell: float = 0.5
    occupied: bool = True

    def raster(self, grid: BoxGrid) -> BoxGrid | None:
        """The head's own raster on a trunk's grid, None if it is that grid made finer."""
        if not self.cells:
            return None
        flat, reach = grid.flat(), self.cells * self.cell / 2
        lower, cell = (-reach, -reach, flat.lower[2]), (self.cell, self.cell, flat.cell[2])
        return BoxGrid(lower, cell, (self.cells, self.cells, 1), grid.origin_ego)


@dataclass(frozen=True)
class BoxHead:
    """The detection head and the two-dimensional network below it.

    Args:
        kind: centerpoint finds peaks of heat maps, transfusion asks with the surest of them.
        width: channels of the head.
        bev_width: channels of the network's first stage; the second has twice as many.
        bev_depth: convolutions of each of its stages after the first.
        bev_out: channels of its result.
        finer: cells of the heat map along one cell of the trunk's grid.
        queries, heads: of transfusion.
        classes: what is found, and whose evaluation scores it; as the source has them.
    """

    kind: Literal["centerpoint", "transfusion"] = "centerpoint"
    width: int = 32
    bev_width: int = 64
    bev_depth: int = 2
    bev_out: int = 64
    finer: int = 2
    queries: int = 100
    heads: int = 4
    classes: Literal["nuscenes-detection", "kitti"] = "nuscenes-detection"


@dataclass(frozen=True)
class Rare:
    """How rare objects are seen more often. Off, as in the papers.

    Args:
        balanced: repeat frames so that each class is drawn equally often (CBGS).
        paste: boxes of each class that a frame is filled up to, with objects of other labelled frames; for trunks
            without cameras.
        choice: of so many objects of a class.
        least_points: LiDAR returns that such an object has.
    """

    balanced: bool = False
    paste: int = 0
    choice: int = 1000
    least_points: int = 5


@dataclass(frozen=True)
class PointClasses:
    """The point segmentation head.

    Args:
        classes: what the points' labels count; as the source has them.
    """

    width: int = 64
    classes: Literal["nuscenes-lidarseg", "semantickitti"] = "nuscenes-lidarseg"


@dataclass(frozen=True)
class Finetuning:
    """What every fine-tuning run has; each task adds its head."""

    grid: Grid
    task: str = ""
    data: Data = field(default_factory=Data)
    start: Start = field(default_factory=Start)
    labels: Labels = field(default_factory=Labels)
    model: Model = field(default_factory=Model)
    patch: int = 8
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)

    @property
    def map_grid(self) -> BoxGrid | None:
        """Where frames need a map; None if they need none, or the one that their source has by itself."""
        return None


@dataclass(frozen=True)
class MapTuning(Finetuning):
    """A whole run of map segmentation."""

    grid: BoxGrid
    task: Literal["map"] = "map"
    head: Head = field(default_factory=Head)

    @property
    def map_grid(self) -> BoxGrid | None:
        """The head's own raster, as much wider as augmentation turns, shrinks and shifts in."""
        raster = self.head.raster(self.grid)
        if raster is None:
            return None
        change, reach = self.augment, self.head.cells * self.head.cell / 2
        turn = min(change.turn, math.pi / 4)
        # A shift is normal: three deviations are hardly ever left.
        wide = reach * (math.cos(turn) + math.sin(turn)) / change.scale[0] + 3 * change.shift
        cells = self.head.cells + 2 * math.ceil((wide - reach) / self.head.cell - 1e-6)
        return replace(self.head, cells=cells).raster(self.grid)


@dataclass(frozen=True)
class BoxTuning(Finetuning):
    """A whole run of detection."""

    grid: BoxGrid
    task: Literal["detect"] = "detect"
    head: BoxHead = field(default_factory=BoxHead)
    rare: Rare = field(default_factory=Rare)


@dataclass(frozen=True)
class PointTuning(Finetuning):
    """A whole run of point segmentation."""

    grid: BoxGrid
    task: Literal["points"] = "points"
    head: PointClasses = field(default_factory=PointClasses)


@dataclass(frozen=True)
class SegmentTuning(Finetuning):
    """A whole run of LiDAR segmentation from few labels; on a grid of boxes, or with Cylinder3D on a cylinder."""

    grid: AnyGrid
    task: Literal["segment"] = "segment"
    head: PointClasses = field(default_factory=PointClasses)
    semi: Semi = field(default_factory=Semi)
    pseudo: Pseudo = field(default_factory=Pseudo)

    def __post_init__(self) -> None:
        rays_alone = self.semi.method == "nerf" and not self.semi.together and self.pseudo.segmenter != PIXELS
        if rays_alone and self.pseudo.voters > self.pseudo.rays:
            raise ValueError(
                f"no segment would ever be kept: pseudo.voters {self.pseudo.voters} must vote in it, and pseudo.rays "
                f"{self.pseudo.rays} of it are rendered"
            )


Config = Pretraining | Finetuning
_ANY = TypeAdapter(
    Annotated[Pretraining | MapTuning | BoxTuning | PointTuning | SegmentTuning, Field(discriminator="task")]
)


def as_yaml(config: Config) -> str:
    """The configuration as YAML."""
    return yaml.safe_dump(TypeAdapter(type(config)).dump_python(config, mode="json"), sort_keys=False)


def load_config(path: Path) -> Config:
    """The configuration that YAML describes; a field too many or of the wrong type is an error that names it."""
    try:
        return _ANY.validate_python(yaml.safe_load(path.read_text()), extra="forbid")
    except (ValidationError, yaml.YAMLError) as problem:
        raise ValueError(f"{path} is no configuration: {problem}") from problem


def differences(former: Config, now: Config) -> str:
    """Where two configurations differ, as `loss.colour was 10.0 and is 5.0`."""
    was, is_now = flat(former), flat(now)
    names = [name for name in was | is_now if was.get(name) != is_now.get(name)]
    return ", ".join(f"{name} was {was.get(name)} and is {is_now.get(name)}" for name in names)


def flat(config: Config) -> dict[str, object]:
    """Every field of a configuration by its dotted name."""
    found: dict[str, object] = {}
    for group, value in asdict(config).items():
        members = value.items() if isinstance(value, dict) else [("", value)]
        found |= {f"{group}.{name}".rstrip("."): each for name, each in members}
    return found
