"""Cylinder3D: points to a volume around the sensor, and to the class of every point."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cofield.frame import Batch, Hidden
from cofield.grid import CylinderGrid, Volume
from cofield.models.blocks import Norm, mlp
from cofield.models.voxelnet import CUBE, Inverse, SparseLayers, Strided, Submanifold, sparse_norm
from cofield.ops.precision import precise
from cofield.ops.sparse import Sparse, Triple
from cofield.ops.voxelize import voxelize

# Kernels z φ ρ: flat ones that lie in two axes each, and rods along one.
UPRIGHT_AROUND: Triple = (3, 3, 1)
UPRIGHT_OUTWARD: Triple = (3, 1, 3)
RODS: tuple[Triple, ...] = ((1, 1, 3), (1, 3, 1), (3, 1, 1))
STRIDES: tuple[Triple, ...] = ((2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
MEASURED = 9  # numbers that a point has before anything is learned
BORDER = 0.01  # of a cell: how far within the border a point from beyond it comes to lie


@dataclass(frozen=True)
class Encoded:
    """What the cylinder makes of a batch.

    Args:
        voxels: features of the occupied cells.
        slot: the row of each point's cell.
        points: what each point tells by itself, learned and as it is measured.
    """

    voxels: Sparse
    slot: Int[Tensor, "p"]
    points: Float[Tensor, "p c"]


class Cylinder3D(nn.Module):
    """Asymmetric sparse residual blocks down to a sixteenth and back up, on cells of ρ, φ and z.

    Each block is two pairs of flat kernels, crossed, because what stands on a road is upright and round the sensor.
    The first two strides also halve the height, the other two do not. Every step up ends on the very sites of its
    step down. The context module then weighs each voxel by what lies along the three axes.

    Kernels reach over the azimuth's seam, so that cells there have neighbours as all others do; with a number of cells
    that is no multiple of 16, as 180, the coarse levels have one uneven pair at it. What a point tells of itself, φ, x
    and y, is of the car, as in the paper (p): turning the world does not just turn the features.

    A point beyond the border counts to the nearest cell (r), so that every point has one.

    Args:
        width: channels at full resolution and of the volume; the deepest level has 16 times as many.
        point_width: of what is learned of a point by itself.
    """

    def __init__(self, grid: CylinderGrid, width: int = 32, norm: Norm = "batch", point_width: int = 64) -> None:
        super().__init__()
        self.grid, self.width, self.point_width = grid, width, point_width
        self.point = mlp(MEASURED, point_width, point_width * 2, point_width)
        self.enter = SparseLayers(nn.ReLU(), nn.Linear(point_width, width // 2), nn.ReLU())
        self.first = Crossed(width // 2, width, norm, UPRIGHT_AROUND)
        self.down = nn.ModuleList(
            Down(width * 2**level, width * 2 ** (level + 1), norm, stride) for level, stride in enumerate(STRIDES)
        )
        widths = [width * 16, width * 16, width * 8, width * 4, width * 2]
        self.up = nn.ModuleList(
            Up(before, after, norm, stride)
            for before, after, stride in zip(widths[:-1], widths[1:], reversed(STRIDES), strict=True)
        )
        self.context = Context(width * 2, norm)
        self.leave = SparseLayers(nn.Linear(width * 4, width))
        self.empty = nn.Parameter(torch.zeros(width))

    def forward(self, batch: Batch, hidden: Hidden | None = None) -> Volume:
        """The dense volume; cells without points hold one learned vector."""
        return self.volume(self.encode(batch if hidden is None else batch.visible(hidden)))

    def volume(self, encoded: Encoded) -> Volume:
        """The dense volume of encoded voxels."""
        return Volume(encoded.voxels.dense(self.empty), self.grid)

    def encode(self, batch: Batch) -> Encoded:
        """Features of the occupied cells, and of the points by themselves."""
        xyz_ego = self._within(batch.points.xyz_ego)
        found = voxelize(xyz_ego, batch.sample, self.grid)
        measured = self._describe(batch, xyz_ego)
        points = precise(self.point(measured))
        x = self.first(self.enter(Sparse(found.highest(points), found.sites(self.grid, len(batch)))))
        skips = []
        for down in self.down:
            skip, x = down(x)
            skips.append(skip)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(x, skip)
        both = torch.cat([self.context(x).features, x.features], 1)
        voxels = self.leave(Sparse(both, x.sites))
        own = torch.cat([points, measured], 1)
        return Encoded(Sparse(precise(voxels.features), voxels.sites), found.slot, own)

    def _within(self, xyz_ego: Float[Tensor, "p 3"]) -> Float[Tensor, "p 3"]:
        """The points, those from beyond the border moved just inside."""
        at = self.grid.coordinates(xyz_ego)
        margin = BORDER * at.new_tensor(self.grid.cell)
        near = self.grid.positions(
            at.clamp(at.new_tensor(self.grid.lower) + margin, at.new_tensor(self.grid.upper) - margin)
        )
        return torch.where(self.grid.contains(xyz_ego)[:, None], xyz_ego, near)

    def _describe(self, batch: Batch, xyz_ego: Float[Tensor, "p 3"]) -> Float[Tensor, "p 9"]:
        """Place in the cell (3), ρ φ z (3) and x y (2), each about -1..1, and brightness."""
        unit = self.grid.to_unit(xyz_ego)
        within = torch.frac(unit * unit.new_tensor(self.grid.count)) * 2 - 1
        centred = batch.points.xyz_ego - xyz_ego.new_tensor(self.grid.origin_ego)
        own = self.grid.coordinates(batch.points.xyz_ego) / unit.new_tensor([self.grid.upper[0], math.pi, 5.0])
        return torch.cat([within, own, centred[:, :2] / self.grid.upper[0], batch.points.intensity[:, None]], -1)


class CylinderHead(nn.Module):
    """The class of each voxel, and of each point: its voxel's logits, corrected by what the point itself tells."""

    def __init__(self, classes: int, width: int = 32, point_width: int = 64) -> None:
        super().__init__()
        self.voxel = SparseLayers(Submanifold(width, classes, CUBE, bias=True))
        self.refine = mlp(point_width + MEASURED + width, point_width, classes)

    def forward(self, encoded: Encoded) -> tuple[Float[Tensor, "v k"], Float[Tensor, "p k"]]:
        voxels = precise(self.voxel(encoded.voxels).features)
        own = torch.cat([encoded.points, encoded.voxels.features[encoded.slot]], 1)
        return voxels, voxels[encoded.slot] + precise(self.refine(own))


class Crossed(nn.Module):
    """Two pairs of flat kernels in opposite order, side by side, and their sum.

    Args:
        start: the kernel that the first pair begins with; the second pair begins with the other one.
    """

    def __init__(self, channels: int, width: int, norm: Norm, start: Triple) -> None:
        super().__init__()
        other = UPRIGHT_OUTWARD if start == UPRIGHT_AROUND else UPRIGHT_AROUND
        self.one = SparseLayers(*_brick(channels, width, start, norm), *_brick(width, width, other, norm))
        self.two = SparseLayers(*_brick(channels, width, other, norm), *_brick(width, width, start, norm))

    def forward(self, volume: Sparse) -> Sparse:
        return Sparse(self.one(volume).features + self.two(volume).features, volume.sites)


class Down(nn.Module):
    """A crossed block, and its result at half the resolution."""

    def __init__(self, channels: int, width: int, norm: Norm, stride: Triple) -> None:
        super().__init__()
        self.block = Crossed(channels, width, norm, UPRIGHT_OUTWARD)
        self.pool = SparseLayers(Strided(width, width, CUBE, stride, (1, 1, 1)))

    def forward(self, volume: Sparse) -> tuple[Sparse, Sparse]:
        skip = self.block(volume)
        return skip, self.pool(skip)


class Up(nn.Module):
    """Back to the sites of the skipped features, to which it adds, and three kernels over the sum."""

    def __init__(self, channels: int, width: int, norm: Norm, stride: Triple) -> None:
        super().__init__()
        self.before = SparseLayers(*_brick(channels, width, CUBE, norm))
        self.rise = Inverse(width, width, CUBE, stride, (1, 1, 1))
        self.after = SparseLayers(
            *_brick(width, width, UPRIGHT_AROUND, norm),
            *_brick(width, width, UPRIGHT_OUTWARD, norm),
            *_brick(width, width, CUBE, norm),
        )

    def forward(self, volume: Sparse, skip: Sparse) -> Sparse:
        risen = self.rise(self.before(volume), skip.sites)
        return self.after(Sparse(risen.features + skip.features, skip.sites))


class Context(nn.Module):
    """Each voxel's features, weighed by what lies along the three axes.

    x · Σ over axes of sigmoid(norm(rod along the axis * x)): a full kernel taken apart into ranks of one.
    """

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.rods = nn.ModuleList(
            SparseLayers(Submanifold(channels, channels, rod), sparse_norm(channels, norm), nn.Sigmoid())
            for rod in RODS
        )

    def forward(self, volume: Sparse) -> Sparse:
        weight = torch.stack([rod(volume).features for rod in self.rods]).sum(0)
        return Sparse(volume.features * weight, volume.sites)


def _brick(channels: int, width: int, kernel: Triple, norm: Norm) -> list[nn.Module]:
    return [Submanifold(channels, width, kernel), nn.LeakyReLU(), sparse_norm(width, norm)]
