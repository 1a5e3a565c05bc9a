"""Points to a volume."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from cofield.frame import Batch
from cofield.grid import Grid, Volume
from cofield.models.blocks import Layers, Residual, mlp, norm
from cofield.ops.precision import precise
from cofield.ops.voxelize import to_dense, voxelize


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
            nn.Conv2d(hidden, width * z, 1),
        )
        self.width = width

    def forward(self, batch: Batch) -> Volume:
        columns = voxelize(batch.points.xyz_ego, batch.sample, self.columns)
        features = self._describe(batch, columns.points)
        pooled = columns.highest(precise(self.point(features)))
        plane = to_dense(pooled, columns, self.columns, len(batch))[:, :, 0]
        heights = self.plane(plane)
        return Volume(heights.unflatten(1, (self.width, self.grid.count[2])), self.grid)

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
