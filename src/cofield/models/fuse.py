"""Volumes of several sensors to one."""

import torch
from torch import nn

from cofield.grid import Volume
from cofield.models.blocks import Layers, Residual


class Fuse(nn.Module):
    """The volumes side by side, mixed by a 1×1×1 convolution and, if there are several, smoothed in 3-D.

    With one sensor that is a 1×1×1 convolution and nothing else.
    """

    def __init__(self, width: int, inputs: int) -> None:
        super().__init__()
        if inputs < 1:
            raise ValueError("a trunk needs a camera encoder, a LiDAR encoder, or both; it was given none")
        mix = nn.Conv3d(width * inputs, width, 1)
        self.layers = Layers(mix) if inputs == 1 else Layers(mix, Residual(width, dims=3))

    def forward(self, volumes: list[Volume]) -> Volume:
        features = torch.cat([volume.features for volume in volumes], 1)
        return Volume(self.layers(features), volumes[0].grid)
