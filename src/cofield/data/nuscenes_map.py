"""The nuScenes map expansion as bird's-eye layers around the car.

A cell belongs to an area if its centre lies inside it (even-odd, so holes are holes), and to a divider
if its centre is at most half a cell away. The map is flat: of the pose only position and heading count.
"""

import json
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cofield.classes import MAP_LAYERS
from cofield.data.columns import Columns, open_columns
from cofield.frame import Maps
from cofield.geometry import yaw_of
from cofield.grid import BoxGrid, Grid

Array = np.ndarray

_AREAS = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area")
_LINES = ("road_divider", "lane_divider")


def open_map(path: Path) -> Columns:
    """The rings and lines of <root>/maps/expansion/<location>.json, indexed on first use."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; fetch the map expansion, or ask for no map layers")
    return open_columns(f"map-{path.stem}", path.parent, [path], lambda: _build(path))


def rasterise(vectors: Columns, world_T_ego: Float[Tensor, "4 4"], grid: BoxGrid) -> Maps:
    """The layers of `MAP_LAYERS` on the ground plan of the grid."""
    plan = grid.flat()
    layers = np.zeros((len(MAP_LAYERS), plan.count[1], plan.count[0]), bool)
    to_cells = _Cells(world_T_ego, plan)
    for name in _AREAS:
        layer = layers[MAP_LAYERS.index(name)]
        for rings in _near(vectors, name, to_cells):
            layer |= inside(np.concatenate([_edges(to_cells(ring), closed=True) for ring in rings]), layer.shape)
    lines = [line for name in _LINES for (line,) in _near(vectors, name, to_cells)]
    if lines:
        edges = np.concatenate([_edges(to_cells(line), closed=False) for line in lines])
        layers[MAP_LAYERS.index("divider")] = along(edges, layers.shape[1:])
    return Maps(torch.from_numpy(layers), plan)


def inside(edges: Float[Array, "e 4"], shape: tuple[int, int]) -> Bool[Array, "y x"]:
    """Cells whose centre lies within rings, given by edges x0 y0 x1 y1 in units where centres are integers."""
    rows, columns = shape
    edges = edges[(edges[:, [1, 3]].max(1) > 0) & (edges[:, [1, 3]].min(1) <= rows - 1)]
    x0, y0, x1, y1 = edges.T[:, :, None]
    row = np.arange(rows)
    # Half open in y, so that a corner on a row's line counts once.
    edge, at = np.nonzero((y0 <= row) != (y1 <= row))
    x0, y0, x1, y1 = edges[edge].T
    crossing = x0 + (at - y0) * (x1 - x0) / (y1 - y0)
    first = np.ceil(crossing).clip(0, columns).astype(np.int64)
    crossings = np.bincount(at * (columns + 1) + first, minlength=rows * (columns + 1)).reshape(rows, -1)
    return crossings.cumsum(1)[:, :columns] % 2 == 1


def along(edges: Float[Array, "e 4"], shape: tuple[int, int], distance: float = 0.5) -> Bool[Array, "y x"]:
    """Cells whose centre is at most `distance` (up to half a cell) from one of the segments."""
    rows, columns = shape
    low, high = edges.reshape(-1, 2, 2).min(1), edges.reshape(-1, 2, 2).max(1)
    edges = edges[(high > -1).all(1) & (low < (columns, rows)).all(1)]
    start, step = edges[:, :2], edges[:, 2:] - edges[:, :2]
    length = np.hypot(*step.T)
    # Samples a half cell apart: every cell in question is one of the nine around some sample.
    count = np.ceil(2 * length).astype(np.int64) + 1
    edge = np.repeat(np.arange(len(edges)), count)
    number = np.arange(len(edge)) - np.repeat(count.cumsum() - count, count)
    sample = start[edge] + step[edge] * (number / np.maximum(count[edge] - 1, 1))[:, None]
    around = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), -1).reshape(9, 2)
    cell = (np.rint(sample)[:, None] + around).reshape(-1, 2)
    edge = np.repeat(edge, 9)
    offset = cell - start[edge]
    share = (offset * step[edge]).sum(1) / np.maximum(length[edge] ** 2, 1e-12)
    gap = offset - share.clip(0, 1)[:, None] * step[edge]
    hit = (np.hypot(*gap.T) <= distance) & (cell >= 0).all(1) & (cell < (columns, rows)).all(1)
    marked = np.zeros(shape, bool)
    x, y = cell[hit].astype(np.int64).T
    marked[y, x] = True
    return marked


class _Cells:
    """World positions [n 2] in cells of a grid, where the centre of cell (0, 0) is (0, 0)."""

    def __init__(self, world_T_ego: Tensor, grid: Grid) -> None:
        yaw = float(yaw_of(world_T_ego[:3, :3]))
        self.turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        self.zero = world_T_ego[:2, 3].numpy()
        self.lower = np.add(grid.lower[:2], grid.origin_ego[:2])
        self.cell = np.array(grid.cell[:2])
        corners = np.stack([self.lower, self.lower + self.cell * grid.count[:2]])
        around = np.stack(np.meshgrid(*corners.T), -1).reshape(4, 2) @ self.turn + self.zero
        self.window = np.concatenate([around.min(0), around.max(0)])

    def __call__(self, xy_world: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
        return ((xy_world - self.zero) @ self.turn.T - self.lower) / self.cell - 0.5


def _near(vectors: Columns, name: str, cells: _Cells) -> list[list[Array]]:
    """The rings of every shape of a layer that may reach the grid."""
    box = vectors[f"{name}.box"]
    reaches = (box[:, :2] <= cells.window[2:]).all(1) & (box[:, 2:] >= cells.window[:2]).all(1)
    ring, shape, xy = vectors[f"{name}.ring"], vectors[f"{name}.shape"], vectors[f"{name}.xy"]
    return [
        [np.asarray(xy[ring[r] : ring[r + 1]]) for r in range(shape[i], shape[i + 1])] for i in np.flatnonzero(reaches)
    ]


def _edges(points: Array, closed: bool) -> Array:
    ends = np.roll(points, -1, axis=0) if closed else points[1:]
    return np.concatenate([points[: len(ends)], ends], 1)


def _build(path: Path) -> dict[str, Array]:
    try:
        tables = json.loads(path.read_bytes())
        node = {each["token"]: (float(each["x"]), float(each["y"])) for each in tables["node"]}
        polygon = {each["token"]: each for each in tables["polygon"]}
        line = {each["token"]: each for each in tables["line"]}
        columns = {}
        for name in _AREAS:
            # A drivable area has several polygons, any other record one.
            tokens = [t for each in tables[name] for t in each.get("polygon_tokens", [each.get("polygon_token")])]
            columns |= _packed(name, [_rings(polygon[token], node) for token in tokens])
        for name in _LINES:
            tokens = [each["line_token"] for each in tables[name]]
            columns |= _packed(name, [[[node[t] for t in line[token]["node_tokens"]]] for token in tokens])
    except (KeyError, TypeError, json.JSONDecodeError) as problem:
        raise ValueError(f"{path} is no map expansion ({problem!r}); fetch it again") from problem
    return columns


def _rings(polygon: dict, node: dict[str, tuple[float, float]]) -> list[list[tuple[float, float]]]:
    tokens = [polygon["exterior_node_tokens"], *(hole["node_tokens"] for hole in polygon["holes"])]
    return [[node[token] for token in ring] for ring in tokens if ring]


def _packed(name: str, shapes: list[list[list[tuple[float, float]]]]) -> dict[str, Array]:
    shapes = [shape for shape in shapes if shape and shape[0]]
    rings = [np.array(ring, np.float64) for shape in shapes for ring in shape]
    # The outline comes first and holds the holes.
    outlines = [np.array(shape[0], np.float64) for shape in shapes]
    return {
        f"{name}.xy": np.concatenate([np.zeros((0, 2)), *rings]),
        f"{name}.ring": np.cumsum([0, *map(len, rings)]),
        f"{name}.shape": np.cumsum([0, *map(len, shapes)]),
        f"{name}.box": np.array([[*each.min(0), *each.max(0)] for each in outlines]).reshape(-1, 4),
    }
