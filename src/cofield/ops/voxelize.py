"""Points to voxels: which cells are occupied, and reductions over the points of each."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cofield.grid import Grid
from cofield.ops.sparse import Sites, unravel


@dataclass(frozen=True)
class Voxels:
    """The occupied cells of a batch of grids, and the cell of every point that has one.

    Args:
        cell: the flat index (((b · Z) + z) · Y + y) · X + x of each occupied cell, ascending.
        points: the rows of the point table that lie in some cell.
        slot: for each of them, the place of its cell in `cell`.
    """

    cell: Int[Tensor, "v"]
    points: Int[Tensor, "n"]
    slot: Int[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.cell)

    def highest(self, values: Float[Tensor, "n c"]) -> Float[Tensor, "v c"]:
        """Per cell and channel, the largest value of its points."""
        lowest = values.new_full((self.cell.shape[0], values.shape[1]), -torch.inf)
        return lowest.scatter_reduce(0, self.slot[:, None].expand_as(values), values, "amax")

    def mean(self, values: Float[Tensor, "n c"]) -> Float[Tensor, "v c"]:
        """Per cell and channel, the mean over its points."""
        total = values.new_zeros(self.cell.shape[0], values.shape[1]).index_add(0, self.slot, values)
        return total / self.count()[:, None].to(values.dtype)

    def count(self) -> Int[Tensor, "v"]:
        """The number of points in each cell."""
        return torch.bincount(self.slot, minlength=len(self))

    def at_most(self, limit: int) -> "Voxels":
        """The same cells with the first `limit` points of each, in the order of the point table ("hard").

        Which points are kept, and so a cell's mean, depends on that order once a cell is full; what its cells are does
        not.
        """
        if limit < 1:
            raise ValueError(f"a cell needs room for at least one point, got {limit}")
        order = self.slot.argsort(stable=True)
        count = self.count()
        first = count.cumsum(0) - count
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - first[self.slot[order]]
        kept = rank < limit
        return replace(self, points=self.points[kept], slot=self.slot[kept])

    def sites(self, grid: Grid, batch: int) -> Sites:
        """The occupied cells as the sites of sparse volumes."""
        x, y, z = grid.wraps
        return Sites(unravel(self.cell, grid.shape), grid.shape, batch, (z, y, x))


def voxelize(xyz_ego: Float[Tensor, "p 3"], sample: Int[Tensor, "p"], grid: Grid) -> Voxels:
    """The occupied cells of each sample's grid."""
    cell, inside = grid.cell_of(xyz_ego)
    points = inside.nonzero()[:, 0]
    cells = grid.count[0] * grid.count[1] * grid.count[2]
    occupied, slot = (cell + sample * cells)[points].unique(return_inverse=True)
    return Voxels(occupied, points, slot)


def to_dense(features: Float[Tensor, "v c"], voxels: Voxels, grid: Grid, batch: int) -> Float[Tensor, "b c z y x"]:
    """Voxel features at their places in a volume of zeros."""
    depth, height, width = grid.shape
    flat = features.new_zeros(batch * depth * height * width, features.shape[1])
    flat = flat.index_copy(0, voxels.cell, features)
    return flat.view(batch, depth, height, width, -1).permute(0, 4, 1, 2, 3)


def nearest(place: Int[Tensor, "n"], depth: Float[Tensor, "n"], size: int) -> Float[Tensor, "size"]:
    """A z-buffer: the smallest depth that falls on each place, infinite where none does."""
    return depth.new_full((size,), torch.inf).scatter_reduce(0, place, depth, "amin")


def is_nearest(
    place: Int[Tensor, "n"], depth: Float[Tensor, "n"], size: int, tolerance: float = 0.0
) -> Bool[Tensor, "n"]:
    """Which entries are within `tolerance` of the smallest depth at their place."""
    return depth <= nearest(place, depth, size)[place] + tolerance
