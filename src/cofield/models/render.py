"""A field and rays to what the rays see."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cofield.grid import Volume
from cofield.models.field import Field
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


def render(field: Field, volume: Volume, rays: Rays, jitter: Float[Tensor, "r s"]) -> Seen:
    """The field along rays, one sample in each interval.

    Args:
        jitter: the place of each sample within its interval, 0 to 1. One half renders without noise.
    """
    edge = intervals(rays, jitter.shape[1])
    step = edge[:, 1:] - edge[:, :-1]
    distance = edge[:, :-1] + jitter * step
    xyz_ego = rays.origin[:, None] + rays.direction[:, None] * distance[..., None]
    density, values = field(volume, xyz_ego, rays.direction, rays.sample)
    weight = ray_weights(density, step)
    opacity = weight.sum(-1)
    return Seen(
        range=(weight * distance).sum(-1) + (1 - opacity) * rays.far,
        opacity=opacity,
        channels={name: composite(weight, value) for name, value in values.items()},
        weight=weight,
        distance=distance,
    )


def intervals(rays: Rays, count: int) -> Float[Tensor, "r e"]:
    """The borders of `count` intervals between a ray's ends, each longer than the last by the same amount.

    The last is about five times as long as the first: near the sensor a pixel is small, and so must a sample be.
    """
    u = torch.linspace(0, 1, count + 1, device=rays.near.device)
    place = (u + 2 * u * u) / 3
    return rays.near[:, None] + (rays.far - rays.near)[:, None] * place
