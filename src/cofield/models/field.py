"""A volume of features as a field: density and named channels at any point."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cofield.frame import Batch, Hidden
from cofield.grid import Volume
from cofield.models.blocks import Layers, mlp
from cofield.ops.precision import precise
from cofield.ops.sample import sample

# How a channel's raw value becomes what it stands for. Channels without an entry are used as they are.
ACTIVATIONS = {"colour": torch.sigmoid, "semantics": partial(torch.softmax, dim=-1)}
Values = dict[str, Float[Tensor, "r s c"]]
FIXED = ("semantics",)  # what a place is does not depend on where it is seen from


class Field(nn.Module):
    """f(x, d) -> density and named channels.

    The feature at x, interpolated, and the encoded place of x in the grid give the density and the classes of
    `semantics`; with the encoded direction they give the other channels. Density is a softplus with a bias, so an
    empty ray still has a gradient.

    Args:
        channels: the width of each named channel, colour 3 for instance; semantics is one probability per class.
        emptiness: the density's bias at the start; -2 makes a metre of fresh field 12 % opaque.
        directions: whether the viewed channels depend on the direction; without, they are told none.
        most: features that are looked up. A wider volume is first mixed to so many: the same at every place, so it
            may come before the interpolation, where it is cheap.
    """

    def __init__(
        self,
        features: int,
        channels: dict[str, int],
        width: int = 64,
        octaves: int = 4,
        emptiness: float = -2.0,
        directions: bool = True,
        most: int = 32,
    ) -> None:
        super().__init__()
        self.channels, self.octaves, self.directions = channels, octaves, directions
        self.narrow = narrowing(features, most)
        self.body = Layers(*mlp(min(features, most) + 6 * octaves, width, width), nn.ReLU())
        last = nn.Linear(width, 1)
        nn.init.constant_(last.bias, emptiness)
        self.density = Layers(last)
        self.fixed = {name: size for name, size in channels.items() if name in FIXED}
        self.viewed = {name: size for name, size in channels.items() if name not in FIXED}
        self.value = mlp(width + 9, width // 2, sum(self.viewed.values())) if self.viewed else None
        self.kind = mlp(width, width // 2, sum(self.fixed.values())) if self.fixed else None

    def forward(
        self,
        volume: Volume,
        xyz_ego: Float[Tensor, "r s 3"],
        direction: Float[Tensor, "r 3"],
        sample_of: Int[Tensor, "r"],
    ) -> tuple[Float[Tensor, "r s"], Values]:
        """Density and channels at samples along rays."""
        body = self.body(found_at(self.narrow(volume), xyz_ego, sample_of, self.octaves))
        density = F.softplus(precise(self.density(body)))[..., 0]
        values: Values = {}
        if self.value is not None:
            values |= named(precise(self.value(looked_at(body, direction, self.directions))), self.viewed)
        if self.kind is not None:
            values |= named(precise(self.kind(body)), self.fixed)
        return density, values


class Narrow(nn.Module):
    """A volume of fewer features, each a mixture of all."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.mix = Layers(nn.Conv3d(features, width, 1))

    def forward(self, volume: Volume) -> Volume:
        return Volume(self.mix(volume.features).to(volume.features.dtype), volume.grid)


def narrowing(features: int, most: int) -> nn.Module:
    """What makes a volume at most so wide; nothing where it already is."""
    return Narrow(features, most) if features > most else nn.Identity()


class Background(nn.Module):
    """The colour behind everything: of the direction, of the place in the image, and of the camera's light.

    The paper's field ends at the grid; sky and far houses do not. The light is the mean visible colour of a few large
    parts of the image: enough for weather and skyline, too little for an image to be painted past the field.
    """

    rows, columns = 3, 4

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = mlp(9 + 8 + 3 * self.rows * self.columns, width, width, 3)

    def forward(
        self, direction: Float[Tensor, "r 3"], place: Float[Tensor, "r 2"], light: Float[Tensor, "r k"]
    ) -> Float[Tensor, "r 3"]:
        known = [squares(direction), waves(place, 2), light * 2 - 1]
        return torch.sigmoid(precise(self.layers(torch.cat(known, -1))))


def light(seen: Batch, hidden: Hidden | None) -> Float[Tensor, "b n k"]:
    """The mean visible colour of 3 × 4 parts of every image; of the whole image where a part is hidden altogether."""
    if not seen.images.shape[1]:
        return seen.images.new_zeros(len(seen), 0, 3 * Background.rows * Background.columns)
    visible = seen.valid if hidden is None else seen.valid & ~hidden.pixels(*seen.images.shape[-2:])
    known = visible.flatten(0, 1)[:, None].to(seen.images.dtype)
    both = torch.cat([seen.images.flatten(0, 1) * known, known], 1)
    parts = F.adaptive_avg_pool2d(both, (Background.rows, Background.columns)).flatten(2)
    whole = both.mean((-2, -1))[..., None]
    usual = torch.where(whole[:, 3:] > 0, whole[:, :3] / whole[:, 3:].clamp(min=1e-6), 0.5)
    mean = torch.where(parts[:, 3:] > 0, parts[:, :3] / parts[:, 3:].clamp(min=1e-6), usual)
    return mean.flatten(1).unflatten(0, seen.images.shape[:2])


def found_at(
    volume: Volume, xyz_ego: Float[Tensor, "r s 3"], sample_of: Int[Tensor, "r"], octaves: int
) -> Float[Tensor, "r s c"]:
    """The volume's feature at samples along rays, and their encoded place."""
    unit = volume.grid.to_unit(xyz_ego)
    which = sample_of[:, None].expand(unit.shape[:2]).flatten()
    feature = sample(volume.features, unit.flatten(0, 1), which, volume.grid.wraps).unflatten(0, unit.shape[:2])
    return torch.cat([feature, place_waves(unit, volume.grid.wraps, octaves)], -1)


def looked_at(
    body: Float[Tensor, "r s c"], direction: Float[Tensor, "r 3"], directions: bool
) -> Float[Tensor, "r s d"]:
    """What is known of samples, and the direction they are seen from; no direction if directions do not matter."""
    seen = squares(direction if directions else torch.zeros_like(direction))
    return torch.cat([body, seen[:, None].expand(*body.shape[:2], -1).to(body.dtype)], -1)


def named(raw: Float[Tensor, "r s c"], channels: dict[str, int]) -> Values:
    """Channels by name, each as what it stands for."""
    parts = zip(channels, raw.split(list(channels.values()), -1), strict=True)
    return {name: ACTIVATIONS[name](part) if name in ACTIVATIONS else part for name, part in parts}


def place_waves(unit: Float[Tensor, "*n 3"], wraps: tuple[bool, bool, bool], octaves: int) -> Float[Tensor, "*n c"]:
    """The waves of a place in a grid. Around an axis that wraps the slowest fits once: its two ends are one place."""
    return waves(unit * unit.new_tensor([2.0 if wrap else 1.0 for wrap in wraps]), octaves)


def waves(unit: Float[Tensor, "*n a"], octaves: int) -> Float[Tensor, "*n c"]:
    """Sines and cosines of places 0..1, at `octaves` frequencies each double the last."""
    turns = unit[..., None] * (math.pi * 2.0 ** torch.arange(octaves, device=unit.device))
    return torch.cat([turns.sin(), turns.cos()], -1).flatten(-2)


def squares(direction: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 9"]:
    """A direction and its second-order products: all a smooth dependence on direction needs."""
    x, y, z = direction.unbind(-1)
    return torch.stack([x, y, z, x * y, y * z, z * x, x * x, y * y, z * z], -1)
