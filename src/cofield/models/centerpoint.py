"""Boxes as peaks: a heat map for every class, and for every group of classes a box at every cell."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cofield.classes import DETECTION, Classes
from cofield.frame import Batch, Boxes
from cofield.grid import Volume
from cofield.models.bev import Bev, convolution
from cofield.models.blocks import Layers, Norm
from cofield.models.heatmap import (
    CODE,
    Candidates,
    anchors,
    cautious,
    channels_of,
    code_errors,
    decode_boxes,
    encode_boxes,
    focal_heat,
    ground_plan,
    heat_of,
    peaks,
    placed,
)

GROUPS = (
    ("car",),
    ("truck", "construction_vehicle"),
    ("bus", "trailer"),
    ("barrier",),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)
KITTI_GROUPS = (("Car",), ("Pedestrian", "Cyclist"))  # ours
BOX_WEIGHT = 0.25  # of the boxes' error against the heat's


@dataclass(frozen=True)
class CentreMaps:
    """What the head says: the logit of every class, and a coded box of every group, in every cell."""

    logits: Float[Tensor, "b k y x"]
    code: Float[Tensor, "b g c y x"]


@dataclass(frozen=True)
class Centres:
    """What is true: the heat, and for each box its frame, its group, its cell (column, row) and its code."""

    heat: Float[Tensor, "b k y x"]
    sample: Int[Tensor, "n"]
    group: Int[Tensor, "n"]
    cell: Int[Tensor, "n 2"]
    code: Float[Tensor, "n c"]


class CenterPoint(nn.Module):
    """CenterPoint's first stage. Classes of a group share a box, so alike ones compete for a cell.

    Of the boxes of one group whose centres share a cell only the nearest to the cell's centre is learned, and of
    equally near ones the first. Boxes without LiDAR returns are not learned either, as in the released detectors.

    The paper's width is 64; it has a hidden layer for each part of a box, this one a layer for each group (ours).

    Args:
        bev: the network below, on whose cells peaks are.
        width: channels of the shared layer and of each group's own.
        groups: names of the classes that share a box. Other classes are not detected.
        classes: what the boxes' labels count.
        least_points: returns that a box must hold to be learned, where that is known.
        most: peaks of one frame that become boxes.
        least_score: of a box that is told.
        overlap: the largest intersection over union, seen from above, of two boxes of one group (ours, for the
            paper's distances between centres).
    """

    def __init__(
        self,
        bev: Bev,
        width: int = 32,
        groups: tuple[tuple[str, ...], ...] = GROUPS,
        classes: Classes = DETECTION,
        norm: Norm = "group",
        least_points: int = 1,
        most: int = 300,
        least_score: float = 0.05,
        overlap: float = 0.2,
    ) -> None:
        super().__init__()
        self.bev, self.grid, self.classes = bev, ground_plan(bev.grid), classes
        self.least_points, self.most, self.least_score, self.overlap = least_points, most, least_score, overlap
        self.sizes = [len(names) for names in groups]
        label, channel = channels_of(tuple(name for names in groups for name in names), classes)
        group = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(self.sizes))
        self.label: Tensor
        self.channel: Tensor
        self.group: Tensor
        for name, table in {"label": label, "channel": channel, "group": group}.items():
            self.register_buffer(name, table, persistent=False)
        self.shared = Layers(*convolution(bev.channels, width, norm))
        self.own = nn.ModuleList(Layers(*convolution(width, width, norm)) for _ in groups)
        # The last layers compute in fp32, since what they say is metres.
        self.said = nn.ModuleList(cautious(nn.Conv2d(width, count + CODE, 1), count) for count in self.sizes)

    def forward(self, volume: Volume) -> CentreMaps:
        shared = self.shared(self.bev(volume).features[:, :, 0])
        said = [last(own(shared).float()) for own, last in zip(self.own, self.said, strict=True)]
        logits = torch.cat([part[:, :-CODE] for part in said], 1)
        return CentreMaps(logits, torch.stack([part[:, -CODE:] for part in said], 1))

    def encode(self, batch: Batch) -> Centres:
        """What is true of a batch's boxes."""
        boxes = placed(batch, self.grid, self.channel, self.least_points)
        anchor = anchors(boxes.cell, self.grid)
        distance = (self.grid.coordinates(boxes.boxes.centre)[:, :2] - anchor).norm(dim=-1)
        column, row = boxes.cell.unbind(-1)
        _, rows, columns = self.grid.shape
        place = ((boxes.sample * len(self.sizes) + self.group[boxes.channel]) * rows + row) * columns + column
        order = distance.argsort(stable=True)
        order = order[place[order].argsort(stable=True)]
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = place[order][1:] != place[order][:-1]
        boxes = boxes.select(order[first])
        heat = heat_of(boxes, (len(batch), len(self.label), rows, columns), self.grid)
        code = encode_boxes(boxes.boxes, anchors(boxes.cell, self.grid), self.grid)
        return Centres(heat, boxes.sample, self.group[boxes.channel], boxes.cell, code)

    def loss(self, raw: CentreMaps, truth: Centres) -> Float[Tensor, ""]:
        """Focal heat and L1 boxes, each group's by the number of its boxes, summed over groups."""
        groups = torch.arange(len(self.sizes), device=truth.group.device)
        count = (truth.group == groups[:, None]).sum(1).clamp(min=1)
        column, row = truth.cell.unbind(-1)
        said = raw.code[truth.sample, truth.group, :, row, column]
        boxes = code_errors(said, truth.code) / count[truth.group]
        heat = focal_heat(raw.logits, truth.heat) / count[self.group]
        return heat.sum() + BOX_WEIGHT * boxes.sum()

    def certain(self, truth: Centres) -> CentreMaps:
        """What the head would say if it knew."""
        frames, _, rows, columns = truth.heat.shape
        code = truth.code.new_zeros(frames, len(self.sizes), rows, columns, CODE)
        code[truth.sample, truth.group, truth.cell[:, 1], truth.cell[:, 0]] = truth.code
        return CentreMaps(torch.logit(truth.heat, eps=1e-6), code.movedim(-1, 2))

    def decode(self, raw: CentreMaps) -> tuple[Boxes, ...]:
        """The boxes of every frame, surest first."""
        return self.candidates(raw).kept(len(raw.logits), self.overlap, self.least_score)

    def candidates(self, raw: CentreMaps) -> Candidates:
        """A box at every peak; those of one frame and group are rivals."""
        score, channel, cell = peaks(raw.logits.sigmoid(), self.most)
        sample = torch.arange(len(score), device=score.device)[:, None].expand_as(score)
        score, channel, sample, cell = score.flatten(), channel.flatten(), sample.flatten(), cell.flatten(0, 1)
        group = self.group[channel]
        code = raw.code[sample, group, :, cell[:, 1], cell[:, 0]]
        boxes = decode_boxes(code, anchors(cell, self.grid), self.grid, self.label[channel], score)
        return Candidates(boxes, sample, sample * len(self.sizes) + group)
