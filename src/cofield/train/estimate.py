"""What a run will need, measured on a frame or two before its first step."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cofield.frame import Batch

GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds.

    Args:
        weights: of the weights, their gradients and the optimiser's two moments.
        frame: what one frame keeps from the forward to the backward pass.
        seconds: one frame takes, there and back.
    """

    weights: int
    frame: int
    seconds: float

    def describe(self, frames: int, at_once: int, steps: int) -> str:
        """What that means for steps of so many frames, of which a process takes some at once."""
        memory = (self.weights + self.frame * at_once) / GIB
        minutes = self.seconds * frames * steps / 60
        return (
            f"about {memory:.1f} GiB beside the program and its frames ({self.frame / GIB:.2f} a frame) and, frames "
            f"one after the other, {minutes:.0f} minutes for {steps} steps of {frames} frames"
        )


def estimate(module: nn.Module, batch: Batch, loss: Callable[[Batch], Tensor]) -> Estimate:
    """Take a batch there and back twice, measure the second time and divide by its frames; gradients are forgotten."""
    own = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for last in (False, True):
        began = time.monotonic()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = loss(batch)
        result.backward()
        if last and result.is_cuda:
            torch.cuda.synchronize()
        seconds = time.monotonic() - began
    module.zero_grad(set_to_none=True)
    weights = 4 * sum(weight.numel() * weight.element_size() for weight in module.parameters())
    return Estimate(weights, sum(kept.values()) // len(batch), seconds / len(batch))
