"""Volume to values at points: trilinear interpolation as a weighted sum of eight table rows."""

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cofield.ops.numba.sample import scatter_rows


def sample(
    features: Float[Tensor, "b c z y x"],
    unit: Float[Tensor, "n 3"],
    sample_of: Int[Tensor, "n"],
    wraps: tuple[bool, bool, bool] = (False, False, False),
) -> Float[Tensor, "n c"]:
    """The volume of each point's sample, interpolated between the centres of the eight cells around it.

    v(u) = Σ_corners Π_axes (1 - |u·n - ½ - corner|) v[corner]

    Beyond the outermost centres the nearest one holds, or, on an axis that wraps, the first and the last are
    neighbours. Written as a bag of table rows this is several times faster on a CPU than a grid sampler, in both
    directions. Gradients reach the features, not the positions.

    Args:
        unit: positions between 0 and 1 along the grid's axes, x first.
    """
    channels, depth, height, width = features.shape[1:]
    table = features.permute(0, 2, 3, 4, 1).reshape(-1, channels)
    index, weight = corners(unit.detach(), (width, height, depth), wraps)
    index = index + (sample_of * (depth * height * width))[:, None]
    # Exported programs hold torch's own operators alone.
    kernel = bag if torch.compiler.is_exporting() else _rows
    return kernel(table, index, weight.to(table.dtype))


def bag(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Σ_k weight[n, k] · table[index[n, k]]."""
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)


_rows = torch.library.custom_op("cofield::rows", bag, mutates_args=())


@_rows.register_fake
def _(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    return table.new_empty(index.shape[0], table.shape[1])


@torch.library.custom_op("cofield::rows_backward", mutates_args=())
def _rows_backward(grad: Tensor, index: Tensor, weight: Tensor, rows: int) -> Tensor:
    table = grad.new_zeros(rows, grad.shape[1])
    if grad.device.type == "cpu":
        # The library's own gradient sorts the indices first; that alone takes longer than this.
        scatter_rows(index.numpy(), weight.numpy(), grad.contiguous().numpy(), table.numpy())
        return table
    for column, share in zip(index.unbind(1), weight.unbind(1), strict=True):
        table.index_add_(0, column, share[:, None] * grad)
    return table


@_rows_backward.register_fake
def _(grad: Tensor, index: Tensor, weight: Tensor, rows: int) -> Tensor:
    return grad.new_empty(rows, grad.shape[1])


def _keep(ctx, inputs, output) -> None:
    table, index, weight = inputs
    ctx.save_for_backward(index, weight)
    ctx.rows = len(table)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
    index, weight = ctx.saved_tensors
    return _rows_backward(grad, index, weight, ctx.rows), None, None


_rows.register_autograd(_backward, setup_context=_keep)


def corners(
    unit: Float[Tensor, "n 3"], count: tuple[int, int, int], wraps: tuple[bool, bool, bool]
) -> tuple[Int[Tensor, "n 8"], Float[Tensor, "n 8"]]:
    """The eight cells around each position in a lattice of `count` cells (x y z), flat, and their weights."""
    stride = (1, count[0], count[0] * count[1])
    places, shares = [], []
    for axis in range(3):
        n = count[axis]
        position = unit[:, axis] * n - 0.5
        if not wraps[axis]:
            position = position.clamp(0, n - 1)
        below = position.floor()
        share = position - below
        below = below.long()
        above = below + 1
        if wraps[axis]:
            below, above = below % n, above % n
        else:
            # At the last centre the cell above does not exist and has no weight.
            above = above.clamp(max=n - 1)
        places.append((below * stride[axis], above * stride[axis]))
        shares.append((1 - share, share))
    choices = list(itertools.product((0, 1), repeat=3))
    index = torch.stack([places[2][k] + places[1][j] + places[0][i] for k, j, i in choices], -1)
    weight = torch.stack([shares[2][k] * shares[1][j] * shares[0][i] for k, j, i in choices], -1)
    return index, weight
