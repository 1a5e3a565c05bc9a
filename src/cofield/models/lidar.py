"""Points to a volume."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cofield.frame import Batch
from cofield.grid import Grid, Volume
from cofield.models.blocks import Layers, Residual, mlp, norm
from cofield.ops.precision import precise
from cofield.ops.voxelize import to_dense, voxelize


class Unfold(nn.Conv2d):
    """A plane's features to those of `heights` cells above each other: a 1×1 convolution as one matrix product.

    Each cell's channels lie side by side in memory, as whoever looks the volume up wants them.
    """

    def __init__(self, channels: int, width: int, heights: int) -> None:
        super().__init__(channels, width * heights, 1)
        self.heights = heights

    def forward(self, input: Tensor) -> Tensor:
        width = self.out_channels // self.heights
        weight = self.weight.flatten(1).unflatten(0, (width, self.heights)).transpose(0, 1).flatten(0, 1)
        assert self.bias is not None
        bias = self.bias.unflatten(0, (width, self.heights)).T.flatten()
        cells = F.linear(input.movedim(1, -1), weight, bias).unflatten(-1, (self.heights, width))
        return cells.movedim(3, 1).contiguous().movedim(-1, 1)


class Pillars(nn.Module):
    """Points pooled in columns of half the grid's cell, convolved in the plane, unfolded into heights.

    A column's feature is the largest response of its points, so density does not matter and emptiness is zero.
    """

    def __init__(self, grid: Grid, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.grid = grid
        x, y, z = grid.count
        flat = grid.flat()
        self.columns = replace(flat, count=(x * 2, y * 2, 1), cell=(flat.cell[0] / 2, flat.cell[1] / 2, flat.cell[2]))
        self.point = mlp(8, 32, hidden)
        self.plane = Layers(
            nn.Conv2d(hidden, hidden, 3, padding=1),
            norm(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, stride=2, padding=1),
            Residual(hidden),
            Residual(hidden),
            Unfold(hidden, width, z),
        )

    def forward(self, batch: Batch) -> Volume:
        columns = voxelize(batch.points.xyz_ego, batch.sample, self.columns)
        features = self._describe(batch, columns.points)
        pooled = columns.highest(precise(self.point(features)))
        plane = to_dense(pooled, columns, self.columns, len(batch))[:, :, 0]
        return Volume(self.plane(plane), self.grid)

    def _describe(self, batch: Batch, which: Tensor) -> Tensor:
        """What a point tells: its place in the grid and in its column, brightness and age."""
        points = batch.points.select(which)
        unit = self.columns.to_unit(points.xyz_ego)
        count = unit.new_tensor(self.columns.count)
        within = torch.frac(unit * count)[:, :2] - 0.5
        distance = (points.xyz_ego - points.xyz_ego.new_tensor(self.grid.origin_ego)).norm(dim=-1, keepdim=True)
        return torch.cat(
            [unit * 2 - 1, within * 2, points.intensity[:, None], points.age[:, None], distance / 50], dim=-1
        )
