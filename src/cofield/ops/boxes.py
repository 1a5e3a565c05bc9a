"""Upright boxes against each other and against points: overlap, suppression, membership.

A rectangle is (x y l w yaw) seen from above, a cuboid (x y z l w h yaw), both by their centre. The CPU runs
numba kernels; what other devices run is the reference beside them. Nothing here has a gradient.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cofield.frame import Boxes
from cofield.ops.numba import boxes as kernels

_FLAT, _UPRIGHT = [0, 1, 3, 4, 6], 2


def cuboids(boxes: Boxes) -> Float[Tensor, "n 7"]:
    """Boxes as rows of x y z l w h yaw."""
    return torch.cat([boxes.centre, boxes.size, boxes.yaw[:, None]], -1)


def overlap(a: Float[Tensor, "*b n 5"], b: Float[Tensor, "*b m 5"]) -> Float[Tensor, "*b n m"]:
    """The area that each rectangle of `a` shares with each of `b`."""
    batch = a.shape[:-2]
    area = _overlap(*(rows.reshape(batch.numel(), *rows.shape[-2:]) for rows in (a, b)))
    return area.reshape(*batch, *area.shape[1:])


def iou_above(a: Float[Tensor, "*b n 5"], b: Float[Tensor, "*b m 5"]) -> Float[Tensor, "*b n m"]:
    """Intersection over union of rectangles; 0 where both have no area."""
    return _share(overlap(a, b), a[..., 2] * a[..., 3], b[..., 2] * b[..., 3])


def iou_3d(a: Float[Tensor, "*b n 7"], b: Float[Tensor, "*b m 7"]) -> Float[Tensor, "*b n m"]:
    """Intersection over union of cuboids; 0 where both have no volume."""
    (low_a, high_a), (low_b, high_b) = ((c[..., 2] - c[..., 5] / 2, c[..., 2] + c[..., 5] / 2) for c in (a, b))
    tall = torch.minimum(high_a[..., :, None], high_b[..., None, :])
    tall = tall - torch.maximum(low_a[..., :, None], low_b[..., None, :])
    shared = overlap(a[..., _FLAT], b[..., _FLAT]) * tall.clamp(min=0)
    return _share(shared, a[..., 3:6].prod(-1), b[..., 3:6].prod(-1))


def nms(
    rectangle: Float[Tensor, "n 5"],
    score: Float[Tensor, "n"],
    most: float,
    group: Int[Tensor, "n"] | None = None,
    least_score: float = 0.0,
    top: int | None = None,
) -> Int[Tensor, "k"]:
    """The places of the rectangles that no better one overlaps, best first; of equal scores the first is better.

    Args:
        most: an IoU above this suppresses.
        group: only boxes of the same group suppress each other: a class, or a frame and a class.
        least_score: what scores less is left out.
        top: of all that is kept, at most so many.
    """
    place = (score >= least_score).nonzero()[:, 0]
    place = place[score[place].argsort(descending=True, stable=True)]
    which = torch.zeros_like(place) if group is None else group[place].long()
    kept = _unsuppressed(rectangle[place], which, most)
    return place[kept][:top]


def points_in_boxes(
    xyz: Float[Tensor, "p 3"],
    cuboid: Float[Tensor, "n 7"],
    sample: Int[Tensor, "p"] | None = None,
    sample_of: Int[Tensor, "n"] | None = None,
) -> tuple[Int[Tensor, "p"], Int[Tensor, "n"]]:
    """The first box that each point is in, -1 for none; and how many points are in each box.

    A point on a face is inside, and one in several boxes counts in each.

    Args:
        sample, sample_of: the frames of points and boxes; a point is only in boxes of its own.
    """
    if (sample is None) != (sample_of is None):
        raise ValueError("frames are known of only one of points and boxes; give both or neither")
    if sample is None or sample_of is None:
        sample, sample_of = (torch.zeros(len(rows), dtype=torch.long, device=xyz.device) for rows in (xyz, cuboid))
    return _members(xyz, cuboid, sample.long(), sample_of.long())


def _share(shared: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
    union = size_a[..., :, None] + size_b[..., None, :] - shared
    return torch.where(union > 0, shared / union, 0.0)


@torch.library.custom_op("cofield::overlap", mutates_args=())
def _overlap(a: Tensor, b: Tensor) -> Tensor:
    if a.device.type != "cpu":
        return overlap_reference(a, b)
    area = torch.empty(len(a), a.shape[1], b.shape[1], dtype=torch.float64)
    kernels.overlap(_rows(a), _rows(b), area.numpy())
    return area.to(a.dtype)


@_overlap.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(len(a), a.shape[1], b.shape[1])


def overlap_reference(a: Float[Tensor, "b n 5"], b: Float[Tensor, "b m 5"]) -> Float[Tensor, "b n m"]:
    """The shared area as an integral along the edges of `a`, in the frame where `b` is |x| ≤ l/2, |y| ≤ w/2.

    By Green's theorem the part of a polygon in a rectangle has the area -∮ clamp(y, ±w/2) d clamp(x, ±l/2),
    which needs no corners of that part. On a straight edge the clamped y has a mean in closed form.
    """
    own, other = a.double()[:, :, None], b.double()[:, None]
    turn, shift = own[..., 4] - other[..., 4], own[..., :2] - other[..., :2]
    cos, sin = other[..., 4].cos(), other[..., 4].sin()
    x = shift[..., 0] * cos + shift[..., 1] * sin
    y = shift[..., 1] * cos - shift[..., 0] * sin
    along = torch.stack([turn.cos(), turn.sin()], -1) * own[..., 2, None] / 2
    aside = torch.stack([-turn.sin(), turn.cos()], -1) * own[..., 3, None] / 2
    corners = torch.stack([-along - aside, along - aside, along + aside, aside - along], -2)
    corners = corners + torch.stack([x, y], -1)[..., None, :]  # B N M 4 2
    half = other[..., None, 2:4] / 2
    (x0, y0), (x1, y1) = corners.unbind(-1), corners.roll(-1, -2).unbind(-1)
    wide, high = half.unbind(-1)
    left, right = x0.clamp(-wide, wide), x1.clamp(-wide, wide)
    slope = torch.where(x0 == x1, 0.0, (y1 - y0) / (x1 - x0))
    mean = _clamped_mean(y0 + (left - x0) * slope, y0 + (right - x0) * slope, high)
    return -((right - left) * mean).sum(-1).clamp(max=0).to(a.dtype)


def _clamped_mean(start: Tensor, stop: Tensor, limit: Tensor) -> Tensor:
    """The mean of clamp(y, -limit, limit) while y goes evenly from start to stop."""
    low, high = torch.minimum(start, stop), torch.maximum(start, stop)
    rise = high - low
    below, above = ((share / rise).clamp(0, 1) for share in (-limit - low, high - limit))
    middle = (low.clamp(-limit, limit) + high.clamp(-limit, limit)) / 2
    mean = (above - below) * limit + (1 - above - below) * middle
    return torch.where(rise > 0, mean, middle)


@torch.library.custom_op("cofield::unsuppressed", mutates_args=())
def _unsuppressed(rectangle: Tensor, group: Tensor, most: float) -> Tensor:
    if rectangle.device.type != "cpu":
        return unsuppressed_reference(rectangle, group, most)
    kept = torch.ones(len(rectangle), dtype=torch.bool)
    kernels.suppress(_rows(rectangle), group.contiguous().numpy(), most, kept.numpy())
    return kept


@_unsuppressed.register_fake
def _(rectangle: Tensor, group: Tensor, most: float) -> Tensor:
    return torch.empty_like(group, dtype=torch.bool)


def unsuppressed_reference(rectangle: Float[Tensor, "n 5"], group: Int[Tensor, "n"], most: float) -> Bool[Tensor, "n"]:
    """True where no earlier rectangle that is itself kept overlaps too much.

    The greedy answer is the only one that agrees with itself, so asking again and again finds it: the first k are
    right after k rounds, and in practice all are after a few.
    """
    rivals = (iou_above(rectangle, rectangle) > most) & (group[:, None] == group)
    rivals = rivals.tril(-1)
    kept = torch.ones_like(group, dtype=torch.bool)
    while True:
        again = ~(rivals & kept).any(1)
        if torch.equal(again, kept):
            return kept
        kept = again


@torch.library.custom_op("cofield::points_in_boxes", mutates_args=())
def _members(xyz: Tensor, cuboid: Tensor, sample: Tensor, sample_of: Tensor) -> tuple[Tensor, Tensor]:
    if xyz.device.type != "cpu":
        return members_reference(xyz, cuboid, sample, sample_of)
    first, count = torch.full((len(xyz),), -1), torch.zeros(len(cuboid), dtype=torch.long)
    frames = sample.contiguous().numpy(), sample_of.contiguous().numpy()
    kernels.members(xyz.detach().contiguous().numpy(), _rows(cuboid), *frames, first.numpy(), count.numpy())
    return first, count


@_members.register_fake
def _(xyz: Tensor, cuboid: Tensor, sample: Tensor, sample_of: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(sample), torch.empty_like(sample_of)


def members_reference(
    xyz: Float[Tensor, "p 3"], cuboid: Float[Tensor, "n 7"], sample: Int[Tensor, "p"], sample_of: Int[Tensor, "n"]
) -> tuple[Int[Tensor, "p"], Int[Tensor, "n"]]:
    """Box by box: which points it holds."""
    first, counts = torch.full_like(sample, -1), torch.zeros_like(sample_of)
    for n, (centre, half, yaw) in enumerate(zip(cuboid[:, :3], cuboid[:, 3:6] / 2, cuboid[:, 6], strict=True)):
        x, y, z = (xyz.double() - centre.double()).unbind(-1)
        cos, sin = yaw.double().cos(), yaw.double().sin()
        local = torch.stack([x * cos + y * sin, y * cos - x * sin, z], -1)
        inside = (local.abs() <= half.double()).all(-1) & (sample == sample_of[n])
        first = torch.where(inside & (first < 0), n, first)
        counts[n] = inside.sum()
    return first, counts


def _rows(tensor: Tensor):
    """A contiguous array in double precision."""
    return tensor.detach().double().contiguous().numpy()


for _operator in (_overlap, _unsuppressed, _members):
    for _device in ("cpu", "cuda"):
        _operator.register_autocast(_device, torch.float32)
