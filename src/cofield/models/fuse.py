"""Volumes of several sensors to one."""

import torch
from torch import Tensor, nn

from cofield.grid import Volume
from cofield.models.blocks import Layers, Mix, Norm, Residual, normalised
from cofield.ops.precision import precise


class Fuse(nn.Module):
    """The volumes side by side, mixed by a 1×1×1 convolution and, if there are several, smoothed in 3-D.

    With one sensor that is a 1×1×1 convolution and nothing else.
    """

    def __init__(self, width: int, inputs: int) -> None:
        super().__init__()
        _some(inputs)
        mix = Mix(width * inputs, width)
        self.layers = Layers(mix) if inputs == 1 else Layers(mix, Residual(width, dims=3))

    def forward(self, volumes: list[Volume]) -> Volume:
        features = torch.cat([volume.features for volume in volumes], 1)
        return Volume(self.layers(features), volumes[0].grid)


class ConvFuse(nn.Module):
    """The volumes side by side, mixed by a 3×3×3 convolution (3×3 where they are flat), normalised, rectified (r).

    With one sensor it is a 1×1×1 convolution and nothing else, as are its siblings below.

    Args:
        widths: channels of each volume.
    """

    def __init__(self, widths: tuple[int, ...], width: int, flat: bool = True, norm: Norm = "group") -> None:
        super().__init__()
        _some(len(widths))
        size, around = ((1, 3, 3), (0, 1, 1)) if flat else ((3, 3, 3), (1, 1, 1))
        self.layers = (
            Layers(nn.Conv3d(widths[0], width, 1))
            if len(widths) == 1
            else Layers(
                nn.Conv3d(sum(widths), width, size, padding=around, bias=False), normalised(width, norm, 3), nn.ReLU()
            )
        )

    def forward(self, volumes: list[Volume]) -> Volume:
        features = torch.cat([volume.features for volume in volumes], 1)
        return Volume(self.layers(features), volumes[0].grid)


class AddFuse(nn.Module):
    """Each volume through its own 1×1×1 convolution; their sum, smoothed in 3-D if there are several."""

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        _some(len(widths))
        self.own = nn.ModuleList(Layers(nn.Conv3d(each, width, 1)) for each in widths)
        self.smooth = Residual(width, dims=3) if len(widths) > 1 else nn.Identity()

    def forward(self, volumes: list[Volume]) -> Volume:
        parts = [own(volume.features) for own, volume in zip(self.own, volumes, strict=True)]
        return Volume(self.smooth(torch.stack(parts).sum(0)), volumes[0].grid)


class AttentionFuse(nn.Module):
    """Each cell listens to its sensors by shares that add up to one.

    Each volume through its own 1×1×1 convolution; a softmax over the sensors, per cell and group of eight channels, of
    scores that all of them together give; the weighted sum, smoothed in 3-D.
    """

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        _some(len(widths))
        self.own = nn.ModuleList(Layers(nn.Conv3d(each, width, 1)) for each in widths)
        self.groups = max(1, width // 8)
        several = len(widths) > 1
        self.score = Layers(nn.Conv3d(width * len(widths), self.groups * len(widths), 1)) if several else None
        self.smooth = Residual(width, dims=3) if several else nn.Identity()

    def forward(self, volumes: list[Volume]) -> Volume:
        parts = [own(volume.features) for own, volume in zip(self.own, volumes, strict=True)]
        if self.score is None:
            return Volume(parts[0], volumes[0].grid)
        share = self.shares(parts)
        mixed = sum(part.unflatten(1, (self.groups, -1)) * each for part, each in zip(parts, share, strict=True))
        assert isinstance(mixed, Tensor)
        return Volume(self.smooth(mixed.flatten(1, 2)), volumes[0].grid)

    def shares(self, parts: list[Tensor]) -> Tensor:
        """How much each sensor counts in every cell: [sensor b group 1 z y x]."""
        assert self.score is not None
        scores = self.score(torch.cat(parts, 1)).unflatten(1, (len(parts), self.groups))
        return precise(scores).softmax(1).transpose(0, 1)[:, :, :, None]


def _some(inputs: int) -> None:
    if inputs < 1:
        raise ValueError("a trunk needs a camera encoder, a LiDAR encoder, or both; it was given none")
