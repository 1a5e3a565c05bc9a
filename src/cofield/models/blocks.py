"""The two bricks all our convolutional parts are built of."""

import itertools

import torch
from torch import Tensor, nn


class Layers(nn.Sequential):
    """Layers that may compute in a smaller type than the fp32 they are stored in.

    Only what is inside is cast. Geometry and rendering are outside, so no coordinate is ever rounded; the
    reader of an output makes it fp32 again where that matters.
    """

    compute: torch.dtype | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.compute is None:
            return super().forward(input)
        with torch.autocast(input.device.type, self.compute):
            return super().forward(input)


def compute_in(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Let all layers of a model compute in `dtype`; None is the type of their weights."""
    for part in module.modules():
        if isinstance(part, Layers):
            part.compute = dtype


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation: it treats a frame alike in every batch, also in one spread over processes."""
    return nn.GroupNorm(max(1, channels // 8), channels)


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


def mlp(*widths: int) -> Layers:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += [nn.ReLU()] * (index > 0) + [nn.Linear(before, after)]
    return Layers(*layers)
