"""A field and rays to what the rays see."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cofield.grid import Volume
from cofield.models.field import Field
from cofield.models.fields import AnyField, DistanceField, FrustumField
from cofield.models.lift import Frusta
from cofield.models.sampler import Steps, even, intervals, neighbours, refined
from cofield.ops.composite import composite, ray_weights
from cofield.rays import Rays


@dataclass(frozen=True)
class Seen:
    """What rays see.

    Args:
        range: the mean distance of what is seen, in metres; a ray that sees nothing ends where the grid does.
        opacity: the share of the ray that is stopped, 0 to 1.
        channels: integrals of the field's channels, nothing added for the share that passes.
        weight: of every sample.
        distance: of every sample along its ray.
    """

    range: Float[Tensor, "r"]
    opacity: Float[Tensor, "r"]
    channels: dict[str, Float[Tensor, "r c"]]
    weight: Float[Tensor, "r s"]
    distance: Float[Tensor, "r s"]


def joined(pieces: list[Seen]) -> Seen:
    """What several groups of rays see, as one."""
    return Seen(
        range=torch.cat([piece.range for piece in pieces]),
        opacity=torch.cat([piece.opacity for piece in pieces]),
        channels={name: torch.cat([piece.channels[name] for piece in pieces]) for name in pieces[0].channels},
        weight=torch.cat([piece.weight for piece in pieces]),
        distance=torch.cat([piece.distance for piece in pieces]),
    )


def render(
    field: AnyField, volume: Volume | Frusta, rays: Rays, jitter: Float[Tensor, "r s"], fixed: bool = False
) -> Seen:
    """The field along rays, one sample in each of the growing intervals.

    Args:
        jitter: the place of each sample within its interval, 0 to 1. One half renders without noise.
        fixed: densities are taken as they are: an error of what is seen then teaches channels alone.
    """
    return look(field, volume, rays, even(rays, jitter), fixed)


def look(field: AnyField, volume: Volume | Frusta, rays: Rays, steps: Steps, fixed: bool = False) -> Seen:
    """The field along rays, at the samples that a sampler chose."""
    density, values = _along(field, volume, rays, steps)
    density = density.detach() if fixed else density
    weight = ray_weights(density, steps.length)
    opacity = weight.sum(-1)
    return Seen(
        range=(weight * steps.distance).sum(-1) + (1 - opacity) * rays.far,
        opacity=opacity,
        channels={name: composite(weight, value) for name, value in values.items()},
        weight=weight,
        distance=steps.distance,
    )


def astray(seen: Seen, rays: Rays, range: Float[Tensor, "r"]) -> Float[Tensor, "r"]:
    """How far from a range is what rays see, in metres: the mean over all they see, and not of their mean."""
    away = (seen.distance - range[:, None]).abs()
    return (seen.weight * away).sum(-1) + (1 - seen.opacity) * (rays.far - range).abs()


def look_twice(field: AnyField, volume: Volume | Frusta, rays: Rays, jitter: Float[Tensor, "r s"], first: int) -> Seen:
    """A look at `first` even samples without gradient says where to take the samples of the second."""
    with torch.no_grad():
        coarse = render(field, volume, rays, jitter.new_full((len(rays), first), 0.5))
    return look(field, volume, rays, refined(intervals(rays, first), coarse.weight, jitter))


def thick(field: Field | DistanceField, volume: Volume, threshold: float) -> Bool[Tensor, "b z y x"]:
    """The cells whose density at the centre is above a threshold, per metre, and their neighbours."""
    xyz_ego = volume.grid.centres(volume.features.device).flatten(0, 2)
    frames = torch.arange(len(volume.features), device=xyz_ego.device)
    down = xyz_ego.new_tensor([0.0, 0.0, -1.0]).expand(len(frames), 3)
    with torch.no_grad():
        density, _ = field(volume, xyz_ego.expand(len(frames), -1, 3), down, frames)
    return neighbours((density > threshold).view(-1, *volume.grid.shape), volume.grid.wraps)


def _along(
    field: AnyField, volume: Volume | Frusta, rays: Rays, steps: Steps
) -> tuple[Float[Tensor, "r s"], dict[str, Float[Tensor, "r s c"]]]:
    """The density of every stretch, that of its sample where the field knows no better, and channels."""
    match field, volume:
        case Field(), Volume():
            xyz_ego = rays.origin[:, None] + rays.direction[:, None] * steps.distance[..., None]
            return field(volume, xyz_ego, rays.direction, rays.sample)
        case DistanceField(), Volume():
            return field.along(volume, rays, steps)
        case FrustumField(), Frusta():
            return field.along(volume, rays, steps)
    raise ValueError(f"a {type(field).__name__} cannot be rendered from {type(volume).__name__}")
