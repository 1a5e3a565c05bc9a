"""The ground of a town in closed form: what lies at (x, y), how high it is, and where a ray meets it.

Roads run along the two axes of a plan, which two sine shears bend into the town: x = px + g(py),
y = py + f(x). The same function answers cameras, LiDAR and map layers, so they cannot disagree.
Roads lie at z = 0; everything else (sidewalks, medians, lawns) is one kerb higher.
"""

from dataclasses import dataclass
from math import atan2, cos, inf, sin, sqrt
from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float, Int
from numba import njit

from cofield.classes import LIDARSEG, MAP_LAYERS

Array = np.ndarray

KERB = 0.12
_STRETCH = 1.3  # no town bends so much that a way in the plan is longer than the one in the town by more
ROUNDING = 4.5  # radius of the kerb at a street corner

# Columns of a road: centre line, half width of the carriageway, half width of the median, lanes per
# direction, lane width, verge, sidewalk, and whether its junctions have crossings and stop lines.
CENTRE, HALF, MEDIAN, LANES, LANE, VERGE, WALK, SIGNAL = range(8)

ASPHALT, SIDEWALK, GRASS, ISLAND, CARPARK, FIELD, YARD, KERBSTONE = range(8)
NO_PAINT, WHITE, GOLD = range(3)
PAINT_SHIFT, LAYER_SHIFT = 3, 5

SURFACE_LABELS = np.array(
    [
        LIDARSEG.index(name)
        for name in ("driveable_surface", "sidewalk", "terrain", "other_flat", "driveable_surface", "terrain",
                     "other_flat", "sidewalk")
    ]
)  # fmt: skip
_DRIVABLE, _CROSSING, _WALKWAY, _STOP, _CARPARK, _DIVIDER = (
    1 << (LAYER_SHIFT + MAP_LAYERS.index(name))
    for name in ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")
)
_WHITE, _GOLD = WHITE << PAINT_SHIFT, GOLD << PAINT_SHIFT


@dataclass(frozen=True)
class Ground:
    """The ground plan of one town.

    Args:
        bend: amplitude, wave number and phase of f(x), then of g(py).
        mains, crosses: roads along x and along y, a row each (see the columns above).
        lots: paved rectangles x0, x1, y0, y1 of the plan; a fifth column is 1 for car parks, 0 for driveways.
        yards: for each block between roads [mains + 1, crosses + 1] whether it is paved.
    """

    bend: Float[Array, "6"]
    mains: Float[Array, "m 8"]
    crosses: Float[Array, "c 8"]
    lots: Float[Array, "l 5"]
    yards: Bool[Array, "m1 c1"]

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The plan as kernels take it."""
        return self.bend, self.mains, self.crosses, self.lots, self.yards

    def to_town(self, plan: Float[Array, "*n 2"]) -> Float[Array, "*n 2"]:
        """Positions of the plan, bent into the town."""
        a, k, p, b, q, r = self.bend
        x = plan[..., 0] + b * np.sin(q * plan[..., 1] + r)
        return np.stack([x, plan[..., 1] + a * np.sin(k * x + p)], -1)

    def placed(self, px: float, py: float, facing: float) -> tuple[float, float, float]:
        """Where in the town a place of the plan is, and the heading there of the plan's direction `facing`."""
        a, k, p, b, q, r = self.bend.tolist()
        x = px + b * sin(q * py + r)
        across, along = b * q * cos(q * py + r), a * k * cos(k * x + p)
        east = cos(facing) + across * sin(facing)
        return x, py + a * sin(k * x + p), atan2(sin(facing) + along * east, east)

    def slopes(self, plan: Float[Array, "*n 2"]) -> Float[Array, "*n 2 2"]:
        """The derivative of `to_town`: how plan directions turn."""
        a, k, p, b, q, r = self.bend
        x = plan[..., 0] + b * np.sin(q * plan[..., 1] + r)
        across, along = b * q * np.cos(q * plan[..., 1] + r), a * k * np.cos(k * x + p)
        rows = [np.stack([np.ones_like(x), across], -1), np.stack([along, 1 + along * across], -1)]
        return np.stack(rows, -2)

    def codes(self, xy: Float[Array, "n 2"]) -> Int[Array, "n"]:
        """Surface, paint and map layers at positions of the town, packed as `surface_of` and `layers_of` read them."""
        return _codes(np.ascontiguousarray(xy, np.float64), *self.arrays)

    def heights(self, xy: Float[Array, "n 2"]) -> Float[Array, "n"]:
        """The ground's height at positions of the town."""
        return np.where(self.codes(xy) & _DRIVABLE, 0.0, KERB)

    def meet(
        self, origin: Float[Array, "r 3"], direction: Float[Array, "r 3"], limit: Float[Array, "r"]
    ) -> tuple[Float[Array, "r"], Int[Array, "r"]]:
        """How far along each ray the ground is, infinite (1e30) where not before `limit`, and its code there."""
        return _meet(origin, direction, limit, *self.arrays)


def surface_of(codes: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """The kind of surface: ASPHALT, SIDEWALK, ..."""
    return codes & 7


def layers_of(codes: Int[Array, "*n"]) -> Bool[Array, "m *n"]:
    """Which map layers cover a place, in the order of MAP_LAYERS."""
    bits = np.arange(len(MAP_LAYERS)) + LAYER_SHIFT
    return (codes[None] >> bits.reshape(-1, *[1] * codes.ndim) & 1).astype(bool)


@njit(cache=True, inline="always")
@no_type_check
def _road(d, gap, side, along, road):
    """The code at signed distance d (left positive) from a road's axis, `gap` metres before a junction's edge.

    `side` is the sign of the way to the junction, negative when it lies ahead.
    """
    code = ASPHALT | _DRIVABLE
    off, median, lanes, lane = abs(d), road[MEDIAN], road[LANES], road[LANE]
    clear = ROUNDING
    if road[SIGNAL] > 0:
        if ROUNDING - 1.0 <= gap <= ROUNDING + 2.4:
            code |= _CROSSING
            if (off + 0.25) % 1.0 < 0.5:
                code |= _WHITE
            return code
        clear = ROUNDING + 3.9
        if ROUNDING + 3.2 <= gap < clear:
            if d * side > 0 and off > median:
                code |= _STOP | _WHITE
            return code
    if gap < clear:
        return code
    if off < median:
        return ISLAND if gap > clear + 0.6 else code
    if median == 0.0:
        if off < 0.3:
            code |= _DIVIDER
            if 0.07 < off < 0.2:
                code |= _GOLD
    elif off < median + 0.4:
        if off < median + 0.3:
            code |= _DIVIDER
        if off > median + 0.22 and off < median + 0.34:
            code |= _GOLD
    for line in range(1, int(lanes)):
        q = abs(off - median - line * lane)
        if q < 0.3:
            code |= _DIVIDER
            if q < 0.075 and (along % 7.5 < 3.0 or gap < clear + 22.0):
                code |= _WHITE
    edge = median + lanes * lane
    if road[HALF] - edge > 1.0 and abs(off - edge) < 0.06:
        code |= _WHITE
    return code


@njit(cache=True, inline="always")
@no_type_check
def _nearest(at, roads):
    """The road nearest to a plan coordinate, the signed distance to its axis, and how many roads lie before."""
    nearest, distance, before = 0, inf, 0
    for i in range(len(roads)):
        d = at - roads[i, CENTRE]
        before += d > 0
        if abs(d) < abs(distance):
            nearest, distance = i, d
    return nearest, distance, before


@njit(cache=True, inline="always")
@no_type_check
def _axes(x, y, bend, mains, crosses):
    """A place in the plan, and its nearest main and crossing road: number, signed distance, how many lie before."""
    py = y - bend[0] * sin(bend[1] * x + bend[2])
    px = x - bend[3] * sin(bend[4] * py + bend[5])
    return px, py, _nearest(py, mains), _nearest(px, crosses)


@njit(cache=True, inline="always")
@no_type_check
def _clearance(main, cross, mains, crosses):
    """How far at least a place of a road is from anything but road; negative where that is not known."""
    (m, dm, _), (c, dc, _) = main, cross
    along_main, along_cross = mains[m, HALF] - abs(dm), crosses[c, HALF] - abs(dc)
    # Beside a median, the nearer of it and the kerb counts.
    if mains[m, MEDIAN] > 0.0:
        along_main = min(along_main, abs(dm) - mains[m, MEDIAN])
    if crosses[c, MEDIAN] > 0.0:
        along_cross = min(along_cross, abs(dc) - crosses[c, MEDIAN])
    return max(along_main, along_cross)


@njit(cache=True)
@no_type_check
def _code(x, y, bend, mains, crosses, lots, yards):
    px, py, main, cross = _axes(x, y, bend, mains, crosses)
    return _code_at(px, py, main, cross, mains, crosses, lots, yards)


@njit(cache=True, inline="always")
@no_type_check
def _code_at(px, py, main, cross, mains, crosses, lots, yards):
    (m, dm, row), (c, dc, column) = main, cross
    am, ac = abs(dm) - mains[m, HALF], abs(dc) - crosses[c, HALF]
    if am <= 0.0:
        if ac <= 0.0:
            return ASPHALT | _DRIVABLE
        return _road(dm, ac, dc, px, mains[m])
    if ac <= 0.0:
        return _road(-dc, am, dm, py, crosses[c])
    if am < ROUNDING and ac < ROUNDING and (ROUNDING - am) ** 2 + (ROUNDING - ac) ** 2 > ROUNDING**2:
        return ASPHALT | _DRIVABLE
    for i in range(len(lots)):
        if lots[i, 0] <= px <= lots[i, 1] and lots[i, 2] <= py <= lots[i, 3]:
            if lots[i, 4] == 0.0:
                return ASPHALT | _DRIVABLE
            code = CARPARK | _DRIVABLE | _CARPARK
            if min(py - lots[i, 2], lots[i, 3] - py) < 5.0 and (px - lots[i, 0]) % 2.7 < 0.12:
                code |= _WHITE
            return code
    band_m, band_c = mains[m, VERGE] + mains[m, WALK], crosses[c, VERGE] + crosses[c, WALK]
    if am < band_m:
        # At corners and crossings the verge is paved.
        if am > mains[m, VERGE] or ac < max(band_c, ROUNDING + 2.6):
            return SIDEWALK | _WALKWAY
        return GRASS
    if ac < band_c:
        if ac > crosses[c, VERGE] or am < max(band_m, ROUNDING + 2.6):
            return SIDEWALK | _WALKWAY
        return GRASS
    return YARD if yards[row, column] else FIELD


@njit(cache=True)
@no_type_check
def _codes(xy, bend, mains, crosses, lots, yards):
    codes = np.empty(len(xy), np.int64)
    for i in range(len(xy)):
        codes[i] = _code(xy[i, 0], xy[i, 1], bend, mains, crosses, lots, yards)
    return codes


@njit(cache=True)
@no_type_check
def _meet(origin, direction, limit, bend, mains, crosses, lots, yards):
    distance = np.full(len(origin), np.float32(1e30))
    codes = np.zeros(len(origin), np.int32)
    for i in range(len(origin)):
        ox, oy, oz = origin[i, 0], origin[i, 1], origin[i, 2]
        dx, dy, dz = direction[i, 0], direction[i, 1], direction[i, 2]
        if dz > -1e-5 or oz <= KERB:
            continue
        near, far = (KERB - oz) / dz, -oz / dz
        if near >= limit[i]:
            continue
        px, py, main, cross = _axes(ox + near * dx, oy + near * dy, bend, mains, crosses)
        span = (far - near) * sqrt(dx * dx + dy * dy)
        steps = 0
        if _clearance(main, cross, mains, crosses) < _STRETCH * span:
            code = _code_at(px, py, main, cross, mains, crosses, lots, yards)
            if not code & _DRIVABLE:
                distance[i], codes[i] = near, code
                continue
            steps = min(1 + int(span / 0.7), 8)
        # Between the two levels the ray may meet the side of a kerb: look along it, then halve.
        last, met = near, False
        code, here = 0, near
        for step in range(1, steps + 1):
            here = near + (far - near) * step / steps
            code = _code(ox + here * dx, oy + here * dy, bend, mains, crosses, lots, yards)
            if not code & _DRIVABLE:
                met = True
                break
            last = here
        if not met:
            if far < limit[i]:
                distance[i], codes[i] = far, _code(ox + far * dx, oy + far * dy, bend, mains, crosses, lots, yards)
            continue
        low, high = last, here
        for _ in range(10):
            middle = 0.5 * (low + high)
            if _code(ox + middle * dx, oy + middle * dy, bend, mains, crosses, lots, yards) & _DRIVABLE:
                low = middle
            else:
                high = middle
        if high < limit[i]:
            distance[i] = high
            codes[i] = KERBSTONE if code & 7 != ISLAND else ISLAND
    return distance, codes
