"""Other fields than `Field`: a signed distance, and one that looks into each camera's frustum alone."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cofield.grid import Volume
from cofield.models.blocks import Layers, mlp
from cofield.models.field import Field, Values, found_at, looked_at, named, narrowing
from cofield.models.lift import DepthBins, Frusta
from cofield.models.sampler import Steps
from cofield.ops.precision import precise
from cofield.ops.sample import sample
from cofield.rays import Rays


class DistanceField(nn.Module):
    """f(x) -> the signed distance d to the nearest surface, positive outside, and named channels.

    With Φ(d) = 1 / (1 + exp(-k d)) and the distances at a stretch's two ends, what passes it is Φ(d_end) / Φ(d_start)
    where d falls, and everything where it rises:

    optical depth = max(0, log Φ(d_start) - log Φ(d_end)) = max(0, softplus(-k d_end) - softplus(-k d_start))

    That is NeuS's opacity. A density made from the distance at a sample alone, as VolSDF's, must find a thin shell
    with a sample to stop a ray; this sees every change of sign between two samples, however long the stretch, and the
    weight is largest where the distance is zero.

    Args:
        clearance: the distance everywhere at the start, in metres.
        sharpness: k at the start, per metre; it is learned.
        directions: whether channels depend on the direction; without, they are told none.
        most: features that are looked up, as in `Field`.
    """

    def __init__(
        self,
        features: int,
        channels: dict[str, int],
        width: int = 64,
        octaves: int = 4,
        clearance: float = 0.5,
        sharpness: float = 3.0,
        directions: bool = True,
        most: int = 32,
    ) -> None:
        super().__init__()
        self.channels, self.octaves, self.directions = channels, octaves, directions
        self.narrow = narrowing(features, most)
        self.body = Layers(*mlp(min(features, most) + 6 * octaves, width, width), nn.ReLU())
        last = nn.Linear(width, 1)
        nn.init.constant_(last.bias, clearance)
        self.distance = Layers(last)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(sharpness)))
        self.value = mlp(width + 9, width // 2, sum(channels.values())) if channels else None

    def forward(
        self,
        volume: Volume,
        xyz_ego: Float[Tensor, "r s 3"],
        direction: Float[Tensor, "r 3"],
        sample_of: Int[Tensor, "r"],
    ) -> tuple[Float[Tensor, "r s"], Values]:
        """Density and channels at points, as seen by a ray that meets the surface head on: k (1 - Φ(d))."""
        sharpness = self.log_sharpness.exp()
        body = self._body(volume, xyz_ego, sample_of)
        distance = precise(self.distance(body))[..., 0]
        return sharpness * torch.sigmoid(-sharpness * distance), self._values(body, direction)

    def distances(
        self, volume: Volume, xyz_ego: Float[Tensor, "r s 3"], sample_of: Int[Tensor, "r"]
    ) -> Float[Tensor, "r s"]:
        """The signed distance at points, in metres."""
        return precise(self.distance(self._body(volume, xyz_ego, sample_of)))[..., 0]

    def along(self, volume: Volume, rays: Rays, steps: Steps) -> tuple[Float[Tensor, "r s"], Values]:
        """The mean density of every stretch, and the channels at its sample."""
        edge = torch.cat([steps.start, steps.end[:, -1:]], 1)
        distance = self.distances(volume, rays.origin[:, None] + rays.direction[:, None] * edge[..., None], rays.sample)
        optical = optical_depth(distance[:, :-1], distance[:, 1:], self.log_sharpness.exp())
        if self.value is None:
            return optical / steps.length.clamp(min=1e-6), {}
        xyz_ego = rays.origin[:, None] + rays.direction[:, None] * steps.distance[..., None]
        values = self._values(self._body(volume, xyz_ego, rays.sample), rays.direction)
        return optical / steps.length.clamp(min=1e-6), values

    def eikonal(self, volume: Volume, rays: Rays, steps: Steps) -> Float[Tensor, "r s"]:
        """How much faster than one metre per metre the distance changes along each stretch, squared.

        A distance changes by at most the way travelled, and along one line no more can be said of it: it may change
        slower, where the ray passes a surface aside. Finite differences, since sampling has no gradient to positions.
        """
        edge = torch.cat([steps.start, steps.end[:, -1:]], 1)
        distance = self.distances(volume, rays.origin[:, None] + rays.direction[:, None] * edge[..., None], rays.sample)
        way = edge.diff(dim=1)
        slope = distance.diff(dim=1).abs() / way.clamp(min=1e-6)
        return torch.where(way > 1e-6, (slope - 1).clamp(min=0).square(), 0.0)

    def _body(self, volume: Volume, xyz_ego: Tensor, sample_of: Tensor) -> Tensor:
        return self.body(found_at(self.narrow(volume), xyz_ego, sample_of, self.octaves))

    def _values(self, body: Tensor, direction: Tensor) -> Values:
        if self.value is None:
            return {}
        return named(precise(self.value(looked_at(body, direction, self.directions))), self.channels)


class FrustumField(nn.Module):
    """What the released code renders, as an ablation: a pixel's own feature times its own depth, before any fusion.

    Density and channels of a sample follow from the feature around its pixel times the share of its depth, and from
    nothing else: neither place nor direction, no other camera, no LiDAR volume. So only camera rays can be rendered.
    """

    def __init__(self, features: int, channels: dict[str, int], width: int = 64, emptiness: float = -2.0) -> None:
        super().__init__()
        self.channels = channels
        self.body = Layers(*mlp(features, width, width), nn.ReLU())
        last = nn.Linear(width, 1)
        nn.init.constant_(last.bias, emptiness)
        self.density = Layers(last)
        self.value = mlp(width, width // 2, sum(channels.values())) if channels else None

    def along(self, frusta: Frusta, rays: Rays, steps: Steps) -> tuple[Float[Tensor, "r s"], Values]:
        """Density and channels at the samples of camera rays."""
        rows, columns = frusta.share.shape[-2:]
        height, width = rows * frusta.stride, columns * frusta.stride
        view, place = rays.source // (height * width), rays.source % (height * width)
        unit = torch.stack([(place % width + 0.5) / width, (place // width + 0.5) / height], -1)
        unit = torch.cat([unit, torch.full_like(unit[:, :1], 0.5)], 1)
        content = sample(frusta.content.flatten(0, 1)[:, :, None], unit, view)
        share = sample(frusta.share.flatten(0, 1)[:, :, None], unit, view)
        # The share is of one bin among many; times their number it is about 1 for every camera.
        here = at_depth(share, steps.distance * rays.cosine[:, None], frusta.bins) * frusta.bins.count
        body = self.body(here[..., None] * content[:, None])
        density = F.softplus(precise(self.density(body)))[..., 0]
        return density, {} if self.value is None else named(precise(self.value(body)), self.channels)


AnyField = Field | DistanceField | FrustumField


def optical_depth(
    start: Float[Tensor, "*n"], end: Float[Tensor, "*n"], sharpness: Float[Tensor, ""]
) -> Float[Tensor, "*n"]:
    """What a stretch between two signed distances stops: 1 - exp(-this) is NeuS's opacity."""
    return (F.softplus(-sharpness * end) - F.softplus(-sharpness * start)).clamp(min=0)


def at_depth(share: Float[Tensor, "r d"], depth: Float[Tensor, "r s"], bins: DepthBins) -> Float[Tensor, "r s"]:
    """The share at depths along the camera's axis, interpolated between the bins' centres; 0 outside the bins."""
    place = (depth - bins.lower) / bins.step - 0.5
    below = place.floor().clamp(0, bins.count - 2)
    part = (place - below).clamp(0, 1)
    index = below.long()
    value = share.gather(1, index) * (1 - part) + share.gather(1, index + 1) * part
    return torch.where((depth >= bins.lower) & (depth < bins.upper), value, 0.0)


def within(rays: Rays, bins: DepthBins) -> Rays:
    """Camera rays from the first bin to the end of the last: one object says where bins are and where samples."""
    return replace(rays, near=bins.lower / rays.cosine, far=bins.upper / rays.cosine)
