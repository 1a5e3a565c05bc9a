"""Metric volumes: where a voxel is, and where a point is inside the volume.

Every grid has three axes and the same four questions: which cell holds a point, where is it between
the borders (0..1), where are the cells' centres, and over which span does a ray cross the grid.
Field, rays and encoders ask nothing else, so a box around the car and a cylinder around the sensor
are interchangeable. Triples are in axis order (x y z or ρ φ z); tensors are always Z Y X.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Grid(ABC):
    """A regular lattice of `count` cells of size `cell` from `lower`, in the axes of its kind.

    Args:
        origin_ego: the metric position of the grid's zero in the ego frame (a LiDAR's, say).
    """

    lower: Triple
    cell: Triple
    count: tuple[int, int, int]
    origin_ego: Triple = (0.0, 0.0, 0.0)

    axes: ClassVar[tuple[str, str, str]]
    wraps: ClassVar[tuple[bool, bool, bool]]

    def __post_init__(self) -> None:
        if min(self.cell) <= 0 or min(self.count) < 1:
            raise ValueError(f"a grid needs positive cells and counts, got cell {self.cell}, count {self.count}")

    @abstractmethod
    def coordinates(self, xyz_ego: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        """The points in the grid's own axes and units."""

    @abstractmethod
    def positions(self, coordinates: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        """Ego-frame points of coordinates in the grid's own axes: the inverse of `coordinates`."""

    @abstractmethod
    def span(
        self, origin: Float[Tensor, "*r 3"], direction: Float[Tensor, "*r 3"]
    ) -> tuple[Float[Tensor, "*r"], Float[Tensor, "*r"]]:
        """Where rays (unit direction, ego frame) enter and leave the grid, in metres; both 0 where they miss."""

    @property
    def upper(self) -> Triple:
        """The far border along each axis."""
        x, y, z = (low + n * size for low, n, size in zip(self.lower, self.count, self.cell, strict=True))
        return x, y, z

    @property
    def shape(self) -> tuple[int, int, int]:
        """Cells as tensors hold them: Z, Y, X."""
        x, y, z = self.count
        return z, y, x

    def flat(self) -> "Grid":
        """The same ground plan as one layer of full height: a bird's-eye view."""
        x, y, z = self.count
        return replace(self, count=(x, y, 1), cell=(*self.cell[:2], self.cell[2] * z))

    def to_unit(self, xyz_ego: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        """The points between the lower (0) and the upper (1) border of each axis."""
        extent = [n * size for n, size in zip(self.count, self.cell, strict=True)]
        coordinates = self.coordinates(xyz_ego)
        return (coordinates - coordinates.new_tensor(self.lower)) / coordinates.new_tensor(extent)

    def from_unit(self, unit: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        """Ego-frame points of unit coordinates: the inverse of `to_unit`."""
        extent = [n * size for n, size in zip(self.count, self.cell, strict=True)]
        return self.positions(unit * unit.new_tensor(extent) + unit.new_tensor(self.lower))

    def contains(self, xyz_ego: Float[Tensor, "*p 3"]) -> Bool[Tensor, "*p"]:
        """True for points in some cell."""
        unit = self.to_unit(xyz_ego)
        return ((unit >= 0) & (unit < 1)).all(-1)

    def cell_of(self, xyz_ego: Float[Tensor, "*p 3"]) -> tuple[Int[Tensor, "*p"], Bool[Tensor, "*p"]]:
        """The flat index (z · Y + y) · X + x of each point's cell, and whether it has one (else 0)."""
        unit = self.to_unit(xyz_ego)
        inside = ((unit >= 0) & (unit < 1)).all(-1)
        count = torch.tensor(self.count, device=unit.device)
        # A unit just below one may round up to the count: clamp, it is inside.
        index = (unit.nan_to_num() * count).floor().long().clamp(min=torch.zeros_like(count), max=count - 1)
        flat = (index[..., 2] * self.count[1] + index[..., 1]) * self.count[0] + index[..., 0]
        return torch.where(inside, flat, torch.zeros_like(flat)), inside

    def centres(self, device: torch.device | str = "cpu") -> Float[Tensor, "z y x 3"]:
        """The ego-frame centre of every cell."""
        x, y, z = ((torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n for n in self.count)
        unit = torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1], -1)
        return self.from_unit(unit)

    def describe(self) -> str:
        """One line for people: axes, borders, cells."""
        parts = [
            f"{axis} {low:g}..{high:g} / {n}"
            for axis, low, high, n in zip(self.axes, self.lower, self.upper, self.count, strict=True)
        ]
        return f"{', '.join(parts)}, zero at {self.origin_ego}"

    def to_plain(self) -> dict[str, object]:
        """A dictionary of numbers and lists, for headers and YAML."""
        values: dict[str, object] = {field.name: list(getattr(self, field.name)) for field in fields(self)}
        return {"kind": type(self).__name__} | values


@dataclass(frozen=True)
class BoxGrid(Grid):
    """Cells along the ego axes x, y, z, in metres."""

    axes = ("x", "y", "z")
    wraps = (False, False, False)

    def coordinates(self, xyz_ego: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        return xyz_ego - xyz_ego.new_tensor(self.origin_ego)

    def positions(self, coordinates: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        return coordinates + coordinates.new_tensor(self.origin_ego)

    def span(
        self, origin: Float[Tensor, "*r 3"], direction: Float[Tensor, "*r 3"]
    ) -> tuple[Float[Tensor, "*r"], Float[Tensor, "*r"]]:
        start = self.coordinates(origin)
        entry, leave = _slabs(start, direction, start.new_tensor(self.lower), start.new_tensor(self.upper))
        return _clip_span(entry.amax(-1), leave.amin(-1))


@dataclass(frozen=True)
class CylinderGrid(Grid):
    """Cells along the distance ρ from the z axis, the azimuth φ (which wraps) and z."""

    axes = ("ρ", "φ", "z")
    wraps = (False, True, False)

    def __post_init__(self) -> None:
        super().__post_init__()
        turn = self.count[1] * self.cell[1]
        if self.lower[0] < 0 or abs(self.lower[1] + math.pi) > 1e-6 or abs(turn - 2 * math.pi) > 1e-6:
            raise ValueError(f"a cylinder needs ρ >= 0 and φ from -π to π, got {self.describe()}")

    def coordinates(self, xyz_ego: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        x, y, z = (xyz_ego - xyz_ego.new_tensor(self.origin_ego)).unbind(-1)
        # atan2 reaches +π, which is the same place as -π and belongs to the first cell.
        phi = torch.atan2(y, x)
        return torch.stack([torch.hypot(x, y), torch.where(phi >= math.pi, -phi, phi), z], -1)

    def positions(self, coordinates: Float[Tensor, "*p 3"]) -> Float[Tensor, "*p 3"]:
        rho, phi, z = coordinates.unbind(-1)
        xyz = torch.stack([rho * phi.cos(), rho * phi.sin(), z], -1)
        return xyz + xyz.new_tensor(self.origin_ego)

    def span(
        self, origin: Float[Tensor, "*r 3"], direction: Float[Tensor, "*r 3"]
    ) -> tuple[Float[Tensor, "*r"], Float[Tensor, "*r"]]:
        """Of the full cylinder: a hole left by ρ > 0 at the axis counts as inside."""
        start = origin - origin.new_tensor(self.origin_ego)
        entry_z, leave_z = _slabs(
            start[..., 2:], direction[..., 2:], start.new_tensor(self.lower[2:]), start.new_tensor(self.upper[2:])
        )
        a = direction[..., :2].square().sum(-1).clamp(min=1e-12)
        b = (start[..., :2] * direction[..., :2]).sum(-1)
        inside = start[..., :2].square().sum(-1) - self.upper[0] ** 2
        discriminant = b.square() - a * inside
        root = discriminant.clamp(min=0).sqrt()
        entry, leave = (-b - root) / a, (-b + root) / a
        leave = torch.where(discriminant < 0, torch.full_like(leave, -1.0), leave)
        return _clip_span(torch.maximum(entry, entry_z[..., 0]), torch.minimum(leave, leave_z[..., 0]))


def grid_from_plain(values: dict) -> Grid:
    """The grid that `to_plain` described."""
    kinds: dict[str, type[Grid]] = {"BoxGrid": BoxGrid, "CylinderGrid": CylinderGrid}
    if values.get("kind") not in kinds:
        raise ValueError(f"a grid is one of {', '.join(kinds)}, got {values.get('kind')!r}")
    return kinds[values["kind"]](**{name: tuple(value) for name, value in values.items() if name != "kind"})


@dataclass(frozen=True)
class Volume:
    """Features on a grid; Z = 1 is a bird's-eye view."""

    features: Float[Tensor, "b c z y x"]
    grid: Grid


def _slabs(start: Tensor, direction: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays pass between each axis' two planes; an axis they run along never limits them from inside."""
    tiny = torch.finfo(direction.dtype).tiny
    along = torch.where(direction.abs() < tiny, torch.full_like(direction, tiny), direction)
    first, second = (lower - start) / along, (upper - start) / along
    return torch.minimum(first, second), torch.maximum(first, second)


def _clip_span(entry: Tensor, leave: Tensor) -> tuple[Tensor, Tensor]:
    entry = entry.clamp(min=0)
    hit = leave > entry
    return torch.where(hit, entry, 0.0), torch.where(hit, leave, 0.0)
