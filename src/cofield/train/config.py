"""What a run is: plain data, written beside its results so that it can be repeated exactly."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from cofield.data.augment import Augment
from cofield.data.fractions import Split
from cofield.grid import BoxGrid
from cofield.models.mask import Masking
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
        validation: held-out frames that the validation loss is measured on.
        store: keep frames on disk once they are read, for sources that compute them.
    """

    source: str = "world:small"
    root: str | None = None
    batch: int = 4
    workers: int = 1
    validation: int = 32
    store: bool = False
    skip_broken: bool = False


@dataclass(frozen=True)
class Model:
    """The trunk and the field.

    Args:
        width: channels of the shared volume.
        camera_width: channels of the image encoder.
        lidar_width: channels of the point encoder.
        bins: depths that the lift tells apart, one metre each from one metre on.
        field_width: of the field's hidden layers.
    """

    camera: Literal["conv", "none"] = "conv"
    lidar: Literal["pillars", "none"] = "pillars"
    width: int = 32
    camera_width: int = 64
    lidar_width: int = 64
    bins: int = 36
    field_width: int = 64


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
        validate_every: steps between validations.
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

    def scaled(self, batch: int) -> "Optim":
        """The same with the learning rate for so many frames a step."""
        return replace(self, rate=self.rate * batch / self.rate_batch, rate_batch=batch) if self.rate_batch else self


@dataclass(frozen=True)
class Pretraining:
    """A whole pre-training run."""

    grid: BoxGrid
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
        trunk: a pre-training run, or a trunk's file; None is from scratch.
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
        split: `frames` takes every k-th frame, `scenes` whole scenes.
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
    """

    width: int = 64
    finer: int = 2
    gamma: float = 2.0
    balance: float = 1.0


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
        queries: of transfusion.
    """

    kind: Literal["centerpoint", "transfusion"] = "centerpoint"
    width: int = 32
    bev_width: int = 64
    bev_depth: int = 2
    bev_out: int = 64
    finer: int = 2
    queries: int = 100


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

    grid: BoxGrid
    task: str = ""
    data: Data = field(default_factory=Data)
    start: Start = field(default_factory=Start)
    labels: Labels = field(default_factory=Labels)
    model: Model = field(default_factory=Model)
    patch: int = 8
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)


@dataclass(frozen=True)
class MapTuning(Finetuning):
    """A whole run of map segmentation."""

    task: Literal["map"] = "map"
    head: Head = field(default_factory=Head)


@dataclass(frozen=True)
class BoxTuning(Finetuning):
    """A whole run of detection."""

    task: Literal["detect"] = "detect"
    head: BoxHead = field(default_factory=BoxHead)


@dataclass(frozen=True)
class PointTuning(Finetuning):
    """A whole run of point segmentation."""

    task: Literal["points"] = "points"
    head: PointClasses = field(default_factory=PointClasses)


Config = Pretraining | Finetuning
_ANY = TypeAdapter(Annotated[Pretraining | MapTuning | BoxTuning | PointTuning, Field(discriminator="task")])


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
