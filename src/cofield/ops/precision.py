"""Half precision is for layers alone: what leaves them is made exact again."""

import torch
from jaxtyping import Float
from torch import Tensor


def precise(values: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The values in fp32, or in fp64 if they already are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
