"""Depth ⊗ features to voxels, without ever building the frustum of their products."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def splat(
    share: Float[Tensor, "p d"], features: Float[Tensor, "p c"], cell: Int[Tensor, "p d"], cells: int
) -> Float[Tensor, "v c"]:
    """out[v] = Σ over pixels p and bins d with cell[p, d] = v of share[p, d] · features[p].

    Args:
        cell: the flat voxel of each pixel's depth bin; -1 for bins outside the grid.
    """
    # Exported programs hold torch's own operators alone.
    kernel = depth_by_depth if torch.compiler.is_exporting() else _splat
    return kernel(share, features, cell, cells)


def depth_by_depth(share: Tensor, features: Tensor, cell: Tensor, cells: int) -> Tensor:
    """The sum of `splat`, one bin of all pixels after the other."""
    # One row more, for what falls outside; it is cut off.
    out = features.new_zeros(cells + 1, features.shape[1])
    place = torch.where(cell < 0, cells, cell)
    for depth in range(share.shape[1]):
        out.index_add_(0, place[:, depth], share[:, depth, None] * features)
    return out[:cells].clone()


_splat = torch.library.custom_op("cofield::splat", depth_by_depth, mutates_args=())


@_splat.register_fake
def _(share: Tensor, features: Tensor, cell: Tensor, cells: int) -> Tensor:
    return features.new_empty(cells, features.shape[1])


@torch.library.custom_op("cofield::splat_backward", mutates_args=())
def _splat_backward(grad: Tensor, share: Tensor, features: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    table = torch.cat([grad, grad.new_zeros(1, grad.shape[1])])
    place = torch.where(cell < 0, len(grad), cell)
    grad_features = F.embedding_bag(place, table, mode="sum", per_sample_weights=share)
    grad_share = torch.stack([(table[column] * features).sum(-1) for column in place.unbind(1)], 1)
    return grad_share, grad_features


@_splat_backward.register_fake
def _(grad: Tensor, share: Tensor, features: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(share), torch.empty_like(features)


def _keep(ctx, inputs, output) -> None:
    share, features, cell, _ = inputs
    ctx.save_for_backward(share, features, cell)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    grad_share, grad_features = _splat_backward(grad.contiguous(), *ctx.saved_tensors)
    return grad_share, grad_features, None, None


_splat.register_autograd(_backward, setup_context=_keep)
for _device in ("cpu", "cuda"):
    _splat.register_autocast(_device, torch.float32)
