"""The two bricks all our convolutional parts are built of."""

import itertools
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Computing:
    """What a module is that may compute in a smaller type than the fp32 its weights are stored in.

    Only what is inside is cast. Geometry and rendering are outside, so no coordinate is ever rounded; the
    reader of an output makes it fp32 again where that matters.
    """

    compute: torch.dtype | None = None

    def casting(self, input: Tensor) -> AbstractContextManager[object]:
        """The context that its layers compute in."""
        return nullcontext() if self.compute is None else torch.autocast(input.device.type, self.compute)


class Layers(Computing, nn.Sequential):
    """Layers one after the other, computing in a type of their own."""

    def forward(self, input: Tensor) -> Tensor:
        with self.casting(input):
            return super().forward(input)


def compute_in(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Let all layers of a model compute in `dtype`; None is the type of their weights."""
    for part in module.modules():
        if isinstance(part, Computing):
            part.compute = dtype


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation: it treats a frame alike in every batch, also in one spread over processes."""
    return nn.GroupNorm(max(1, channels // 8), channels)


Norm = Literal["group", "batch", "frozen"]


class Frozen(nn.BatchNorm2d):
    """Batch normalisation by the statistics it was loaded with: what follows trains, they do not."""

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes: it is the same map at every place."""


def normalised(channels: int, kind: Norm, dims: int = 2) -> nn.Module:
    """Group norm for weights that start fresh; batch norm, learning or frozen, for those that were released with it."""
    match kind:
        case "group":
            return norm(channels)
        case "batch":
            return nn.BatchNorm2d(channels) if dims == 2 else nn.BatchNorm3d(channels)
        case "frozen":
            return Frozen(channels)


class Residual(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), in 2-D or 3-D."""

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.path = Layers(
            norm(channels),
            nn.ReLU(),
            convolution(channels, channels, 3, padding=1),
            norm(channels),
            nn.ReLU(),
            convolution(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.path(x)


class Mix(nn.Conv3d):
    """A 1×1×1 convolution as one matrix product, its result with each cell's channels side by side in memory.

    That is how the field looks a volume up: of any other layout every look would make a copy, there and back.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 1)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


def mlp(*widths: int) -> Layers:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += [nn.ReLU()] * (index > 0) + [nn.Linear(before, after)]
    return Layers(*layers)
