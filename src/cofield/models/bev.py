"""The two-dimensional network between trunk and heads."""

from dataclasses import replace

import torch
from torch import nn

from cofield.grid import Grid, Volume
from cofield.models.blocks import Layers, Norm, normalised


class Bev(nn.Module):
    """A volume as one flat map of features: SECOND's backbone and its pyramid.

    Heights become channels. The first stage keeps the volume's cells, the second halves them; transposed convolutions
    bring both to cells `finer` times smaller than the volume's, side by side.

    The paper's size is width 128, depth 5, out 512 and batch norm; the defaults are for small worlds.

    Args:
        channels: of the volume, at each height.
        width: channels of the first stage; the second has twice as many.
        depth: convolutions of each stage after its first.
        out: channels of the result, half from each stage.
        finer: cells of the result along one cell of the volume.
    """

    def __init__(
        self,
        channels: int,
        grid: Grid,
        width: int = 64,
        depth: int = 2,
        out: int = 128,
        finer: int = 1,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        flat = grid.flat()
        (x, y, _), (wide, long, high) = flat.count, flat.cell
        self.grid = replace(flat, count=(x * finer, y * finer, 1), cell=(wide / finer, long / finer, high))
        self.channels = out
        self.near = stage(channels * grid.count[2], width, 1, depth, norm)
        self.far = stage(width, width * 2, 2, depth, norm)
        self.near_out = enlarge(width, out // 2, finer, norm)
        self.far_out = enlarge(width * 2, out // 2, finer * 2, norm)

    def forward(self, volume: Volume) -> Volume:
        near = self.near(volume.features.flatten(1, 2))
        _, rows, columns = self.grid.shape
        # An odd number of cells is halved upwards: the last row and column then reach beyond the grid.
        far = self.far_out(self.far(near))[..., :rows, :columns]
        features = torch.cat([self.near_out(near), far], 1)
        return Volume(features.float()[:, :, None], self.grid)


def stage(before: int, after: int, stride: int, depth: int, kind: Norm) -> Layers:
    """A convolution with a stride and `depth` without."""
    layers = convolution(before, after, kind, stride)
    for _ in range(depth):
        layers += convolution(after, after, kind)
    return Layers(*layers)


def convolution(before: int, after: int, kind: Norm, stride: int = 1) -> list[nn.Module]:
    """3×3, normalised, rectified."""
    return [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), normalised(after, kind), nn.ReLU()]


def enlarge(before: int, after: int, factor: int, kind: Norm) -> Layers:
    """Each cell becomes factor × factor cells, each by weights of its own."""
    return Layers(nn.ConvTranspose2d(before, after, factor, factor, bias=False), normalised(after, kind), nn.ReLU())
