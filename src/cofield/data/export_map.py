"""Map rasters of many frames as the vector layers of a nuScenes map expansion.

Each scene is drawn on a lattice of half a map cell, every place from the frame that was nearest to it.
Areas become rectangles, dividers the middle lines of narrow strips.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cofield.classes import MAP_LAYERS
from cofield.frame import Maps
from cofield.geometry import inverse, transform

Array = np.ndarray
Point = tuple[float, float]

AREAS = MAP_LAYERS.names[:-1]
_WIDEST_LINE = 6  # lattice cells: a wider strip is no line across this direction


@dataclass(frozen=True)
class _View:
    maps: Maps
    world_T_ego: Tensor


class MapDrawing:
    """The rasters of some scenes."""

    def __init__(self) -> None:
        self.scenes: dict[str, list[_View]] = {}

    def add(self, scene: str, maps: Maps, world_T_ego: Float[Tensor, "4 4"]) -> None:
        """One frame's map."""
        self.scenes.setdefault(scene, []).append(_View(maps, world_T_ego))

    def tables(self, canvas: Point) -> dict[str, Any]:
        """The content of maps/expansion/<location>.json."""
        drawn = _Vectors()
        for views in self.scenes.values():
            layers, lower, cell = _lattice(views)
            for name, layer in zip(MAP_LAYERS.names, layers, strict=True):
                if name in AREAS:
                    drawn.areas(name, [[_placed(p, lower, cell) for p in ring] for ring in rectangles(layer)])
                else:
                    drawn.lines([[_placed(p, lower, cell) for p in line] for line in middle_lines(layer)])
        return drawn.tables | {"version": "1.3", "canvas_edge": list(canvas)}


class _Vectors:
    """Nodes, polygons and lines with tokens."""

    def __init__(self) -> None:
        layers = ("node", "polygon", "line", *AREAS, "road_divider", "lane_divider", "road_segment", "road_block")
        self.tables: dict[str, Any] = {name: [] for name in (*layers, "lane", "lane_connector", "traffic_light")}
        self.tables |= {"arcline_path_3": {}, "connectivity": {}}

    def areas(self, name: str, rings: list[list[Point]]) -> None:
        polygons = [self._add("polygon", exterior_node_tokens=self._nodes(ring), holes=[]) for ring in rings]
        if name == "drivable_area":
            self._add(name, polygon_tokens=polygons)
            return
        for token in polygons:
            extra = {"stop_line_type": "YIELD"} if name == "stop_line" else {}
            self._add(name, polygon_token=token, **extra)

    def lines(self, lines: list[list[Point]]) -> None:
        for line in lines:
            token = self._add("line", node_tokens=self._nodes(line))
            self._add("lane_divider", line_token=token, lane_divider_segments=[])

    def _nodes(self, points: list[Point]) -> list[str]:
        return [self._add("node", x=x, y=y) for x, y in points]

    def _add(self, table: str, **record: Any) -> str:
        token = f"{table}-{len(self.tables[table])}"
        self.tables[table].append({"token": token, **record})
        return token


def rectangles(layer: Bool[Array, "y x"]) -> list[list[Point]]:
    """Corners of rectangles that tile the marked cells: runs of a row, joined with equal runs above."""
    open_runs: dict[tuple[int, int], int] = {}
    done: list[tuple[int, int, int, int]] = []
    for y in range(len(layer) + 1):
        runs = set(_runs(layer[y])) if y < len(layer) else set()
        ended = [run for run in open_runs if run not in runs]
        done += [(run[0], open_runs.pop(run), run[1], y) for run in ended]
        for run in runs:
            open_runs.setdefault(run, y)
    return [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, y0, x1, y1 in np.array(done, float).tolist()]


def middle_lines(layer: Bool[Array, "y x"]) -> list[list[Point]]:
    """Segments that join the middles of narrow strips in neighbouring rows, and in neighbouring columns."""
    flat = [[(x, y) for x, y in segment] for segment in _middles(layer)]
    steep = [[(y, x) for x, y in segment] for segment in _middles(layer.T)]
    return flat + steep


def _middles(layer: Array) -> list[list[Point]]:
    segments, before = [], []
    for y, row in enumerate(layer):
        here = [((start + stop) / 2, y + 0.5) for start, stop in _runs(row) if stop - start <= _WIDEST_LINE]
        segments += [[p, q] for q in here for p in before if abs(p[0] - q[0]) <= 1.0]
        before = here
    return segments


def _runs(row: Bool[Array, "x"]) -> list[tuple[int, int]]:
    """Start and end of every run of marked cells."""
    change = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(np.int8)))
    return list(zip(change[::2].tolist(), change[1::2].tolist(), strict=True))


def _lattice(views: list[_View]) -> tuple[Bool[Array, "m y x"], Float[Array, "2"], float]:
    """All maps of a scene on one lattice of the world, its lower corner and its cell."""
    cell = min(view.maps.grid.cell[0] for view in views) / 2
    corners = torch.cat([_corners(view) for view in views]).numpy()
    lower = corners.min(0)
    shape = tuple(np.ceil((corners.max(0) - lower) / cell).astype(int)[::-1])
    layers = np.zeros((len(MAP_LAYERS), *shape), bool)
    nearest = np.full(shape, np.inf, np.float32)
    for view in views:
        low, high = (np.clip(edge, 0, shape[::-1]) for edge in _window(view, lower, cell))
        y, x = np.mgrid[low[1] : high[1], low[0] : high[0]]
        world = torch.from_numpy(np.stack([x + 0.5, y + 0.5, 0 * x], -1).reshape(-1, 3) * cell)
        world[:, :2] += torch.from_numpy(lower)
        flat = transform(inverse(view.world_T_ego), world)
        flat[:, 2] = view.maps.grid.centres()[0, 0, 0, 2].double()
        index, inside = view.maps.grid.flat().cell_of(flat.float())
        distance = torch.where(inside, flat[:, :2].norm(dim=-1), torch.inf).float().numpy().reshape(y.shape)
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        closer = distance < nearest[window]
        values = view.maps.layers.flatten(1)[:, index].numpy().reshape(-1, *y.shape)
        layers[:, *window] = np.where(closer, values, layers[:, *window])
        nearest[window] = np.where(closer, distance, nearest[window])
    return layers, lower, cell


def _corners(view: _View) -> Float[Tensor, "4 2"]:
    centres = view.maps.grid.flat().centres()[0].double()
    ends = centres[[0, 0, -1, -1], [0, -1, 0, -1]]
    outer = ends + (ends - ends.mean(0)) * 2 / min(centres.shape[:2])
    return transform(view.world_T_ego, outer)[:, :2]


def _window(view: _View, lower: Array, cell: float) -> tuple[Array, Array]:
    corners = (_corners(view).numpy() - lower) / cell
    return np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)


def _placed(point: Point, lower: Array, cell: float) -> Point:
    return float(lower[0] + cell * point[0]), float(lower[1] + cell * point[1])
