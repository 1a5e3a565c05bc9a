"""Rays through a grid: from camera pixels, along LiDAR beams, and from above.

Which pixels, beams or cells is the caller's choice; a ray remembers it as `source`, the flat place in
the tensor it was chosen from, so that a target is a gather: `batch.images[...].flatten()[source]`.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cofield.frame import Batch
from cofield.geometry import rotate, transform
from cofield.grid import Grid


@dataclass(frozen=True)
class Rays:
    """Half-lines in the ego frame of their sample.

    Args:
        direction: of unit length, so distances along a ray are metres.
        near, far: where the ray enters and leaves the grid; equal where it misses.
        cosine: of the angle to the camera's axis: z-depth is range times cosine. One for other rays.
        sample: the frame of the batch.
        source: the flat index of the pixel in [b n h w], the point in [p], or the cell in [b y x].
    """

    origin: Float[Tensor, "r 3"]
    direction: Float[Tensor, "r 3"]
    near: Float[Tensor, "r"]
    far: Float[Tensor, "r"]
    cosine: Float[Tensor, "r"]
    sample: Int[Tensor, "r"]
    source: Int[Tensor, "r"]

    def __len__(self) -> int:
        return len(self.origin)

    def select(self, which: slice | Int[Tensor, "n"] | Bool[Tensor, "r"]) -> "Rays":
        """The rays at the given places."""
        return Rays(*(getattr(self, field.name)[which] for field in fields(self)))

    @classmethod
    def from_cameras(cls, batch: Batch, pixels: Int[Tensor, "r"], grid: Grid) -> "Rays":
        """The rays through the centres of pixels, given as flat indices into [b n h w]."""
        cameras, height, width = batch.valid.shape[1:]
        view, place = pixels // (height * width), pixels % (height * width)
        uv1 = torch.stack([place % width + 0.5, place // width + 0.5, torch.ones_like(place)], -1)
        cam_T_pix = torch.linalg.inv(batch.pix_T_cam).flatten(0, 1)[view]
        ego_T_cam = batch.ego_T_cam.flatten(0, 1)[view]
        direction = F.normalize(transform(cam_T_pix, uv1[:, None]), dim=-1)
        return cls._crossing(
            ego_T_cam[:, :3, 3],
            rotate(ego_T_cam, direction)[:, 0],
            cosine=direction[:, 0, 2],
            sample=view // cameras,
            source=pixels,
            grid=grid,
        )

    @classmethod
    def from_lidar(cls, batch: Batch, which: Int[Tensor, "r"], grid: Grid) -> "Rays":
        """The beams of LiDAR returns, each from where its own sweep stood."""
        points = batch.points.select(which)
        origin = batch.origins_ego[points.origin]
        direction = F.normalize(points.xyz_ego - origin, dim=-1)
        return cls._crossing(origin, direction, torch.ones_like(origin[:, 0]), batch.sample[which], which, grid)

    @classmethod
    def from_above(cls, cells: Int[Tensor, "r"], grid: Grid) -> "Rays":
        """Vertical rays down the middle of a grid's columns, given as flat indices into [b y x]."""
        columns, height = grid.count[0] * grid.count[1], grid.cell[2] * grid.count[2]
        origin = grid.flat().centres(cells.device).flatten(0, 2)[cells % columns]
        up = origin.new_tensor([0.0, 0.0, 1.0])
        zero = torch.zeros_like(origin[:, 0])
        return cls(
            origin + up * (height / 2),
            (-up).expand_as(origin),
            near=zero,
            far=zero + height,
            cosine=zero + 1,
            sample=cells // columns,
            source=cells,
        )

    @classmethod
    def _crossing(
        cls, origin: Tensor, direction: Tensor, cosine: Tensor, sample: Tensor, source: Tensor, grid: Grid
    ) -> "Rays":
        near, far = grid.span(origin, direction)
        return cls(origin, direction, near, far, cosine, sample, source)


def choose(eligible: Bool[Tensor, "n"], count: int, generator: torch.Generator) -> Int[Tensor, "r"]:
    """Up to `count` different places where `eligible` holds, every subset equally likely, in ascending order."""
    places = eligible.nonzero()[:, 0]
    if len(places) <= count:
        return places
    # On the CPU, whatever the device: the draw must not depend on the machine.
    chosen = torch.randperm(len(places), generator=generator)[:count].sort().values
    return places[chosen.to(places.device)]
