"""Which rays are cast in a training step, and what each of them should see.

Targets come from the whole batch, hidden parts included, and say by themselves where they are valid:
nothing that was rendered decides what counts.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cofield.draw import Key
from cofield.frame import Batch, Hidden
from cofield.grid import Grid
from cofield.models.fields import within
from cofield.models.lift import DepthBins
from cofield.ops.voxelize import is_nearest, nearest, voxelize
from cofield.rays import Rays, choose
from cofield.train.least import at_least


@dataclass(frozen=True)
class Sampling:
    """Rays per frame, and samples per ray.

    Args:
        pixels: camera rays, over all cameras.
        guided: the share of them through pixels that have a LiDAR depth; the rest are drawn from all pixels.
        beams: LiDAR rays.
        above: bird's-eye rays.
        samples: along each ray.
        each: count pixels per camera; every camera then has as many rays, drawn for it alone.
    """

    pixels: int = 256
    guided: float = 0.25
    beams: int = 256
    above: int = 256
    samples: int = 48
    each: bool = False

    def __post_init__(self) -> None:
        at_least("views", self, pixels=1, beams=1, above=1, samples=2)


@dataclass(frozen=True)
class Target:
    """What rays should see, for those where that is known.

    Args:
        hidden: which of it the encoders were not shown.
    """

    value: Float[Tensor, "r *c"]
    valid: Bool[Tensor, "r"]
    hidden: Bool[Tensor, "r"]

    def select(self, which: slice) -> "Target":
        """The targets at the given places."""
        return Target(self.value[which], self.valid[which], self.hidden[which])


@dataclass(frozen=True)
class View:
    """Rays of one kind, what they should see, and where on each ray's intervals the samples lie.

    Args:
        camera: of camera rays the flat index into [b n].
        place: of camera rays where in the image they are, 0 to 1 from left to right and from top to bottom.
    """

    rays: Rays
    targets: dict[str, Target]
    jitter: Float[Tensor, "r s"]
    camera: Int[Tensor, "r"] | None = None
    place: Float[Tensor, "r 2"] | None = None

    def known(self) -> Float[Tensor, "r"]:
        """Where along each ray something is known to be, in metres, infinite where nothing is: for guided sampling."""
        far = torch.full_like(self.rays.near, torch.inf)
        for name, target in self.targets.items():
            match name:
                case "range":
                    place = target.value
                case "depth":
                    place = target.value / self.rays.cosine
                case "height":
                    place = self.rays.origin[:, 2] - target.value
                case _:
                    continue
            far = torch.where(target.valid, place, far)
        return far

    def pieces(self, size: int) -> Iterator["View"]:
        """The view in groups of up to `size` rays."""
        for start in range(0, max(1, len(self.rays)), size):
            part = slice(start, start + size)
            targets = {name: t.select(part) for name, t in self.targets.items()}
            camera = None if self.camera is None else self.camera[part]
            place = None if self.place is None else self.place[part]
            yield View(self.rays.select(part), targets, self.jitter[part], camera, place)


def camera_view(
    batch: Batch, hidden: Hidden, sampling: Sampling, grid: Grid, seed: Key | None, bins: DepthBins | None = None
) -> View:
    """Camera pixels: their colour, and the depth of the nearest keyframe return in them.

    Without a seed every valid pixel is taken and nothing is random. Of frames without cameras there is no ray.

    Args:
        bins: where rays begin and end; without them, where the grid does.
    """
    keyframe = batch.select_points(batch.points.age == 0)
    seen = keyframe.seen_points()
    depth = nearest(seen.pixel, seen.depth, batch.valid.numel())
    known = depth.isfinite()
    valid = batch.valid.flatten()
    height, width = batch.valid.shape[-2:]
    if seed is None or not len(valid):
        pixels = valid.nonzero()[:, 0]
    else:
        guided = round(sampling.pixels * sampling.guided)
        size = height * width if sampling.each else batch.valid[0].numel()
        pixels = _draw(batch, valid, size, sampling.pixels - guided, seed, "pixels")
        pixels = torch.cat([pixels, _draw(batch, valid & known, size, guided, seed, "guided")])
    colour = batch.images.permute(0, 1, 3, 4, 2).reshape(-1, 3)[pixels]
    masked = hidden.pixels(height, width).flatten()[pixels]
    rays = Rays.from_cameras(batch, pixels, grid)
    rays = rays if bins is None else within(rays, bins)
    near, far = rays.near * rays.cosine, rays.far * rays.cosine
    inside = known[pixels] & (depth[pixels] > near) & (depth[pixels] < far)
    return View(
        rays,
        {
            "colour": Target(colour, torch.ones_like(masked), masked),
            "depth": Target(depth[pixels].nan_to_num(posinf=0.0), inside, masked),
        },
        jitter_of(batch, rays, sampling.samples, seed, "pixels"),
        camera=pixels // (height * width),
        place=torch.stack([(pixels % width + 0.5) / width, (pixels // width % height + 0.5) / height], -1),
    )


def beam_view(batch: Batch, hidden: Hidden, sampling: Sampling, grid: Grid, seed: Key | None) -> View:
    """LiDAR beams of all sweeps: the range of returns inside the grid, emptiness up to those beyond it."""
    eligible = torch.ones(len(batch.points), dtype=torch.bool, device=batch.sample.device)
    which = eligible.nonzero()[:, 0]
    if seed is not None:
        which = _draw(batch, eligible, batch.offsets, sampling.beams, seed, "beams")
    rays = Rays.from_lidar(batch, which, grid)
    reach = (batch.points.xyz_ego[which] - rays.origin).norm(dim=-1)
    crosses = rays.far > rays.near
    inside = crosses & (reach < rays.far) & (reach > rays.near)
    masked = hidden.points[which]
    return View(
        rays,
        {
            "range": Target(reach, inside, masked),
            "free": Target(torch.zeros_like(reach), crosses & (reach >= rays.far), masked),
        },
        jitter_of(batch, rays, sampling.samples, seed, "beams"),
    )


def above_view(batch: Batch, hidden: Hidden, sampling: Sampling, grid: Grid, seed: Key | None) -> View:
    """Columns of the grid from above: the height of the highest return, and the colour a camera gives it."""
    flat = grid.flat()
    columns = len(batch) * flat.count[0] * flat.count[1]
    inside = voxelize(batch.points.xyz_ego, batch.sample, flat)
    cell, top = inside.cell[inside.slot], batch.points.xyz_ego[inside.points, 2]
    height = -nearest(cell, -top, columns)
    colour, coloured = _seen_colour(batch, cell, inside.points, top, columns)
    known = height.isfinite()
    if seed is None:
        cells = torch.arange(columns, device=known.device)
    else:
        cells = _draw(batch, known, columns // len(batch), sampling.above, seed, "above")
    # A column counts as hidden when all its points were.
    visible = torch.zeros(columns, dtype=torch.bool, device=known.device)
    visible[cell[~hidden.points[inside.points]]] = True
    masked = ~visible[cells]
    rays = Rays.from_above(cells, grid)
    return View(
        rays,
        {
            "height": Target(height.nan_to_num(posinf=0.0, neginf=0.0)[cells], known[cells], masked),
            "above_colour": Target(colour[cells], coloured[cells], masked),
        },
        jitter_of(batch, rays, sampling.samples, seed, "above"),
    )


def _seen_colour(
    batch: Batch, cell: Int[Tensor, "n"], rows: Int[Tensor, "n"], top: Float[Tensor, "n"], columns: int
) -> tuple[Float[Tensor, "m 3"], Bool[Tensor, "m"]]:
    """For every column the colour of its highest point that some camera sees, and whether there is one."""
    seen = batch.seen_points()
    front = is_nearest(seen.pixel, seen.depth, batch.valid.numel(), tolerance=0.5)
    point, pixel = seen.point[front], seen.pixel[front]
    column = torch.full((len(batch.points),), -1, device=cell.device)
    column[rows] = cell
    height = batch.points.xyz_ego.new_full((len(batch.points),), -torch.inf)
    height[rows] = top
    held = column[point] >= 0
    point, pixel = point[held], pixel[held]
    best = is_nearest(column[point], -height[point], columns)
    colours = batch.images.permute(0, 1, 3, 4, 2).reshape(-1, 3)[pixel[best]]
    # Several cameras, or points of equal height: their mean, so that no order decides.
    total = colours.new_zeros(columns, 3).index_add(0, column[point[best]], colours)
    count = torch.bincount(column[point[best]], minlength=columns)
    return total / count.clamp(min=1)[:, None], count > 0


def _draw(
    batch: Batch,
    eligible: Bool[Tensor, "n"],
    size: int | Int[Tensor, "b1"],
    count: int,
    seed: Key,
    purpose: str,
) -> Int[Tensor, "r"]:
    """`count` eligible places of each frame; `size` is the places per frame, or where each frame's begin.

    A smaller size parts frames, into cameras say, of which each has `count` places and draws of its own.
    """
    bounds = list(range(0, len(eligible) + 1, size)) if isinstance(size, int) else size.tolist()
    parts = (len(bounds) - 1) // len(batch)
    chosen = []
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        own = (purpose,) if parts == 1 else (purpose, index % parts)
        chosen.append(choose(eligible[start:end], count, batch.draw(index // parts, seed, *own)) + start)
    return torch.cat(chosen)


def jitter_of(batch: Batch, rays: Rays, samples: int, seed: Key | None, purpose: str) -> Float[Tensor, "r s"]:
    """The place of every sample within its stretch, drawn for each frame alone; without a seed the middle."""
    if seed is None:
        return rays.near.new_full((len(rays), samples), 0.5)
    jitter = torch.zeros(len(rays), samples)
    which = rays.sample.cpu()
    for b in range(len(batch)):
        mine = which == b
        jitter[mine] = torch.rand(int(mine.sum()), samples, generator=batch.draw(b, seed, purpose, "jitter"))
    return jitter.to(rays.near.device)
