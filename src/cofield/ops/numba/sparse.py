"""Kernel maps of sparse volumes, and the scatter of rows that a convolution ends with."""

from typing import no_type_check

import numpy as np
from numba import njit


@njit(cache=True)
@no_type_check
def link(
    keys: np.ndarray,
    order: np.ndarray,
    sites: np.ndarray,
    sites_order: np.ndarray,
    shape: tuple,
    kernel: tuple,
    stride: tuple,
    padding: tuple,
    wraps: tuple,
    source: np.ndarray,
    target: np.ndarray,
    starts: np.ndarray,
) -> None:
    """The pairs (source row, target row) of each kernel cell, grouped by cell.

    Both sides are walked in ascending order, so what a target wants only ever moves on: one pass of two pointers
    per kernel cell and no table to look up. Only across the seam of an axis that wraps is there a step back.
    """
    deep, tall, wide = shape
    found, cell = 0, 0
    for kz in range(kernel[0]):
        for ky in range(kernel[1]):
            for kx in range(kernel[2]):
                at, last = 0, np.int64(-1)
                for row in sites_order:
                    z = sites[row, 1] * stride[0] - padding[0] + kz
                    y = sites[row, 2] * stride[1] - padding[1] + ky
                    x = sites[row, 3] * stride[2] - padding[2] + kx
                    if wraps[0]:
                        z %= deep
                    if wraps[1]:
                        y %= tall
                    if wraps[2]:
                        x %= wide
                    if z < 0 or z >= deep or y < 0 or y >= tall or x < 0 or x >= wide:
                        continue
                    wanted = ((sites[row, 0] * deep + z) * tall + y) * wide + x
                    if wanted < last:
                        at = np.searchsorted(keys, wanted)
                    last = wanted
                    while at < len(keys) and keys[at] < wanted:
                        at += 1
                    if at < len(keys) and keys[at] == wanted:
                        source[found], target[found] = order[at], row
                        found += 1
                cell += 1
                starts[cell] = found


@njit(cache=True)
@no_type_check
def reach(
    sites: np.ndarray,
    shape: tuple,
    coarse: tuple,
    kernel: tuple,
    stride: tuple,
    padding: tuple,
    wraps: tuple,
    keys: np.ndarray,
) -> int:
    """The flat places of `coarse` that a strided kernel links to each site, with repeats; how many there are."""
    places = np.empty((3, 3 * max(kernel)), np.int64)
    counts = np.empty(3, np.int64)
    found = 0
    for row in range(len(sites)):
        for axis in range(3):
            count = 0
            turns = 1 if wraps[axis] else 0
            for k in range(kernel[axis]):
                for turn in range(-turns, turns + 1):
                    at = sites[row, axis + 1] + padding[axis] - k + turn * shape[axis]
                    if at >= 0 and at % stride[axis] == 0 and at // stride[axis] < coarse[axis]:
                        places[axis, count] = at // stride[axis]
                        count += 1
            counts[axis] = count
        for i in range(counts[0]):
            for j in range(counts[1]):
                for k in range(counts[2]):
                    plane = (sites[row, 0] * coarse[0] + places[0, i]) * coarse[1] + places[1, j]
                    keys[found] = plane * coarse[2] + places[2, k]
                    found += 1
    return found


@njit(cache=True)
@no_type_check
def add_rows(rows: np.ndarray, target: np.ndarray, out: np.ndarray) -> None:
    """out[target[n]] += rows[n]."""
    channels = rows.shape[1]
    for n in range(len(rows)):
        # Read once: a row that could change within the loop keeps the loop from being vectorised.
        row = target[n]
        for c in range(channels):
            out[row, c] += rows[n, c]


@njit(cache=True)
@no_type_check
def add_bfloat_rows(bits: np.ndarray, target: np.ndarray, out: np.ndarray) -> None:
    """out[target[n]] += rows[n] in fp32, of bfloat16 rows given by their bits: the upper half of a float's."""
    channels = bits.shape[1]
    for n in range(len(bits)):
        row = target[n]
        for c in range(channels):
            out[row, c] += np.uint32(np.uint32(bits[n, c]) << np.uint32(16)).view(np.float32)
