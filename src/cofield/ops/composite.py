"""Density and values to integrals along rays."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cofield.ops.precision import precise


def ray_weights(density: Float[Tensor, "*r s"], step: Float[Tensor, "*r s"]) -> Float[Tensor, "*r s"]:
    """How much of what a ray sees is at each sample.

    w_i = T_i (1 - exp(-σ_i δ_i)),  T_i = exp(-Σ_{j<i} σ_j δ_j)

    The sum before each sample is taken as such. Subtracting the sample's own share from an inclusive sum would
    lose T behind opaque walls to rounding.
    """
    optical = precise(density * step)
    before = F.pad(optical[..., :-1].cumsum(-1), (1, 0))
    return torch.exp(-before) * -torch.expm1(-optical)


def composite(weight: Float[Tensor, "*r s"], value: Float[Tensor, "*r s c"]) -> Float[Tensor, "*r c"]:
    """The integral of `value` along each ray."""
    return torch.einsum("...s,...sc->...c", weight, value.to(weight.dtype))
