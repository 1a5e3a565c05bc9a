"""The part that transfers: sensors in, one volume out."""

from jaxtyping import Float
from torch import Tensor, nn

from cofield.frame import Batch, Hidden
from cofield.grid import Grid, Volume
from cofield.models.camera import ConvCamera, MaskToken
from cofield.models.fuse import Fuse
from cofield.models.lidar import Pillars
from cofield.models.lift import Lift


class CameraBranch(nn.Module):
    """Images to a volume: mask token, image encoder, lift."""

    def __init__(self, token: MaskToken, encoder: ConvCamera, lift: Lift) -> None:
        super().__init__()
        self.token, self.encoder, self.lift = token, encoder, lift

    def forward(self, seen: Batch, hidden: Hidden | None) -> Volume:
        if not seen.images.shape[1]:
            raise ValueError("this trunk has a camera encoder, but the frames have no cameras; use a LiDAR-only recipe")
        pixels = None if hidden is None else hidden.pixels(*seen.images.shape[-2:])
        images = self.token(seen.images, pixels)
        features: Float[Tensor, "n c h w"] = self.encoder(images.flatten(0, 1))
        visible = seen.valid if pixels is None else seen.valid & ~pixels
        return self.lift(features.unflatten(0, images.shape[:2]), seen, visible)


class Trunk(nn.Module):
    """Whichever sensors there are, in one metric volume of `width` channels on `grid`.

    `trunk.state_dict()` is what pre-training hands over.
    """

    def __init__(self, camera: CameraBranch | None, lidar: Pillars | None, fuse: Fuse, grid: Grid) -> None:
        super().__init__()
        self.camera, self.lidar, self.fuse, self.grid = camera, lidar, fuse, grid

    def forward(self, batch: Batch, hidden: Hidden | None = None) -> Volume:
        seen = batch if hidden is None else batch.visible(hidden)
        volumes = []
        if self.camera is not None:
            volumes.append(self.camera(seen, hidden))
        if self.lidar is not None:
            volumes.append(self.lidar(seen))
        volume = self.fuse(volumes)
        return Volume(volume.features.float(), volume.grid)
