"""Upright boxes: shared areas, greedy suppression, and points inside."""

import math
from typing import no_type_check

import numpy as np
from numba import njit


@njit(cache=True)
@no_type_check
def _clamp(value, limit):
    return min(max(value, -limit), limit)


@njit(cache=True)
@no_type_check
def _shared(a, b):
    """The area of a rectangle's part in another: -∮ clamp(y) d clamp(x) along a's edges, in b's own frame."""
    dx, dy = a[0] - b[0], a[1] - b[1]
    reach = math.hypot(a[2], a[3]) + math.hypot(b[2], b[3])
    if 4 * (dx * dx + dy * dy) > reach * reach * (1 + 1e-12):
        return 0.0
    cos, sin = math.cos(b[4]), math.sin(b[4])
    x, y = dx * cos + dy * sin, dy * cos - dx * sin
    turn, wide, high = a[4] - b[4], b[2] / 2, b[3] / 2
    along_x, along_y = math.cos(turn) * a[2] / 2, math.sin(turn) * a[2] / 2
    aside_x, aside_y = -math.sin(turn) * a[3] / 2, math.cos(turn) * a[3] / 2
    area = 0.0
    x0, y0 = x - along_x + aside_x, y - along_y + aside_y
    for corner in range(4):
        ahead = 1.0 if corner == 1 or corner == 2 else -1.0
        left = 1.0 if corner >= 2 else -1.0
        x1, y1 = x + ahead * along_x + left * aside_x, y + ahead * along_y + left * aside_y
        first, last = _clamp(x0, wide), _clamp(x1, wide)
        if first != last:
            slope = (y1 - y0) / (x1 - x0)
            start, stop = y0 + (first - x0) * slope, y0 + (last - x0) * slope
            low, top = min(start, stop), max(start, stop)
            mean = (_clamp(low, high) + _clamp(top, high)) / 2
            if top > low:
                below = min(max((-high - low) / (top - low), 0.0), 1.0)
                above = min(max((top - high) / (top - low), 0.0), 1.0)
                mean = (above - below) * high + (1 - above - below) * mean
            area -= (last - first) * mean
        x0, y0 = x1, y1
    return max(area, 0.0)


@njit(cache=True)
@no_type_check
def overlap(a: np.ndarray, b: np.ndarray, area: np.ndarray) -> None:
    """area[i, n, m] = what rectangles a[i, n] and b[i, m] share."""
    for i in range(a.shape[0]):
        for n in range(a.shape[1]):
            for m in range(b.shape[1]):
                area[i, n, m] = _shared(a[i, n], b[i, m])


@njit(cache=True)
@no_type_check
def suppress(rectangle: np.ndarray, group: np.ndarray, most: float, kept: np.ndarray) -> None:
    """Clear `kept` wherever an earlier kept rectangle of the same group overlaps too much."""
    for i in range(len(rectangle)):
        if not kept[i]:
            continue
        size = rectangle[i, 2] * rectangle[i, 3]
        for j in range(i + 1, len(rectangle)):
            if kept[j] and group[i] == group[j]:
                shared = _shared(rectangle[j], rectangle[i])
                union = rectangle[j, 2] * rectangle[j, 3] + size - shared
                if shared > 0 and shared / union > most:
                    kept[j] = False


@njit(cache=True)
@no_type_check
def members(
    xyz: np.ndarray, cuboid: np.ndarray, sample: np.ndarray, sample_of: np.ndarray, first: np.ndarray, count: np.ndarray
) -> None:
    """The first box of each point, and each box's number of points."""
    for n in range(len(cuboid)):
        cos, sin = math.cos(cuboid[n, 6]), math.sin(cuboid[n, 6])
        half_x, half_y, half_z = cuboid[n, 3] / 2, cuboid[n, 4] / 2, cuboid[n, 5] / 2
        # A little more than the corners' distance: what is outside of it needs no turning.
        reach = math.hypot(half_x, half_y) * (1 + 1e-9)
        for p in range(len(xyz)):
            x = xyz[p, 0] - cuboid[n, 0]
            y = xyz[p, 1] - cuboid[n, 1]
            if abs(x) > reach or abs(y) > reach or sample[p] != sample_of[n]:
                continue
            if abs(xyz[p, 2] - cuboid[n, 2]) > half_z:
                continue
            if abs(x * cos + y * sin) <= half_x and abs(y * cos - x * sin) <= half_y:
                count[n] += 1
                if first[p] < 0:
                    first[p] = n
