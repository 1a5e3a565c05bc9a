"""Images to features."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cofield.models.blocks import Layers, Residual

# The usual statistics of natural images, so that pre-trained and fresh encoders see the same numbers.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MaskToken(nn.Module):
    """Images as encoders take them: normalised, with one learned patch tiled over what is hidden."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = nn.Parameter(torch.zeros(3, patch, patch))
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)

    def forward(
        self, images: Float[Tensor, "b n 3 h w"], hidden: Bool[Tensor, "b n h w"] | None
    ) -> Float[Tensor, "b n 3 h w"]:
        normal = (images - self.mean) / self.deviation
        if hidden is None:
            return normal
        height, width = images.shape[-2:]
        size = self.patch.shape[-1]
        if height % size or width % size:
            raise ValueError(f"a mask token of {size} pixels does not tile images of {height}×{width}")
        tiled = self.patch.repeat(1, height // size, width // size)
        return torch.where(hidden[:, :, None], tiled, normal)


class ConvCamera(nn.Module):
    """A small residual network: features at an eighth of the image's size."""

    stride = 8

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.layers = Layers(
            # No norm here: it would take the light of the scene out of what later layers can know.
            nn.Conv2d(3, width // 2, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
            Residual(width),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            Residual(width),
            Residual(width),
        )

    def forward(
        self, images: Float[Tensor, "n 3 h w"], draws: list[torch.Generator] | None = None
    ) -> Float[Tensor, "n c h8 w8"]:
        """The features of normalised images; nothing here is drawn."""
        return self.layers(images)
