"""Where along a ray a field is asked: evenly, around a known range, where it turned out thick, or where matter may be.

Every choice covers the ray from end to end in stretches with one sample each, and so can be compared with every other.
Only emptiness that is known may be skipped.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cofield.grid import Grid
from cofield.ops.voxelize import voxelize
from cofield.rays import Rays


@dataclass(frozen=True)
class Steps:
    """Stretches of rays in ascending order, and one sample in each; distances in metres from the origin.

    Args:
        length: of what is not skipped between start and end.
    """

    start: Float[Tensor, "r s"]
    end: Float[Tensor, "r s"]
    length: Float[Tensor, "r s"]
    distance: Float[Tensor, "r s"]


def intervals(rays: Rays, count: int) -> Float[Tensor, "r e"]:
    """The borders of `count` intervals between a ray's ends, each longer than the last by the same amount.

    The last is about five times as long as the first: near the sensor a pixel is small, and so must a sample be.
    """
    u = torch.linspace(0, 1, count + 1, device=rays.near.device)
    place = (u + 2 * u * u) / 3
    return rays.near[:, None] + (rays.far - rays.near)[:, None] * place


def even(rays: Rays, jitter: Float[Tensor, "r s"]) -> Steps:
    """The growing intervals themselves.

    Args:
        jitter: the place of each sample within its stretch, 0 to 1; so for all samplers.
    """
    edge = intervals(rays, jitter.shape[1])
    length = edge[:, 1:] - edge[:, :-1]
    return Steps(edge[:, :-1], edge[:, 1:], length, edge[:, :-1] + jitter * length)


def guided(
    rays: Rays, jitter: Float[Tensor, "r s"], known: Float[Tensor, "r"], width: float = 1.0, share: float = 0.5
) -> Steps:
    """A share of the samples within `width` of a known distance, the rest over the whole ray.

    What is known decides where to look, never what is seen. Evaluation knows nothing and looks evenly.

    Args:
        known: infinite or outside the ray where nothing is known.
    """
    inside = (known > rays.near) & (known < rays.far)
    middle = torch.where(inside, known, rays.near)
    low = torch.maximum(middle - width, rays.near)[:, None]
    high = torch.minimum(middle + width, rays.far)[:, None]
    border = torch.cat([intervals(rays, jitter.shape[1]), low, high], 1).sort(1).values
    # The share of evenly placed samples before each border: the inverse of the growth of the intervals.
    part = (border - rays.near[:, None]) / (rays.far - rays.near).clamp(min=1e-6)[:, None]
    evenly = ((1 + 24 * part).sqrt() - 1) / 4
    near = (border.clamp(low, high) - low) / (high - low).clamp(min=1e-6)
    extra = torch.where(inside, share, 0.0)[:, None]
    return by_mass(border, ((1 - extra) * evenly + extra * near).diff(dim=1).clamp(min=0), jitter)


def refined(
    border: Float[Tensor, "r e"], weight: Float[Tensor, "r k"], jitter: Float[Tensor, "r s"], share: float = 0.75
) -> Steps:
    """A share of the samples where a first look found weight, and beside it; the rest evenly over its intervals.

    Args:
        border: of the first look's intervals.
        weight: of its samples. No gradient flows through where one looks.
    """
    weight = weight.detach()
    beside = F.max_pool1d(weight[:, None], 3, stride=1, padding=1)[:, 0]
    total = beside.sum(1, keepdim=True)
    found = torch.where(total > 0, beside / total.clamp(min=1e-12), 1 / weight.shape[1])
    return by_mass(border, share * found + (1 - share) / weight.shape[1], jitter)


def skipping(
    rays: Rays, jitter: Float[Tensor, "r s"], occupied: Bool[Tensor, "b z y x"], grid: Grid, floor: float = 0.0
) -> Steps:
    """Samples only where a ray passes through occupied cells; what lies between is skipped, and stops nothing.

    Args:
        floor: what an empty cell counts of an occupied one. Above 0 nothing is skipped, only looked at less: that is
            what training from hidden inputs needs, where an empty cell may be a hidden one.
    """
    border = intervals(rays, 4 * jitter.shape[1])
    middle = (border[:, 1:] + border[:, :-1]) / 2
    cell, inside = grid.cell_of(rays.origin[:, None] + rays.direction[:, None] * middle[..., None])
    full = inside & occupied.flatten(1)[rays.sample[:, None], cell]
    # What touches an occupied piece counts too: a piece is known by its middle alone.
    full = F.max_pool1d(full.float()[:, None], 3, stride=1, padding=1)[:, 0] > 0
    return by_mass(border, torch.where(full, 1.0, floor), jitter)


def occupancy(
    xyz_ego: Float[Tensor, "p 3"], sample: Int[Tensor, "p"], grid: Grid, batch: int
) -> Bool[Tensor, "b z y x"]:
    """The cells with points in them, and their neighbours."""
    full = torch.zeros(batch, *grid.shape, dtype=torch.bool, device=xyz_ego.device)
    full.view(-1)[voxelize(xyz_ego, sample, grid).cell] = True
    return neighbours(full, grid.wraps)


def neighbours(full: Bool[Tensor, "b z y x"], wraps: tuple[bool, bool, bool]) -> Bool[Tensor, "b z y x"]:
    """The true cells and those that touch one, also across a border that wraps."""
    for axis, wrap in enumerate(wraps):
        dim = 3 - axis
        after, before = full.roll(1, dim), full.roll(-1, dim)
        if not wrap:
            first = torch.arange(full.shape[dim], device=full.device).view([-1 if d == dim else 1 for d in range(4)])
            after, before = after & (first > 0), before & (first < full.shape[dim] - 1)
        full = full | after | before
    return full


def by_mass(border: Float[Tensor, "r e"], mass: Float[Tensor, "r k"], jitter: Float[Tensor, "r s"]) -> Steps:
    """Stretches of equal mass, where mass is spread evenly within each piece between two borders.

    A piece without mass has no sample and no length. A ray without any has stretches of no length at its beginning.
    """
    count = jitter.shape[1]
    before = F.pad(mass.double().cumsum(1), (1, 0))
    open_before = F.pad((border.diff(dim=1) * (mass > 0)).cumsum(1), (1, 0))
    total = before[:, -1:]
    u = torch.arange(count + 1, device=mass.device, dtype=before.dtype) / count

    def at(share: Tensor, right: bool) -> tuple[Tensor, Tensor]:
        """Where that share of the mass lies before, and how much of the way there is not skipped."""
        wanted = total * share
        piece = torch.searchsorted(before, wanted, right=right).clamp(1, mass.shape[1]) - 1
        own = mass.gather(1, piece)
        part = ((wanted - before.gather(1, piece)) / own.clamp(min=1e-30)).clamp(0, 1).to(border.dtype)
        low, high = border.gather(1, piece), border.gather(1, piece + 1)
        way = low + part * (high - low)
        return way, open_before.gather(1, piece) + part * (high - low) * (own > 0)

    start, opened = at(u[:-1].expand(len(mass), -1), right=True)
    end, closed = at(u[1:].expand(len(mass), -1), right=False)
    distance, _ = at((u[:-1] + jitter / count).clamp(max=1.0), right=True)
    some = total > 0
    near = border[:, :1].expand_as(start)
    return Steps(
        start=torch.where(some, start, near),
        end=torch.where(some, end, near),
        length=torch.where(some, (closed - opened).clamp(min=0), 0.0),
        distance=torch.where(some, distance.clamp(start, torch.maximum(start, end)), near),
    )
