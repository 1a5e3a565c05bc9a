"""Boxes as queries: the hottest places of a heat map ask the whole map what stands there."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from cofield.classes import DETECTION, Classes
from cofield.frame import Batch, Boxes
from cofield.grid import Volume
from cofield.models.bev import Bev, convolution
from cofield.models.blocks import Layers, Norm, mlp
from cofield.models.field import waves
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
    per_frame,
    placed,
)
from cofield.ops.boxes import cuboids, iou_3d

CROWDED = ("pedestrian", "traffic_cone", "Pedestrian", "Cyclist")
OCTAVES = 6
BOX_WEIGHT = 0.25  # of the boxes' error against the heat's and the classes'
COST = {"class": 0.15, "place": 0.25, "overlap": 0.25}  # of a pair of query and box


@dataclass(frozen=True)
class Queries:
    """What the head says.

    Args:
        heat: logits of every class in every cell.
        score, channel, cell: the peaks (column, row) that became queries, hottest first.
        logits: of every class for each query.
        code: each query's box, beside the centre of its cell.
    """

    heat: Float[Tensor, "b k y x"]
    score: Float[Tensor, "b q"]
    channel: Int[Tensor, "b q"]
    cell: Int[Tensor, "b q 2"]
    logits: Float[Tensor, "b q k"]
    code: Float[Tensor, "b q c"]


@dataclass(frozen=True)
class Wanted:
    """What is true: the heat, and the boxes of each frame with their channels."""

    heat: Float[Tensor, "b k y x"]
    boxes: tuple[Boxes, ...]
    channel: tuple[Int[Tensor, "_"], ...]


class Decoder(nn.Module):
    """A transformer layer: queries look at each other, then at the ground. Places are part of what is looked at."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.each_other = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ground = nn.MultiheadAttention(width, heads, batch_first=True)
        self.think = mlp(width, hidden, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(
        self,
        query: Float[Tensor, "b q c"],
        query_place: Float[Tensor, "b q c"],
        ground: Float[Tensor, "b n c"],
        ground_place: Float[Tensor, "n c"],
    ) -> Float[Tensor, "b q c"]:
        first, second, third = self.norms
        here, there = query + query_place, ground + ground_place
        query = first(query + self.each_other(here, here, here, need_weights=False)[0])
        query = second(query + self.ground(query + query_place, there, there, need_weights=False)[0])
        return third(query + self.think(query).float())


class TransFusion(nn.Module):
    """TransFusion's head on fused features, one decoder layer.

    There is no dropout (p: 0.1), so nothing is drawn here. Boxes without LiDAR returns are not learned, as in the
    released detectors.

    Args:
        bev: the network below, on whose cells peaks are.
        width: channels of the shared layer and of the queries (p: 128).
        queries: how many peaks ask (p: 200).
        heads: of attention (p: 8).
        names: the classes that are detected.
        classes: what the boxes' labels count.
        crowded: names of classes so small that every cell of theirs may be a peak (p: pedestrians and cones; as in its
            other data set, KITTI's cyclists too).
        least_points: returns that a box must hold to be learned, where that is known.
        least_score: of a box that is told; the paper tells all.
        overlap: the largest intersection over union, seen from above, of two boxes of one class; 1 as in the paper
            drops none.
    """

    def __init__(
        self,
        bev: Bev,
        width: int = 64,
        queries: int = 100,
        heads: int = 4,
        names: tuple[str, ...] = DETECTION.names,
        classes: Classes = DETECTION,
        crowded: tuple[str, ...] = CROWDED,
        norm: Norm = "group",
        least_points: int = 1,
        least_score: float = 0.0,
        overlap: float = 1.0,
    ) -> None:
        super().__init__()
        self.bev, self.grid, self.classes = bev, ground_plan(bev.grid), classes
        self.queries, self.least_points = queries, least_points
        self.least_score, self.overlap = least_score, overlap
        label, channel = channels_of(names, classes)
        self.label: Tensor
        self.channel: Tensor
        self.crowded: Tensor
        tables = {"label": label, "channel": channel, "crowded": torch.tensor([name in crowded for name in names])}
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.shared = Layers(*convolution(bev.channels, width, norm))
        self.warm = Layers(*convolution(width, width, norm))
        self.heat = cautious(nn.Conv2d(width, len(names), 1), len(names))
        self.kind = nn.Embedding(len(names), width)
        self.place = mlp(4 * OCTAVES, width, width)
        self.decoder = Decoder(width, heads, width * 2)
        self.hidden = mlp(width, width, width)
        self.said = cautious(nn.Linear(width, len(names) + CODE), len(names))

    def forward(self, volume: Volume) -> Queries:
        shared = self.shared(self.bev(volume).features[:, :, 0])
        heat = self.heat(self.warm(shared).float())
        score, channel, cell = peaks(heat.detach().sigmoid(), self.queries, self.crowded)
        rows = shared.float().flatten(2).mT  # b n c
        spot = cell[..., 1] * shared.shape[-1] + cell[..., 0]
        query = rows.gather(1, spot[..., None].expand(-1, -1, rows.shape[-1])) + self.kind(channel)
        place = self.place(waves(self._everywhere(heat.device), OCTAVES)).float()
        query = self.decoder(query, place[spot], rows, place)
        said = self.said(F.relu(self.hidden(query).float()))
        logits, code = said.split([len(self.label), CODE], -1)
        return Queries(heat, score, channel, cell, logits, code)

    def encode(self, batch: Batch) -> Wanted:
        """What is true of a batch's boxes."""
        boxes = placed(batch, self.grid, self.channel, self.least_points)
        _, rows, columns = self.grid.shape
        heat = heat_of(boxes, (len(batch), len(self.label), rows, columns), self.grid)
        each = per_frame(boxes.boxes, boxes.sample, len(batch))
        return Wanted(heat, each, tuple(self.channel[boxes.label] for boxes in each))

    def loss(self, raw: Queries, truth: Wanted) -> Float[Tensor, ""]:
        """Focal heat, focal classes and L1 boxes of the queries that were matched, by the number of boxes."""
        target = torch.zeros_like(raw.logits)
        errors = raw.code.new_zeros(())
        for frame, (boxes, channel) in enumerate(zip(truth.boxes, truth.channel, strict=True)):
            query, box = self.match(raw, frame, boxes, channel)
            target[frame, query, channel[box]] = 1.0
            anchor = anchors(raw.cell[frame, query], self.grid)
            true = encode_boxes(boxes.select(box), anchor, self.grid)
            errors = errors + code_errors(raw.code[frame, query], true).sum()
        count = max(1, sum(len(boxes) for boxes in truth.boxes))
        heat = focal_heat(raw.heat, truth.heat).sum() / max(1, int((truth.heat == 1).sum()))
        return heat + (focal(raw.logits, target).sum() + BOX_WEIGHT * errors) / count

    @torch.no_grad()
    def match(
        self, raw: Queries, frame: int, boxes: Boxes, channel: Int[Tensor, "n"]
    ) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"]]:
        """The pairs of queries and boxes that cost least together: each box has one query, if there are enough."""
        place = anchors(raw.cell[frame], self.grid)
        said = decode_boxes(raw.code[frame], place, self.grid, raw.channel[frame], raw.score[frame])
        logits = raw.logits[frame][:, channel]
        kind = focal(logits, torch.ones_like(logits)) - focal(logits, torch.zeros_like(logits))
        extent = place.new_tensor([n * size for n, size in zip(self.grid.count[:2], self.grid.cell[:2], strict=True)])
        apart = torch.cdist(said.centre[:, :2] / extent, boxes.centre[:, :2] / extent, p=1)
        shared = iou_3d(cuboids(said), cuboids(boxes))
        cost = COST["class"] * kind + COST["place"] * apart - COST["overlap"] * shared
        query, box = linear_sum_assignment(cost.cpu().numpy())
        return torch.as_tensor(query, device=place.device), torch.as_tensor(box, device=place.device)

    def decode(self, raw: Queries) -> tuple[Boxes, ...]:
        """The boxes of every frame, surest first."""
        return self.candidates(raw).kept(len(raw.score), self.overlap, self.least_score)

    def candidates(self, raw: Queries) -> Candidates:
        """A box of every query, as sure as both the peak and its query are of the peak's class; these are rivals."""
        score = raw.score * raw.logits.sigmoid().gather(-1, raw.channel[..., None])[..., 0]
        sample = torch.arange(len(score), device=score.device)[:, None].expand_as(score)
        score, sample, channel = score.flatten(), sample.flatten(), raw.channel.flatten()
        anchor = anchors(raw.cell.flatten(0, 1), self.grid)
        boxes = decode_boxes(raw.code.flatten(0, 1), anchor, self.grid, self.label[channel], score)
        return Candidates(boxes, sample, sample * len(self.label) + channel)

    def _everywhere(self, device: torch.device) -> Float[Tensor, "n 2"]:
        """Each cell's place between 0 and 1 along x and y, in the order of rows."""
        x, y = ((torch.arange(n, device=device) + 0.5) / n for n in self.grid.count[:2])
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([columns.flatten(), rows.flatten()], -1)


def focal(logits: Float[Tensor, "*n"], truth: Float[Tensor, "*n"], share: float = 0.25) -> Float[Tensor, "*n"]:
    """Focal cross-entropy: -α (1 - p)² log p where true, -(1 - α) p² log(1 - p) elsewhere."""
    probability = logits.sigmoid()
    yes = -share * (1 - probability).square() * F.logsigmoid(logits)
    no = -(1 - share) * probability.square() * F.logsigmoid(-logits)
    return truth * yes + (1 - truth) * no
