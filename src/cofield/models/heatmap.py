"""What detection heads share: boxes as peaks of heat maps, and as ten numbers beside an anchor."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cofield.classes import Classes
from cofield.frame import Batch, Boxes
from cofield.grid import BoxGrid, Grid
from cofield.ops.boxes import cuboids, nms

CODE = 10  # x y in cells from the anchor, z, log l w h, sin and cos of the yaw, vx vy
VELOCITY_WEIGHT = 0.2  # of one number's error against another's
RARE = -2.19  # the logit of a tenth
LARGEST = 5.0  # the logarithm of the longest size that is read, 148 m


@dataclass(frozen=True)
class Placed:
    """The boxes of a batch in one table, each with its frame, its class's channel and its cell (column, row)."""

    boxes: Boxes
    sample: Int[Tensor, "n"]
    channel: Int[Tensor, "n"]
    cell: Int[Tensor, "n 2"]

    def select(self, which: Bool[Tensor, "n"] | Int[Tensor, "m"]) -> "Placed":
        """The rows at the given places."""
        return Placed(self.boxes.select(which), self.sample[which], self.channel[which], self.cell[which])


@dataclass(frozen=True)
class Candidates:
    """The boxes that a head says, before any is suppressed: each with its frame, and a number that rivals share."""

    boxes: Boxes
    sample: Int[Tensor, "n"]
    rival: Int[Tensor, "n"]

    def kept(self, frames: int, overlap: float, least_score: float) -> tuple[Boxes, ...]:
        """The boxes of every frame that score enough and that no surer rival overlaps too much, surest first."""
        score = self.boxes.score
        assert score is not None
        best = nms(cuboids(self.boxes)[:, [0, 1, 3, 4, 6]], score, overlap, self.rival, least_score)
        return per_frame(self.boxes.select(best), self.sample[best], frames)


def ground_plan(grid: Grid) -> BoxGrid:
    """The one layer of cells that peaks live in."""
    if not isinstance(grid, BoxGrid):
        raise ValueError("boxes are found on rasters along x and y; a cylindrical trunk has none")
    return replace(grid, count=(*grid.count[:2], 1), cell=(*grid.cell[:2], grid.cell[2] * grid.count[2]))


def channels_of(names: tuple[str, ...], classes: Classes) -> tuple[Tensor, Tensor]:
    """The label of each named class's channel, and for each label (and UNKNOWN, last) its channel or -1."""
    if len(set(names)) < len(names):
        raise ValueError(f"a class has one channel, but some are named twice: {', '.join(names)}")
    label = torch.tensor([classes.index(name) for name in names])
    channel = torch.full((len(classes) + 1,), -1)
    channel[label] = torch.arange(len(names))
    return label, channel


def cautious(layer: nn.Conv2d | nn.Linear, logits: int) -> nn.Module:
    """The layer, whose first outputs, logits of what is seldom true, start at a tenth."""
    assert layer.bias is not None
    nn.init.constant_(layer.bias[:logits], RARE)
    return layer


def placed(batch: Batch, grid: BoxGrid, channel_of: Int[Tensor, "k1"], least_points: int) -> Placed:
    """The boxes that a head can learn.

    Not those of other classes, those whose centres are outside the raster, and those known to hold fewer than
    `least_points` returns.
    """
    known = [boxes for boxes in batch.boxes if boxes is not None]
    if len(known) < len(batch):
        raise ValueError(f"detection needs frames with boxes; {len(batch) - len(known)} of {len(batch)} have none")
    seen = [each if each.num_points is None else each.select(each.num_points >= least_points) for each in known]
    columns = ("centre", "size", "yaw", "velocity", "label")
    boxes = Boxes(*(torch.cat([getattr(each, name) for each in seen]) for name in columns))
    frames = torch.arange(len(batch), device=boxes.label.device)
    sample = torch.repeat_interleave(frames, torch.tensor([len(each) for each in seen], device=frames.device))
    size = boxes.centre.new_tensor(grid.cell[:2])
    position = (grid.coordinates(boxes.centre)[:, :2] - size.new_tensor(grid.lower[:2])) / size
    cell = position.floor().long()
    inside = ((cell >= 0) & (cell < torch.tensor(grid.count[:2], device=cell.device))).all(-1)
    channel = channel_of[boxes.label]
    return Placed(boxes, sample, channel, cell).select(inside & (channel >= 0))


def anchors(cell: Int[Tensor, "*n 2"], grid: BoxGrid) -> Float[Tensor, "*n 2"]:
    """The centres of cells (column, row) in the grid's axes, in metres."""
    size = torch.tensor(grid.cell[:2], device=cell.device)
    return (cell + 0.5) * size + size.new_tensor(grid.lower[:2])


def encode_boxes(boxes: Boxes, anchor: Float[Tensor, "n 2"], grid: BoxGrid) -> Float[Tensor, "n 10"]:
    """What a head is to say of boxes beside anchors; velocities that nobody knows stay NaN."""
    place = grid.coordinates(boxes.centre)
    offset = (place[:, :2] - anchor) / anchor.new_tensor(grid.cell[:2])
    turn = torch.stack([boxes.yaw.sin(), boxes.yaw.cos()], -1)
    return torch.cat([offset, place[:, 2:], boxes.size.log(), turn, boxes.velocity], -1)


def decode_boxes(
    code: Float[Tensor, "n 10"],
    anchor: Float[Tensor, "n 2"],
    grid: BoxGrid,
    label: Int[Tensor, "n"],
    score: Float[Tensor, "n"],
) -> Boxes:
    """The boxes that were said: the inverse of `encode_boxes`."""
    offset, z, size, turn, velocity = code.split([2, 1, 3, 2, 2], -1)
    place = torch.cat([anchor + offset * anchor.new_tensor(grid.cell[:2]), z], -1)
    yaw = torch.atan2(turn[:, 0], turn[:, 1])
    return Boxes(grid.positions(place), size.clamp(max=LARGEST).exp(), yaw, velocity, label, score)


def code_errors(said: Float[Tensor, "n 10"], true: Float[Tensor, "n 10"]) -> Float[Tensor, "n"]:
    """The sum of absolute errors of each box; what is not known costs nothing."""
    weight = true.new_tensor([1.0] * (CODE - 2) + [VELOCITY_WEIGHT] * 2)
    return ((said - true.nan_to_num()).abs() * weight * true.isfinite()).sum(-1)


def spread(size: Float[Tensor, "n 3"], overlap: float = 0.1) -> Float[Tensor, "n"]:
    """How far, in metres, a box may be moved along both its axes and still overlap its first place.

    (l - r)(w - r) = 2 t l w / (1 + t): the intersection over union is then t.
    """
    length, width = size[:, 0], size[:, 1]
    both, kept = length + width, 2 * overlap / (1 + overlap)
    return (both - (both.square() - 4 * (1 - kept) * length * width).sqrt()) / 2


def heat_of(boxes: Placed, shape: tuple[int, int, int, int], grid: BoxGrid) -> Float[Tensor, "b k y x"]:
    """Heat maps with a Gaussian around the cell of every box, one in the cell; the largest where several meet.

    Its radius is the box's `spread`, at least two cells; three standard deviations reach half a cell beyond it.
    """
    frames, channels, rows, columns = shape
    heat = boxes.boxes.size.new_zeros(frames * channels * rows * columns)
    reach = (spread(boxes.boxes.size)[:, None] / heat.new_tensor(grid.cell[:2])).clamp(min=2)
    furthest = int(reach.max().floor()) if len(reach) else 0
    step = torch.arange(-furthest, furthest + 1, device=heat.device)
    sigma = (2 * reach + 1)[..., None] / 6
    profile = torch.exp(-(step / sigma).square() / 2) * (step.abs() <= reach[..., None])  # n 2 steps
    value = profile[:, 1, :, None] * profile[:, 0, None, :]
    column, row = (boxes.cell[..., None] + step).unbind(1)
    inside = ((row >= 0) & (row < rows))[:, :, None] & ((column >= 0) & (column < columns))[:, None, :]
    plane = (boxes.sample * channels + boxes.channel)[:, None, None]
    flat = (plane * rows + row[:, :, None]) * columns + column[:, None, :]
    heat = heat.scatter_reduce(0, flat[inside], value[inside], "amax")
    return heat.view(shape)


def focal_heat(logits: Float[Tensor, "b k y x"], truth: Float[Tensor, "b k y x"]) -> Float[Tensor, "k"]:
    """Focal cross-entropy of heat maps, summed over cells and frames.

    -(1 - p)² log p at a peak; -(1 - t)⁴ p² log(1 - p) elsewhere: beside a peak, where t is large, heat costs little.
    """
    heat = logits.sigmoid()
    peak = -(1 - heat).square() * F.logsigmoid(logits)
    rest = -((1 - truth) ** 4) * heat.square() * F.logsigmoid(-logits)
    return torch.where(truth == 1, peak, rest).sum((0, 2, 3))


def peaks(
    heat: Float[Tensor, "b k y x"], count: int, crowded: Bool[Tensor, "k"] | None = None
) -> tuple[Float[Tensor, "b q"], Int[Tensor, "b q"], Int[Tensor, "b q 2"]]:
    """The `count` hottest local maxima of each frame: their heat, channel and cell (column, row), hottest first.

    A maximum is no colder than its eight neighbours; in crowded channels every cell is one. Where there are too few
    the rest have no heat.
    """
    maximal = heat >= F.max_pool2d(heat, 3, stride=1, padding=1)
    if crowded is not None:
        maximal = maximal | crowded[:, None, None]
    columns, cells = heat.shape[-1], heat.shape[-2] * heat.shape[-1]
    flat = (heat * maximal).flatten(1)
    score, place = flat.topk(min(count, flat.shape[1]))
    cell = place % cells
    return score, place // cells, torch.stack([cell % columns, cell // columns], -1)


def per_frame(boxes: Boxes, sample: Int[Tensor, "n"], frames: int) -> tuple[Boxes, ...]:
    """The boxes of each frame, in their order."""
    return tuple(boxes.select(sample == frame) for frame in range(frames))
