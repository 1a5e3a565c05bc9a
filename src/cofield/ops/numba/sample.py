"""The gradient of sampling: rows of a table, each the weighted sum of what was read from it."""

from typing import no_type_check

import numpy as np
from numba import njit


@njit(cache=True, fastmath=True)
@no_type_check
def scatter_rows(index: np.ndarray, weight: np.ndarray, grad: np.ndarray, table: np.ndarray) -> None:
    """table[index[n, k]] += weight[n, k] · grad[n], in the order of n and k."""
    channels = grad.shape[1]
    for n in range(index.shape[0]):
        for k in range(index.shape[1]):
            row, share = index[n, k], weight[n, k]
            if share != 0.0:
                for c in range(channels):
                    table[row, c] += share * grad[n, c]
