"""The part that transfers: sensors in, one volume out."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cofield.draw import Key
from cofield.frame import Batch, Hidden
from cofield.grid import Grid, Volume
from cofield.models.backbones import PaperCamera
from cofield.models.camera import ConvCamera, MaskToken
from cofield.models.fuse import AddFuse, AttentionFuse, ConvFuse, Fuse
from cofield.models.lidar import Pillars
from cofield.models.lift import DepthLSS, Frusta, Lift
from cofield.models.voxelnet import VoxelNet
from cofield.ops.precision import precise


class CameraBranch(nn.Module):
    """Images to a volume: mask token, image encoder, lift."""

    def __init__(self, token: MaskToken, encoder: ConvCamera | PaperCamera, lift: Lift | DepthLSS) -> None:
        super().__init__()
        self.token, self.encoder, self.lift = token, encoder, lift

    def forward(
        self, seen: Batch, hidden: Hidden | None, draws: list[torch.Generator] | None = None
    ) -> tuple[Volume, Frusta]:
        """The volume, and the frusta that it was filled from."""
        if not seen.images.shape[1]:
            raise ValueError("this trunk has a camera encoder, but the frames have no cameras; use a LiDAR-only recipe")
        pixels = None if hidden is None else hidden.pixels(*seen.images.shape[-2:])
        images = self.token(seen.images, pixels)
        features: Float[Tensor, "n c h w"] = self.encoder(images.flatten(0, 1), draws)
        visible = seen.valid if pixels is None else seen.valid & ~pixels
        frusta = self.lift.frusta(features.unflatten(0, images.shape[:2]), seen, visible)
        return self.lift.collect(frusta, seen), frusta


class Trunk(nn.Module):
    """Whichever sensors there are, in one metric volume of `width` channels on `grid`.

    `trunk.state_dict()` is what pre-training hands over.
    """

    def __init__(
        self,
        camera: CameraBranch | None,
        lidar: Pillars | VoxelNet | None,
        fuse: Fuse | ConvFuse | AddFuse | AttentionFuse,
        grid: Grid,
    ) -> None:
        super().__init__()
        self.camera, self.lidar, self.fuse, self.grid = camera, lidar, fuse, grid

    def forward(self, batch: Batch, hidden: Hidden | None = None, seed: Key | None = None) -> Volume:
        """The volume of what may be seen.

        Args:
            seed: of the encoders' own draws, which are off without it: for every frame and camera their own.
        """
        return self.with_frusta(batch, hidden, seed)[0]

    def with_frusta(
        self, batch: Batch, hidden: Hidden | None = None, seed: Key | None = None
    ) -> tuple[Volume, Frusta | None]:
        """The volume, and what each camera knew alone; None without cameras."""
        seen = batch if hidden is None else batch.visible(hidden)
        volumes, frusta = [], None
        if self.camera is not None:
            views = [(b, n) for b in range(len(batch)) for n in range(batch.images.shape[1])]
            draws = None if seed is None else [batch.draw(b, seed, "drop path", n) for b, n in views]
            lifted, frusta = self.camera(seen, hidden, draws)
            volumes.append(lifted)
        if self.lidar is not None:
            volumes.append(self.lidar(seen))
        volume = self.fuse(volumes)
        return Volume(precise(volume.features), volume.grid), frusta
