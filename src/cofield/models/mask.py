"""What the encoders may not see."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cofield.draw import Key
from cofield.frame import Batch, Hidden
from cofield.grid import CylinderGrid, Grid

SPAN = 2**20


@dataclass(frozen=True)
class Masking:
    """How much of a frame is hidden, and in which pieces.

    Args:
        patch: side of the square image patches, in pixels; it must tile the image.
        image_ratio: share of each image's patches.
        lidar_ratio: share of the occupied LiDAR cells (of those at the car, if `lidar_ratio_far` is given).
        lidar_cell: side of the cubes that points are hidden in, in metres. On a cylinder points are hidden in whole
            columns of its cells: as many outwards as make up this length, and as many around.
        lidar_ratio_far: share at 50 m and beyond; in between the share changes linearly with distance.
    """

    patch: int = 8
    image_ratio: float = 0.5
    lidar_ratio: float = 0.7
    lidar_cell: float = 0.8
    lidar_ratio_far: float | None = None


def hide(batch: Batch, masking: Masking, seed: Key, grid: Grid | None = None) -> Hidden:
    """What is hidden of each frame: a function of seed, epoch, frame and camera, and of nothing else.

    Args:
        grid: the trunk's. On a cylinder points are hidden in columns of it; otherwise in cubes, whatever the grid.
    """
    cameras, height, width = batch.valid.shape[1:]
    size = masking.patch
    if height % size or width % size:
        raise ValueError(f"patches of {size} pixels do not tile an image of {height}×{width}; choose another size")
    patches = torch.zeros(len(batch), cameras, height // size, width // size, dtype=torch.bool)
    points = torch.zeros(len(batch.points), dtype=torch.bool)
    xyz_ego, bounds = batch.points.xyz_ego.cpu(), batch.offsets.tolist()
    for b in range(len(batch)):
        for n in range(cameras):
            draw = batch.draw(b, seed, "hide image", n)
            patches[b, n] = random_mask(patches[b, n].numel(), masking.image_ratio, draw).view_as(patches[b, n])
        rows = slice(bounds[b], bounds[b + 1])
        points[rows] = _hidden_points(xyz_ego[rows], masking, grid, batch.draw(b, seed, "hide points"))
    device = batch.images.device
    return Hidden(patches.to(device), points.to(device))


def random_mask(length: int, ratio: float, draw: torch.Generator) -> Bool[Tensor, "length"]:
    """True where hidden; exactly round(ratio · length) entries, every choice equally likely."""
    rank = torch.rand(length, generator=draw).argsort().argsort()
    return rank < round(ratio * length)


def pieces(xyz_ego: Float[Tensor, "p 3"], size: float, grid: Grid | None = None) -> Int[Tensor, "p 3"]:
    """The piece that each point is hidden with: a cube of that size, or on a cylinder a bundle of columns.

    A bundle has as many columns around as outwards. So it grows with the distance, as the gaps between beams do.
    """
    if not isinstance(grid, CylinderGrid):
        return (xyz_ego / size).floor().long()
    columns = max(1, round(size / grid.cell[0]))
    at = (grid.coordinates(xyz_ego) - xyz_ego.new_tensor(grid.lower)) / xyz_ego.new_tensor(grid.cell)
    return (at * at.new_tensor([1.0, 1.0, 0.0])).floor().long().div(columns, rounding_mode="floor")


def _hidden_points(
    xyz_ego: Float[Tensor, "p 3"], masking: Masking, grid: Grid | None, draw: torch.Generator
) -> Bool[Tensor, "p"]:
    """Points in hidden pieces. Sweeps share their pieces, so what one sweep may not show, none shows."""
    # One number per piece: counting numbers is far faster than counting rows. Points are within 2^20 pieces.
    x, y, z = pieces(xyz_ego, masking.lidar_cell, grid).clamp(-SPAN, SPAN - 1).unbind(-1)
    found, slot = ((x * 2 * SPAN + y) * 2 * SPAN + z).unique(return_inverse=True)
    if masking.lidar_ratio_far is None:
        hidden = random_mask(len(found), masking.lidar_ratio, draw)
    else:
        near, far = masking.lidar_ratio, masking.lidar_ratio_far
        distance = xyz_ego.new_full((len(found),), torch.inf).scatter_reduce(0, slot, xyz_ego.norm(dim=-1), "amin")
        ratio = near + (far - near) * (distance / 50).clamp(max=1)
        hidden = torch.rand(len(found), generator=draw) < ratio
    return hidden[slot]
