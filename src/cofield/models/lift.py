"""Camera features to a volume: every pixel spreads its feature over the depths it may have."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cofield.frame import Batch
from cofield.geometry import transform
from cofield.grid import Grid, Volume
from cofield.models.blocks import Layers, Residual
from cofield.ops.splat import splat
from cofield.ops.voxelize import nearest

FAINT = 0.1  # of a pixel's feature: a voxel that received less than this shows it weakly


@dataclass(frozen=True)
class DepthBins:
    """Depths along a camera's axis, in metres: bin d covers lower + d·step to lower + (d+1)·step."""

    lower: float = 1.0
    step: float = 1.0
    count: int = 36

    def centres(self, device: torch.device | str = "cpu") -> Float[Tensor, "d"]:
        """The middle of each bin."""
        return self.lower + (torch.arange(self.count, device=device) + 0.5) * self.step


class Lift(nn.Module):
    """A distribution over depth per pixel, helped by the depth image of the visible points, and its splat.

    A voxel holds the mean of the features that fall into it, and how much fell (ours; the released code keeps the
    sum). Near the car hundreds of pixels share a voxel, and far away one pixel fills many: a mean is the same feature
    at every distance, a sum is not. Beside what is learned it holds the mean visible colour (ours), so that the field
    need not learn to carry colour through encoder and lift before it can paint.

    Args:
        stride: image pixels per feature pixel.
    """

    def __init__(self, camera_width: int, stride: int, grid: Grid, width: int, bins: DepthBins) -> None:
        super().__init__()
        self.grid, self.bins, self.stride, self.width = grid, bins, stride, width
        self.depth = Layers(
            nn.Conv2d(2, 16, 5, stride=stride // 2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = Layers(
            nn.Conv2d(camera_width + 32, camera_width, 3, padding=1),
            Residual(camera_width),
            nn.ReLU(),
            nn.Conv2d(camera_width, bins.count + width - 5, 1),
        )

    def forward(
        self, features: Float[Tensor, "b n c h w"], batch: Batch, visible: Bool[Tensor, "b n height width"]
    ) -> Volume:
        """The lifted features of a batch that holds only what may be seen.

        Args:
            visible: the pixels whose colour may be seen.
        """
        height, width = features.shape[-2:]
        hints = self.depth(self.depth_image(batch).flatten(0, 1))
        out = self.head(torch.cat([features.flatten(0, 1), hints.to(features.dtype)], 1)).float()
        share = out[:, : self.bins.count].softmax(1).permute(0, 2, 3, 1).reshape(-1, self.bins.count)
        content = out[:, self.bins.count :].permute(0, 2, 3, 1).flatten(0, 2)
        depth, rows, columns = self.grid.shape
        cells = len(batch) * depth * rows * columns
        # The last columns count how much of any pixel, and of any visible one, fell into a voxel.
        content = torch.cat([content, torch.ones_like(content[:, :1]), self._colours(batch, visible)], 1)
        total = splat(share, content, self.places(batch, height, width), cells)
        learned, mass, colour, seen = total.split([self.width - 5, 1, 3, 1], 1)
        volume = torch.cat([learned / (mass + FAINT), mass / (mass + 1), colour / (seen + FAINT), seen / (seen + 1)], 1)
        return Volume(volume.view(len(batch), depth, rows, columns, -1).permute(0, 4, 1, 2, 3), self.grid)

    def _colours(self, batch: Batch, visible: Bool[Tensor, "b n height width"]) -> Float[Tensor, "p 4"]:
        """The sum of the visible colours around each feature pixel, about grey, and the share that is visible."""
        known = visible.flatten(0, 1)[:, None].to(batch.images.dtype)
        grey = (batch.images.flatten(0, 1) - 0.5) * known
        pooled = F.avg_pool2d(torch.cat([grey, known], 1), self.stride)
        return pooled.permute(0, 2, 3, 1).flatten(0, 2)

    def depth_image(self, batch: Batch) -> Float[Tensor, "b n 2 h w"]:
        """Depth (as a share of the last bin's) of the nearest point in each pixel, and whether there is one."""
        seen = batch.seen_points()
        depth = nearest(seen.pixel, seen.depth, batch.valid.numel()).view(batch.valid.shape)
        known = depth.isfinite()
        far = self.bins.lower + self.bins.step * self.bins.count
        return torch.stack([torch.where(known, depth / far, 0.0), known.to(depth.dtype)], 2)

    def places(self, batch: Batch, height: int, width: int) -> Int[Tensor, "p d"]:
        """The voxel of every depth bin of every feature pixel; -1 outside the grid or the image."""
        device = batch.images.device
        row = (torch.arange(height, device=device) + 0.5) * self.stride
        column = (torch.arange(width, device=device) + 0.5) * self.stride
        v, u = torch.meshgrid(row, column, indexing="ij")
        depth = self.bins.centres(device)
        pix = torch.stack([u, v, torch.ones_like(u)], -1).reshape(-1, 1, 3) * depth[:, None]  # hw D 3
        ego_T_pix = batch.ego_T_cam @ torch.linalg.inv(batch.pix_T_cam)
        xyz_ego = transform(ego_T_pix, pix.reshape(1, 1, -1, 3)).unflatten(2, (-1, self.bins.count))
        cell, inside = self.grid.cell_of(xyz_ego)  # B N hw D
        first = torch.arange(len(batch), device=device) * (self.grid.count[0] * self.grid.count[1] * self.grid.count[2])
        # Padding is no image: nothing of it is lifted.
        inside = inside & batch.valid[..., v.long(), u.long()].flatten(2)[..., None]
        return torch.where(inside, cell + first[:, None, None, None], -1).flatten(0, 2)
