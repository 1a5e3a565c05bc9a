"""Points to a volume by sparse convolution: the encoder of VoxelNet and SECOND, and the bricks it is built of."""

import itertools
import math
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cofield.frame import Batch
from cofield.grid import BoxGrid, Grid, Volume
from cofield.models.blocks import Computing, Frozen, Layers, Norm
from cofield.ops.precision import precise
from cofield.ops.sample import sample
from cofield.ops.sparse import Sites, Sparse, Triple, inverse, strided, submanifold
from cofield.ops.voxelize import voxelize

CUBE: Triple = (3, 3, 3)


class OfSites(nn.Module):
    """A layer that looks at where features are; all others see one voxel at a time."""


class SparseLayers(Computing, nn.Sequential):
    """Layers on a sparse volume, one after the other, computing in a type of their own."""

    def forward(self, input: Sparse) -> Sparse:
        with self.casting(input.features):
            for layer in self:
                input = layer(input) if isinstance(layer, OfSites) else Sparse(layer(input.features), input.sites)
        return input


class Submanifold(OfSites):
    """A convolution from sites to the same sites; `weight` is [kz ky kx in out]."""

    def __init__(self, channels: int, width: int, kernel: Triple = CUBE, bias: bool = False) -> None:
        super().__init__()
        self.weight = _fresh_weight(kernel, channels, width)
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, volume: Sparse) -> Sparse:
        out = submanifold(volume, self.weight)
        return out if self.bias is None else Sparse(out.features + self.bias.to(out.features.dtype), out.sites)


class Strided(OfSites):
    """A convolution to the sites of a coarser volume."""

    def __init__(self, channels: int, width: int, kernel: Triple, stride: Triple, padding: Triple) -> None:
        super().__init__()
        self.weight = _fresh_weight(kernel, channels, width)
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, volume: Sparse) -> Sparse:
        return strided(volume, self.weight, self.stride, self.padding)


class Inverse(Computing, nn.Module):
    """From a coarser volume back to the sites that a `Strided` of the same kernel came from."""

    def __init__(self, channels: int, width: int, kernel: Triple, stride: Triple, padding: Triple) -> None:
        super().__init__()
        self.weight = _fresh_weight(kernel, channels, width)
        self.stride, self.padding = stride, padding

    def forward(self, volume: Sparse, onto: Sites) -> Sparse:
        with self.casting(volume.features):
            return inverse(volume, self.weight, onto, self.stride, self.padding)


class SparseGroupNorm(OfSites):
    """Group normalisation over a sample's occupied voxels: it treats a frame alike in every batch."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = max(1, channels // 8), eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, volume: Sparse) -> Sparse:
        features = precise(volume.features).unflatten(1, (self.groups, -1))
        # Products with a table of who is whose are quicker than scattering to a handful of rows.
        member = F.one_hot(volume.sites.coordinates[:, 0], volume.sites.batch).to(features.dtype)
        share = member / member.sum(0).clamp(min=1)
        with torch.autocast(features.device.type, enabled=False):
            centred = features - (member @ (share.mT @ features.mean(-1)))[..., None]
            scale = (share.mT @ centred.square().mean(-1) + self.eps).rsqrt()
            out = (centred * (member @ scale)[..., None]).flatten(1) * self.weight + self.bias
        return Sparse(out.to(volume.features.dtype), volume.sites)


class VoxelBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over voxels; of fewer than two there is no variance, and what was learned so far holds."""

    def forward(self, input: Tensor) -> Tensor:
        if len(input) > 1:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def sparse_norm(channels: int, kind: Norm) -> nn.Module:
    """The norm of that kind for the features of voxels."""
    match kind:
        case "group":
            return SparseGroupNorm(channels)
        case "batch":
            return VoxelBatchNorm(channels)
        case "frozen":
            return Frozen(channels)


class SparseResidual(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))) on the sites of x."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.path = SparseLayers(
            Submanifold(channels, channels),
            sparse_norm(channels, norm),
            nn.ReLU(),
            Submanifold(channels, channels),
            sparse_norm(channels, norm),
        )

    def forward(self, volume: Sparse) -> Sparse:
        return Sparse((volume.features + self.path(volume).features).relu(), volume.sites)


class VoxelNet(nn.Module):
    """The mean of each voxel's points, stages of sparse residual blocks with strides of two between, then a volume.

    A strided kernel lies on every second voxel, not between two. The voxels therefore reach half an output cell and
    half a voxel beyond the grid on each side, in number 8 (n + 1) + 1 for three strides: then the kernels lie
    symmetrically about the grid's middle, and an output cell of eight voxels is where the grid has its cell. (The
    released code starts at the border; its output is 3.5 voxels off.) Upwards there is one voxel more than the grid
    has room for (r: 41 for 40).

    Args:
        grid: of the volume; where its cells are not those of the output, the output is interpolated at their centres.
        voxel: its size in x, y, z.
        widths: channels of each stage (r).
        limit: points that a voxel takes (r: 10); None for all, whatever order they come in.
        metres: tell the place of points in metres from the grid's zero (r), and not between its borders.
        height: `collapsed` folds the levels into channels (r) and unfolds them into the grid's; `kept` has them stay
            where they are, interpolated.
    """

    def __init__(
        self,
        grid: BoxGrid,
        width: int = 256,
        voxel: tuple[float, float, float] = (0.075, 0.075, 0.2),
        widths: tuple[int, ...] = (16, 32, 64, 128),
        norm: Norm = "batch",
        limit: int | None = 10,
        height: Literal["collapsed", "kept"] = "collapsed",
        metres: bool = False,
    ) -> None:
        super().__init__()
        self.grid, self.width, self.limit, self.height, self.metres = grid, width, limit, height, metres
        if len(widths) < 2:
            raise ValueError(f"a voxel encoder needs at least two stages, got widths {widths}")
        steps: list[tuple[Triple, Triple, Triple]] = [(CUBE, (2, 2, 2), (1, 1, 1))] * (len(widths) - 1)
        if height == "collapsed":
            steps = [*steps[:-1], (CUBE, (2, 2, 2), (0, 1, 1)), ((3, 1, 1), (2, 1, 1), (0, 0, 0))]
        layers: list[nn.Module] = [SparseLayers(Submanifold(5, widths[0]), sparse_norm(widths[0], norm), nn.ReLU())]
        for index, (before, after) in enumerate(itertools.pairwise((*widths, widths[-1]))):
            layers += [SparseResidual(before, norm), SparseResidual(before, norm)]
            if index < len(steps):
                down = Strided(before, after, *steps[index])
                layers.append(SparseLayers(down, sparse_norm(after, norm), nn.ReLU()))
        self.encoder = nn.Sequential(*layers)
        self.voxels, self.lattice = _lattices(grid, voxel, steps)
        levels = self.lattice.count[2] if height == "collapsed" else 1
        heights = grid.count[2] if height == "collapsed" else 1
        self.head = Layers(nn.Conv3d(widths[-1] * levels, width * heights, 1))

    def forward(self, batch: Batch) -> Volume:
        sparse = self.encode(batch)
        # Without the output cells beyond the grid.
        dense = sparse.dense()[..., 1:-1, 1:-1]
        if self.height == "kept":
            return resampled(Volume(self.head(dense), self.lattice), self.grid)
        columns = self.head(dense.flatten(1, 2)[:, :, None])[:, :, 0]
        upright = replace(
            self.lattice,
            lower=(*self.lattice.lower[:2], self.grid.lower[2]),
            cell=(*self.lattice.cell[:2], self.grid.cell[2]),
            count=(*self.lattice.count[:2], self.grid.count[2]),
        )
        return resampled(Volume(columns.unflatten(1, (self.width, -1)), upright), self.grid)

    def encode(self, batch: Batch) -> Sparse:
        """The sparse volume after the last stage, a cell wider than the grid on each side."""
        return self.encoder(self.describe(batch))

    def describe(self, batch: Batch) -> Sparse:
        """The mean of what each voxel's points tell: place in the grid (-1..1, ours), brightness and age."""
        found = voxelize(batch.points.xyz_ego, batch.sample, self.voxels)
        if self.limit is not None:
            found = found.at_most(self.limit)
        points = batch.points.select(found.points)
        xyz_ego = points.xyz_ego
        place = self.grid.coordinates(xyz_ego) if self.metres else self.grid.to_unit(xyz_ego) * 2 - 1
        features = torch.cat([place, points.intensity[:, None], points.age[:, None]], -1)
        return Sparse(found.mean(features), found.sites(self.voxels, len(batch)))


def resampled(volume: Volume, grid: Grid) -> Volume:
    """The volume interpolated at the centres of another grid's cells; as it is where the cells are the same."""
    if volume.features.shape[2:] == grid.shape and _alike(volume.grid, grid):
        return Volume(volume.features, grid)
    frames, centres = len(volume.features), grid.centres(volume.features.device).reshape(-1, 3)
    unit = volume.grid.to_unit(centres).repeat(frames, 1)
    frame = torch.arange(frames, device=unit.device).repeat_interleave(len(centres))
    values = sample(precise(volume.features), unit, frame, volume.grid.wraps)
    return Volume(values.view(frames, *grid.shape, -1).permute(0, 4, 1, 2, 3), grid)


def _alike(one: Grid, two: Grid) -> bool:
    """Whether two grids of the same counts have the same cells, but for rounding."""
    if type(one) is not type(two):
        return False
    sizes = [(*grid.lower, *grid.cell, *grid.origin_ego) for grid in (one, two)]
    return all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(*sizes, strict=True))


def _lattices(
    grid: BoxGrid, voxel: tuple[float, float, float], steps: list[tuple[Triple, Triple, Triple]]
) -> tuple[BoxGrid, BoxGrid]:
    """The voxels that go in, and the cells that come out without the outermost ones in x and y."""
    pitch = 2 ** sum(stride[2] > 1 for _, stride, _ in steps)
    plan = []
    for axis in (0, 1):
        size, cell = voxel[axis], pitch * voxel[axis]
        extent = grid.count[axis] * grid.cell[axis]
        count = math.ceil(extent / cell - 1e-6)
        lower = grid.lower[axis] + (extent - count * cell) / 2
        plan.append((lower - (pitch + 1) / 2 * size, pitch * (count + 1) + 1, lower, cell, count))
    high = round(grid.count[2] * grid.cell[2] / voxel[2]) + 1
    # Output level o is the kernel's middle at voxel first + o · pitch.
    levels, first, pitch = high, 0.0, 1
    for kernel, stride, padding in steps:
        levels = (levels + 2 * padding[0] - kernel[0]) // stride[0] + 1
        first, pitch = first + pitch * ((kernel[0] - 1) / 2 - padding[0]), pitch * stride[0]
    if levels < 1:
        raise ValueError(
            f"{high} voxels of {voxel[2]} m are too few for the strides upwards; take lower voxels, fewer stages, or"
            " keep the height"
        )
    bottom = grid.lower[2] + (first + 0.5 - pitch / 2) * voxel[2]
    (x_in, nx_in, x, cell_x, nx), (y_in, ny_in, y, cell_y, ny) = plan
    fine = BoxGrid((x_in, y_in, grid.lower[2]), voxel, (nx_in, ny_in, high), grid.origin_ego)
    return fine, BoxGrid((x, y, bottom), (cell_x, cell_y, pitch * voxel[2]), (nx, ny, levels), grid.origin_ego)


def _fresh_weight(kernel: Triple, channels: int, width: int) -> nn.Parameter:
    """Uniform, as a dense convolution's."""
    bound = (channels * math.prod(kernel)) ** -0.5
    return nn.Parameter(torch.empty(*kernel, channels, width).uniform_(-bound, bound))
