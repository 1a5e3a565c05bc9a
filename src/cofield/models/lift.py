"""Camera features to a volume: every pixel spreads its feature over the depths it may have."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cofield.frame import Batch
from cofield.geometry import transform
from cofield.grid import Grid, Volume
from cofield.models.blocks import Layers, Norm, Residual, normalised
from cofield.ops.precision import precise
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

    @property
    def upper(self) -> float:
        """The end of the last bin."""
        return self.lower + self.step * self.count


PAPER = DepthBins(1.0, 0.5, 118)  # (r); there the depth of a bin is where it begins, here its middle


@dataclass(frozen=True)
class Frusta:
    """What feature pixels show, and the share of it at each depth. The product of the two is never built.

    Args:
        stride: image pixels per feature pixel.
    """

    share: Float[Tensor, "b n d h w"]
    content: Float[Tensor, "b n c h w"]
    bins: DepthBins
    stride: int

    def flat(self) -> tuple[Float[Tensor, "p d"], Float[Tensor, "p c"]]:
        """Shares and contents, a row per feature pixel."""
        share, content = (each.permute(0, 1, 3, 4, 2).flatten(0, 3) for each in (self.share, self.content))
        return share, content


class Lift(nn.Module):
    """A distribution over depth per pixel, helped by the depth image of the visible points, and its splat.

    A voxel holds the mean of the features that fall into it, and how much fell (ours; the released code keeps the
    sum). Near the car hundreds of pixels share a voxel, and far away one pixel fills many: a mean is the same feature
    at every distance, a sum is not. Beside what is learned it holds the mean visible colour (ours), so that the field
    need not learn to carry colour through encoder and lift before it can paint.

    Args:
        stride: image pixels per feature pixel.
        depth_input: help from the visible points; without it, the camera alone.
    """

    def __init__(
        self, camera_width: int, stride: int, grid: Grid, width: int, bins: DepthBins, depth_input: bool = True
    ) -> None:
        super().__init__()
        self.grid, self.bins, self.stride, self.width = grid, bins, stride, width
        self.shown = width - 1
        self.depth = (
            Layers(
                nn.Conv2d(2, 16, 5, stride=stride // 2, padding=2),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1),
                nn.ReLU(),
            )
            if depth_input
            else None
        )
        self.head = Layers(
            nn.Conv2d(camera_width + (32 if depth_input else 0), camera_width, 3, padding=1),
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
        return self.collect(self.frusta(features, batch, visible), batch)

    def frusta(
        self, features: Float[Tensor, "b n c h w"], batch: Batch, visible: Bool[Tensor, "b n height width"]
    ) -> Frusta:
        """What each feature pixel shows, learned and visible, and how much of it at each depth."""
        known = features.flatten(0, 1)
        if self.depth is not None:
            hints = self.depth(depth_image(batch, self.bins).flatten(0, 1))
            known = torch.cat([known, hints.to(known.dtype)], 1)
        out = precise(self.head(known))
        share = out[:, : self.bins.count].softmax(1)
        content = torch.cat([out[:, self.bins.count :], self._colours(batch, visible)], 1)
        views = features.shape[:2]
        return Frusta(share.unflatten(0, views), content.unflatten(0, views), self.bins, self.stride)

    def collect(self, frusta: Frusta, batch: Batch) -> Volume:
        """The volume that frusta fill."""
        depth, rows, columns = self.grid.shape
        cells = len(batch) * depth * rows * columns
        share, content = frusta.flat()
        # The last columns count how much of any visible pixel, and of any at all, fell into a voxel.
        content = torch.cat([content, torch.ones_like(content[:, :1])], 1)
        total = splat(share, content, places(batch, self.grid, self.bins, self.stride), cells)
        learned, colour, seen, mass = total.split([self.width - 5, 3, 1, 1], 1)
        volume = torch.cat([learned / (mass + FAINT), mass / (mass + 1), colour / (seen + FAINT), seen / (seen + 1)], 1)
        return Volume(volume.view(len(batch), depth, rows, columns, -1).permute(0, 4, 1, 2, 3), self.grid)

    def _colours(self, batch: Batch, visible: Bool[Tensor, "b n height width"]) -> Float[Tensor, "bn 4 h w"]:
        """The sum of the visible colours around each feature pixel, about grey, and the share that is visible."""
        known = visible.flatten(0, 1)[:, None].to(batch.images.dtype)
        grey = (batch.images.flatten(0, 1) - 0.5) * known
        return F.avg_pool2d(torch.cat([grey, known], 1), self.stride)


class DepthHead(nn.Module):
    """DepthLSS up to the frustum (r): a depth image to features, and with the camera's to depth and content.

    Args:
        depth_input: help from the visible points; without it, plain LSS: the camera alone.
    """

    def __init__(
        self,
        camera_width: int,
        stride: int,
        width: int,
        bins: DepthBins,
        depth_input: bool = True,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        if stride % 4:
            raise ValueError(f"the depth image is reduced by four and then by the rest; a stride of {stride} cannot be")
        self.bins, self.stride = bins, stride
        self.stem = (
            Layers(
                nn.Conv2d(2, 8, 1),
                normalised(8, norm),
                nn.ReLU(),
                nn.Conv2d(8, 32, 5, stride=4, padding=2),
                normalised(32, norm),
                nn.ReLU(),
                nn.Conv2d(32, 64, 5, stride=stride // 4, padding=2),
                normalised(64, norm),
                nn.ReLU(),
            )
            if depth_input
            else None
        )
        self.head = Layers(
            nn.Conv2d(camera_width + (64 if depth_input else 0), camera_width, 3, padding=1),
            normalised(camera_width, norm),
            nn.ReLU(),
            nn.Conv2d(camera_width, camera_width, 3, padding=1),
            normalised(camera_width, norm),
            nn.ReLU(),
            nn.Conv2d(camera_width, bins.count + width, 1),
        )

    def forward(self, features: Float[Tensor, "b n c h w"], batch: Batch) -> Frusta:
        known = features.flatten(0, 1)
        if self.stem is not None:
            hints = self.stem(depth_image(batch, self.bins).flatten(0, 1))
            known = torch.cat([hints.to(known.dtype), known], 1)
        out = precise(self.head(known)).unflatten(0, features.shape[:2])
        return Frusta(out[:, :, : self.bins.count].softmax(2), out[:, :, self.bins.count :], self.bins, self.stride)


class DepthLSS(nn.Module):
    """The released lift: depth times content, summed in cells `finer` times smaller, then convolved to the grid's.

    A flat grid collapses height: all that falls into a column is one sum. A grid with layers keeps it, and its layers
    are convolved alike (ours).

    Args:
        mean: the mean of what falls into a cell in place of the sum (ours), as in `Lift`.
    """

    def __init__(
        self,
        camera_width: int,
        stride: int,
        grid: Grid,
        width: int = 80,
        bins: DepthBins = PAPER,
        depth_input: bool = True,
        finer: int = 2,
        mean: bool = False,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        (x, y, z), (long, wide, high) = grid.count, grid.cell
        self.fine = replace(grid, count=(x * finer, y * finer, z), cell=(long / finer, wide / finer, high))
        self.grid, self.mean, self.bins, self.shown = grid, mean, bins, width
        self.frustum = DepthHead(camera_width, stride, width, bins, depth_input, norm)
        self.down = Layers(
            *_smooth(width, 1, norm),
            *_smooth(width, finer, norm),
            *_smooth(width, 1, norm),
        )

    def forward(
        self, features: Float[Tensor, "b n c h w"], batch: Batch, visible: Bool[Tensor, "b n height width"]
    ) -> Volume:
        """The lifted features of a batch that holds only what may be seen; colours are not carried."""
        return self.collect(self.frusta(features, batch, visible), batch)

    def frusta(
        self, features: Float[Tensor, "b n c h w"], batch: Batch, visible: Bool[Tensor, "b n height width"]
    ) -> Frusta:
        """What each feature pixel shows, and how much of it at each depth."""
        return self.frustum(features, batch)

    def collect(self, frusta: Frusta, batch: Batch) -> Volume:
        """The volume that frusta fill."""
        share, content = frusta.flat()
        if self.mean:
            content = torch.cat([content, torch.ones_like(content[:, :1])], 1)
        depth, rows, columns = self.fine.shape
        place = places(batch, self.fine, frusta.bins, frusta.stride)
        total = splat(share, content, place, len(batch) * depth * rows * columns)
        if self.mean:
            total = total[:, :-1] / (total[:, -1:] + FAINT)
        layers = total.view(len(batch) * depth, rows, columns, -1).permute(0, 3, 1, 2)
        volume = precise(self.down(layers)).unflatten(0, (len(batch), depth)).transpose(1, 2)
        return Volume(volume, self.grid)


def _smooth(width: int, stride: int, kind: Norm) -> list[nn.Module]:
    return [nn.Conv2d(width, width, 3, stride, padding=1, bias=False), normalised(width, kind), nn.ReLU()]


def depth_image(batch: Batch, bins: DepthBins) -> Float[Tensor, "b n 2 h w"]:
    """Depth (as a share of the last bin's) of the nearest point in each pixel, and whether there is one."""
    seen = batch.seen_points()
    depth = nearest(seen.pixel, seen.depth, batch.valid.numel()).view(batch.valid.shape)
    known = depth.isfinite()
    return torch.stack([torch.where(known, depth / bins.upper, 0.0), known.to(depth.dtype)], 2)


def places(batch: Batch, grid: Grid, bins: DepthBins, stride: int) -> Int[Tensor, "p d"]:
    """The voxel of every depth bin of every feature pixel; -1 outside the grid or the image."""
    device = batch.images.device
    height, width = (size // stride for size in batch.images.shape[-2:])
    row = (torch.arange(height, device=device) + 0.5) * stride
    column = (torch.arange(width, device=device) + 0.5) * stride
    v, u = torch.meshgrid(row, column, indexing="ij")
    depth = bins.centres(device)
    pix = torch.stack([u, v, torch.ones_like(u)], -1).reshape(-1, 1, 3) * depth[:, None]  # hw D 3
    ego_T_pix = batch.ego_T_cam @ torch.linalg.inv(batch.pix_T_cam)
    xyz_ego = transform(ego_T_pix, pix.reshape(1, 1, -1, 3)).unflatten(2, (-1, bins.count))
    cell, inside = grid.cell_of(xyz_ego)  # B N hw D
    first = torch.arange(len(batch), device=device) * (grid.count[0] * grid.count[1] * grid.count[2])
    # Padding is no image: nothing of it is lifted.
    inside = inside & batch.valid[..., v.long(), u.long()].flatten(2)[..., None]
    return torch.where(inside, cell + first[:, None, None, None], -1).flatten(0, 2)
