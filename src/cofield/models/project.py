"""Camera labels to points by projection: the plain alternative to rendering, kept so that the two can be compared.

A LiDAR and a camera are in different places, and often exposed at different times: a point may fall on a pixel that
shows what is in front of it. Rendering resists that; projection does not, and the tests here resist it somewhat.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cofield.classes import UNKNOWN
from cofield.frame import Batch, SeenPoints
from cofield.ops.voxelize import is_nearest, nearest


def in_front(batch: Batch, slack: float = 0.1, window: int = 3) -> SeenPoints:
    """Points where cameras see them, without those that lie behind others; `batch.seen_points()` has all.

    Args:
        slack: a point stays if it is at most that share farther than the nearest return around it ...
        window: ... within so many pixels across and down, an odd number.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"a window is an odd number of pixels, got {window}")
    seen = batch.seen_points()
    if not len(seen.point):
        return seen
    depth = nearest(seen.pixel, seen.depth, batch.valid.numel()).view(-1, 1, *batch.valid.shape[-2:])
    front = -F.max_pool2d(-depth, window, stride=1, padding=window // 2)
    stays = seen.depth <= front.flatten()[seen.pixel] * (1 + slack)
    return SeenPoints(seen.point[stays], seen.pixel[stays], seen.depth[stays])


def point_labels(seen: SeenPoints, labels: Int[Tensor, "n"], points: int, agree: bool = False) -> Int[Tensor, "p"]:
    """The label of each of `points` points; UNKNOWN where no camera gives one.

    Args:
        labels: of every row of `seen`, UNKNOWN allowed: `image_labels.flatten()[seen.pixel]`, or what was voted.
        agree: if cameras differ, UNKNOWN; otherwise the nearest camera's holds (of equally near ones the highest).
    """
    known = labels != UNKNOWN
    point, label, depth = seen.point[known], labels[known], seen.depth[known]
    none = torch.full((points,), UNKNOWN, device=labels.device)
    if not agree:
        first = is_nearest(point, depth, points)
        return none.scatter_reduce(0, point[first], label[first], "amax")
    highest, lowest = (none.scatter_reduce(0, point, label, how, include_self=False) for how in ("amax", "amin"))
    return torch.where(highest == lowest, highest, UNKNOWN)


def beside(
    seen: Float[Tensor, "r k"],
    segment: Int[Tensor, "r"],
    at: SeenPoints,
    said: Float[Tensor, "p k"],
    segments: Int[Tensor, "b n h w"],
) -> tuple[Float[Tensor, "v k"], Int[Tensor, "v"]]:
    """The voters of segments when points vote beside rays: distributions and segments, of rays first.

    Args:
        seen, segment: of rays.
        said: how likely each class is of every point of the batch.
    """
    return torch.cat([seen, said[at.point]]), torch.cat([segment, segments.flatten()[at.pixel]])
