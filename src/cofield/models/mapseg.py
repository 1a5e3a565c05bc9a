"""A volume to map layers and occupied ground, seen from above."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cofield.classes import DETECTION, MAP_LAYERS, VEHICLES
from cofield.frame import Batch, Boxes
from cofield.grid import BoxGrid, Grid, Volume
from cofield.models.blocks import Layers, Residual

OCCUPANCY = {"vehicle": VEHICLES, "pedestrian": ("pedestrian",)}
LAYERS = (*MAP_LAYERS.names, *OCCUPANCY)


class MapHead(nn.Module):
    """The six map layers, and where vehicles and pedestrians stand, as logits on a finer raster than the volume's.

    Args:
        finer: cells of the raster along one cell of the volume.
        gamma: of the focal loss; 0 is plain cross-entropy.
        balance: the most that a layer's positive cells may weigh. They weigh as much as its negative ones together, up
            to this, so that a layer which covers little is not drowned.
    """

    def __init__(
        self, channels: int, grid: Grid, width: int = 64, finer: int = 2, gamma: float = 2.0, balance: float = 1.0
    ) -> None:
        super().__init__()
        if not isinstance(grid, BoxGrid):
            raise ValueError("maps are rasters along x and y; a cylindrical trunk has none")
        flat = grid.flat()
        count = (flat.count[0] * finer, flat.count[1] * finer, 1)
        self.grid = replace(flat, count=count, cell=(flat.cell[0] / finer, flat.cell[1] / finer, flat.cell[2]))
        self.gamma, self.balance = gamma, balance
        self.layers = Layers(
            nn.Conv2d(channels * grid.count[2], width, 1),
            Residual(width),
            Residual(width),
            nn.Upsample(scale_factor=finer, mode="bilinear"),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, len(LAYERS), 1),
        )

    def forward(self, volume: Volume) -> Float[Tensor, "b m y x"]:
        return self.layers(volume.features.flatten(1, 2)).float()

    def encode(self, batch: Batch) -> Bool[Tensor, "b m y x"]:
        """What is true: the frames' maps, and the footprints of their boxes."""
        if batch.maps is None or any(boxes is None for boxes in batch.boxes):
            raise ValueError("map segmentation needs frames with maps and boxes; these have none")
        if batch.maps.shape[-2:] != self.grid.shape[1:]:
            raise ValueError(
                f"the frames' maps are {list(batch.maps.shape[-2:])} cells, the head's {list(self.grid.shape[1:])}; "
                f"open the source with map_grid {self.grid.describe()}"
            )
        footprints = [footprint(boxes, self.grid) for boxes in batch.boxes if boxes is not None]
        return torch.cat([batch.maps, torch.stack(footprints)], 1)

    def loss(self, logits: Float[Tensor, "b m y x"], truth: Bool[Tensor, "b m y x"]) -> Float[Tensor, ""]:
        """Focal cross-entropy, the mean over cells summed over layers: easy cells, which are most, count little."""
        bce = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none")
        miss = torch.where(truth, torch.sigmoid(-logits), torch.sigmoid(logits))
        share = truth.float().mean((0, 2, 3), keepdim=True)
        positive = ((1 - share) / share).clamp(1.0, self.balance)
        return (bce * miss**self.gamma * torch.where(truth, positive, 1.0)).mean((0, 2, 3)).sum()

    def decode(self, logits: Float[Tensor, "b m y x"]) -> Float[Tensor, "b m y x"]:
        """The probability of every layer in every cell."""
        return logits.sigmoid()


def footprint(boxes: Boxes, grid: Grid) -> Bool[Tensor, "k y x"]:
    """The cells whose centres are inside a vehicle's or a pedestrian's box, seen from above."""
    centres = grid.centres(boxes.centre.device)[0]
    level = replace(boxes, centre=boxes.centre * boxes.centre.new_tensor([1, 1, 0]))
    ground = centres * centres.new_tensor([1, 1, 0])
    rasters = []
    for names in OCCUPANCY.values():
        wanted = torch.tensor([DETECTION.index(name) for name in names], device=boxes.label.device)
        chosen = level.select(torch.isin(boxes.label, wanted))
        inside = chosen.contains(ground.flatten(0, 1)).any(0)
        rasters.append(inside.view(ground.shape[:2]))
    return torch.stack(rasters)
