"""A volume to the class of every point."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cofield.classes import LIDARSEG, Classes
from cofield.frame import Batch
from cofield.grid import Grid, Volume
from cofield.models.blocks import mlp
from cofield.models.field import place_waves
from cofield.models.semantics import segmentation_loss
from cofield.ops.sample import sample

OCTAVES = 4


class PointHead(nn.Module):
    """What the volume holds at each point, and what the point itself tells, to logits of its class.

    Points beyond the grid see its nearest border, so that every point has a class.

    Args:
        channels: of the volume.
        classes: what the points' labels count.
    """

    def __init__(self, channels: int, grid: Grid, classes: Classes = LIDARSEG, width: int = 64) -> None:
        super().__init__()
        self.grid, self.classes = grid, classes
        self.layers = mlp(channels + 6 * OCTAVES + 6, width, width, len(classes))

    def forward(self, volume: Volume, batch: Batch) -> Float[Tensor, "p k"]:
        points, grid = batch.points, volume.grid
        unit = grid.to_unit(points.xyz_ego)
        seen = sample(volume.features, unit, batch.sample, grid.wraps)
        within = torch.frac(unit * unit.new_tensor(grid.count)) - 0.5
        away = (points.xyz_ego - points.xyz_ego.new_tensor(grid.origin_ego)).norm(dim=-1)
        own = torch.stack([points.intensity, points.age, away / 50], -1)
        return self.layers(torch.cat([seen, place_waves(unit, grid.wraps, OCTAVES), within, own], -1)).float()

    def encode(self, batch: Batch) -> Int[Tensor, "p"]:
        """The labels of the batch's points, UNKNOWN where there is none."""
        return known_labels(batch, self.classes)

    def loss(self, logits: Float[Tensor, "p k"], labels: Int[Tensor, "p"]) -> Float[Tensor, ""]:
        """Cross-entropy and Lovász-softmax of the labelled points."""
        return segmentation_loss(logits, labels)

    def decode(self, logits: Float[Tensor, "p k"]) -> Int[Tensor, "p"]:
        """The likeliest class of every point, in the order of the batch's points."""
        return logits.argmax(-1)


def known_labels(batch: Batch, classes: Classes) -> Int[Tensor, "p"]:
    """The labels of the batch's points, which must count these classes; UNKNOWN where there is none."""
    labels = batch.points.labels
    if labels is None:
        raise ValueError("point segmentation needs frames with point labels; these have none")
    if len(labels) and int(labels.max()) >= len(classes):
        raise ValueError(
            f"the head knows {len(classes)} classes ({classes.space}), but a point has the label "
            f"{int(labels.max())}; give it the source's point_classes"
        )
    return labels


def per_frame(labels: Int[Tensor, "p"], batch: Batch) -> tuple[Int[Tensor, "_"], ...]:
    """The labels of each frame's points."""
    return labels.split(batch.offsets.diff().tolist())
