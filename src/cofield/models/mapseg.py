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

    The paper's raster is ±50 m in cells of 0.5 m around the ego, and it has the six layers alone.

    Args:
        finer: cells of the raster along one cell of the volume.
        gamma: of the focal loss; 0 is plain cross-entropy.
        balance: the most that a layer's positive cells may weigh. They weigh as much as its negative ones together, up
            to this, so that a layer which covers little is not drowned.
        raster: the cells to fill, if not the volume's made finer. Beyond the volume nothing is known of them.
        occupied: whether to say where vehicles and pedestrians stand.
    """

    def __init__(
        self,
        channels: int,
        grid: Grid,
        width: int = 64,
        finer: int = 2,
        gamma: float = 2.0,
        balance: float = 1.0,
        raster: BoxGrid | None = None,
        occupied: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(grid, BoxGrid):
            raise ValueError("maps are rasters along x and y; a cylindrical trunk has none")
        flat = grid.flat()
        count = (flat.count[0] * finer, flat.count[1] * finer, 1)
        cell = (flat.cell[0] / finer, flat.cell[1] / finer, flat.cell[2])
        self.grid = raster or BoxGrid(flat.lower, cell, count, flat.origin_ego)
        self.names = LAYERS if occupied else MAP_LAYERS.names
        self.gamma, self.balance = gamma, balance
        self.layers = Layers(
            nn.Conv2d(channels * grid.count[2], width, 1),
            Residual(width),
            Residual(width),
            Onto(grid, raster) if raster else nn.Upsample(scale_factor=finer, mode="bilinear"),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, len(self.names), 1),
        )

    def forward(self, volume: Volume) -> Float[Tensor, "b m y x"]:
        return self.layers(volume.features.flatten(1, 2)).float()

    def encode(self, batch: Batch) -> Bool[Tensor, "b m y x"]:
        """What is true of every layer in every cell."""
        return true_layers(batch, self.grid, occupied=len(self.names) > len(MAP_LAYERS))

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


def true_layers(batch: Batch, grid: BoxGrid, occupied: bool) -> Bool[Tensor, "b m y x"]:
    """The frames' maps on a raster, and where it is occupied the footprints of their boxes."""
    boxes = [each for each in batch.boxes if each is not None] if occupied else []
    if batch.maps is None or (occupied and len(boxes) < len(batch)):
        raise ValueError(f"map segmentation needs frames with maps{' and boxes' * occupied}; these have none")
    # A wider map has the same middle: it is there for augmentation to turn in.
    beyond = [have - want for have, want in zip(batch.maps.shape[-2:], grid.shape[1:], strict=True)]
    if any(cells < 0 or cells % 2 for cells in beyond):
        raise ValueError(
            f"the frames' maps are {list(batch.maps.shape[-2:])} cells, the raster {list(grid.shape[1:])}; "
            f"open the source with map_grid {grid.describe()}"
        )
    top, left = (cells // 2 for cells in beyond)
    maps = batch.maps[..., top : top + grid.shape[1], left : left + grid.shape[2]]
    if not occupied:
        return maps
    return torch.cat([maps, torch.stack([footprint(each, grid) for each in boxes])], 1)


class Onto(nn.Module):
    """Features of one raster on another whose cells lie along the same axes: bilinear, and zero beyond the first."""

    def __init__(self, grid: BoxGrid, raster: BoxGrid) -> None:
        super().__init__()
        unit = grid.to_unit(raster.centres()[0])
        self.rows: Tensor
        self.columns: Tensor
        self.register_buffer("rows", shares(unit[:, 0, 1], grid.count[1]), persistent=False)
        self.register_buffer("columns", shares(unit[0, :, 0], grid.count[0]), persistent=False)

    def forward(self, features: Float[Tensor, "b c v u"]) -> Float[Tensor, "b c y x"]:
        return self.rows @ features @ self.columns.mT


def shares(unit: Float[Tensor, "r"], count: int) -> Float[Tensor, "r n"]:
    """How much each of `count` cells counts at places 0..1 along them; rows sum to one, or to zero outside."""
    place = (unit * count - 0.5).clamp(0, count - 1)
    tent = (1 - (place[:, None] - torch.arange(count)).abs()).clamp(min=0)
    return tent * ((unit >= 0) & (unit < 1))[:, None]


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
