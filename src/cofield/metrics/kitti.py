"""KITTI's average precision: boxes from above, in space and in the image, at three difficulties.

The rules are those of the official evaluation: what lies beyond a difficulty, and the neighbours of a class (a van
for a car, a sitting person for a pedestrian), are neither to be found nor wrong to find; in the image, neither is
what lies in a `DontCare` region. Boxes may be in any upright frame, the official one being the rectified camera's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from cofield.classes import KITTI, UNKNOWN
from cofield.frame import Boxes
from cofield.ops.boxes import cuboids, iou_3d, iou_above

LEAST_IOU = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
NEIGHBOURS = {"Car": "Van", "Pedestrian": "Person_sitting"}
VIEWS = ("image", "above", "space")


@dataclass(frozen=True)
class Difficulty:
    """Which labels are to be found: at least so high in the image, at most so occluded and cut off."""

    name: str
    height: float
    occlusion: int
    truncation: float


DIFFICULTIES = (
    Difficulty("easy", 40.0, 0, 0.15),
    Difficulty("moderate", 25.0, 1, 0.3),
    Difficulty("hard", 25.0, 2, 0.5),
)

_RECALLS = 41
_FLAT = [0, 1, 3, 4, 6]
_COUNTS, _TOLERATED, _OTHER = 0, 1, -1

Array = np.ndarray


@dataclass(frozen=True)
class KittiScore:
    """Average precision, of 40 recalls above 0 and of 11 from 0 on: per view, class and difficulty, as shares of 1.

    NaN in the image if some boxes are not known there.
    """

    names: tuple[str, ...]
    r40: Float[Tensor, "v k d"]
    r11: Float[Tensor, "v k d"]

    def summary(self) -> dict[str, float]:
        """Every value by name, such as `space.Car.moderate.r40`."""
        values = {}
        for kind, table in (("r40", self.r40), ("r11", self.r11)):
            for v, view in enumerate(VIEWS):
                for k, name in enumerate(self.names):
                    for d, difficulty in enumerate(DIFFICULTIES):
                        values[f"{view}.{name}.{difficulty.name}.{kind}"] = float(table[v, k, d])
        return values


class KittiAP:
    """Accumulates frames, and gives their average precision.

    Without `box2d` nothing is known of a box's height in the image, and it has no minimum; without `occlusion` or
    `truncation` a label counts as whole.

    Args:
        least_iou: the classes to score, and the IoU that a match is above.
    """

    def __init__(self, least_iou: Mapping[str, float] = LEAST_IOU) -> None:
        self.least_iou = {KITTI.names[KITTI.index(name)]: least for name, least in least_iou.items()}
        self._frames: dict[str, tuple[Array, Array, Array]] = {}

    def add(self, token: str, predicted: Boxes, truth: Boxes) -> None:
        """Count a frame's boxes, of the classes `KITTI`; truth without a class is a DontCare region of the image."""
        if token in self._frames:
            raise ValueError(f"frame {token} was added twice")
        check_boxes(token, predicted)
        regions, known = truth.select(truth.label == UNKNOWN), truth.select(truth.label != UNKNOWN)
        found, true = cuboids(predicted).double(), cuboids(known).double()
        image = torch.full((len(found), len(true)), torch.nan, dtype=torch.float64)
        unsure = torch.zeros(len(found), dtype=torch.float64)
        if predicted.box2d is not None and known.box2d is not None:
            image = _iou_2d(predicted.box2d.double(), known.box2d.double())
            if regions.box2d is not None and len(regions):
                unsure = _covered(predicted.box2d.double(), regions.box2d.double()).amax(1)
        iou = torch.stack([image, iou_above(found[:, _FLAT], true[:, _FLAT]), iou_3d(found, true)])
        self._frames[token] = (_found_rows(predicted, unsure), _true_rows(known), iou.flatten(1).numpy(force=True))

    def compute(self) -> KittiScore:
        """The average precision over all frames so far."""
        found, true, iou = (
            (list(parts) for parts in zip(*self._frames.values(), strict=True)) if self._frames else _NONE
        )
        ends = np.cumsum(
            [[0, 0, 0], *([len(f), len(t), i.shape[1]] for f, t, i in zip(found, true, iou, strict=True))], 0
        )
        table = _Table(np.concatenate(found), np.concatenate(true), np.concatenate(iou, 1), ends)
        ap = torch.zeros(2, len(VIEWS), len(self.least_iou), len(DIFFICULTIES), dtype=torch.float64)
        for v in range(len(VIEWS)):
            for k, (name, least) in enumerate(self.least_iou.items()):
                for d, difficulty in enumerate(DIFFICULTIES):
                    precision = _precision(table, v, name, least, difficulty)
                    ap[:, v, k, d] = torch.tensor([precision[1:].mean(), precision[::4].mean()])
            if np.isnan(table.iou[v]).any():
                ap[:, v] = torch.nan
        return KittiScore(tuple(self.least_iou), *ap)


def check_boxes(token: str, boxes: Boxes) -> None:
    """Refuse predictions that cannot be scored, with the reason."""
    if boxes.score is None:
        raise ValueError(f"frame {token}: predicted boxes need scores")
    if bool(((boxes.label < 0) | (boxes.label >= len(KITTI))).any()):
        raise ValueError(
            f"frame {token} has labels {boxes.label.unique().tolist()}; they count {len(KITTI)} classes from 0"
        )
    image = boxes.box2d if boxes.box2d is not None else boxes.centre
    for values in (boxes.centre, boxes.size, boxes.yaw, boxes.score, image):
        if not bool(values.isfinite().all()):
            raise ValueError(f"frame {token}: a predicted box has a number that is not finite")


@dataclass(frozen=True)
class _Table:
    """All frames' boxes: found are rows of label, score, height in the image, share in DontCare regions; true of label,
    height, occlusion, truncation. `iou` has a row per view, and `ends` says where each frame's begin in the three.
    """

    found: Array
    true: Array
    iou: Array
    ends: Array


_NONE: tuple[list[Array], ...] = ([np.zeros((0, 4))], [np.zeros((0, 4))], [np.zeros((len(VIEWS), 0))])


def _found_rows(boxes: Boxes, unsure: Tensor) -> Array:
    score = torch.zeros(len(boxes)) if boxes.score is None else boxes.score
    return torch.stack([each.double().cpu() for each in (boxes.label, score, _height(boxes), unsure)], -1).numpy()


def _true_rows(boxes: Boxes) -> Array:
    whole = torch.zeros(len(boxes))
    hidden, cut = (whole if each is None else each for each in (boxes.occlusion, boxes.truncation))
    return torch.stack([each.double().cpu() for each in (boxes.label, _height(boxes), hidden, cut)], -1).numpy()


def _height(boxes: Boxes) -> Tensor:
    """In the image; infinite where that is unknown."""
    return torch.full((len(boxes),), torch.inf) if boxes.box2d is None else boxes.box2d[:, 3] - boxes.box2d[:, 1]


def _iou_2d(a: Float[Tensor, "n 4"], b: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (a, b)]
    shared = _covered(a, b) * areas[0][:, None]
    return (shared / (areas[0][:, None] + areas[1] - shared)).nan_to_num(0)


def _covered(a: Float[Tensor, "n 4"], b: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """The share of each rectangle of `a` that lies in each of `b`."""
    sides = torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])
    return (sides.clamp(min=0).prod(-1) / (a[:, None, 2:] - a[:, None, :2]).prod(-1)).nan_to_num(0)


def _precision(table: _Table, view: int, name: str, least: float, difficulty: Difficulty) -> Array:
    """The best precision at each of 41 recalls or beyond it."""
    found, true = table.found, table.true
    own = true[:, 0] == KITTI.index(name)
    beyond = (true[:, 1] <= difficulty.height) | (true[:, 2] > difficulty.occlusion)
    beyond |= true[:, 3] > difficulty.truncation
    alike = true[:, 0] == KITTI.index(NEIGHBOURS[name]) if name in NEIGHBOURS else np.zeros(len(true), bool)
    true_role = np.where(own & ~beyond, _COUNTS, np.where(own | alike, _TOLERATED, _OTHER))
    found_role = np.where(found[:, 0] == KITTI.index(name), _COUNTS, _OTHER)
    # What is found too small is tolerated whatever its class: so the official evaluation has it.
    found_role[found[:, 2] < difficulty.height] = _TOLERATED
    unsure = (found[:, 3] > least) & (VIEWS[view] == "image")
    given = (table.ends, table.iou[view], found[:, 1].copy(), found_role, true_role, unsure, least)
    hits = np.full(len(true), np.nan)
    _match(*given, -np.inf, False, hits)
    precision = np.zeros(_RECALLS)
    for i, threshold in enumerate(_thresholds(hits[~np.isnan(hits)], int((true_role == _COUNTS).sum()))):
        right, wrong = _match(*given, threshold, True, hits)
        precision[i] = right / max(right + wrong, 1)
    return np.maximum.accumulate(precision[::-1])[::-1]


def _thresholds(scores: Array, positives: int) -> list[float]:
    """The scores at which recall comes nearest to each of 41 values."""
    chosen, wanted = [], 0.0
    for i, score in enumerate(np.sort(scores)[::-1].tolist()):
        last = i == len(scores) - 1
        here, after = (i + 1) / positives, (i + 1 + (not last)) / positives
        if last or after - wanted >= wanted - here:
            chosen.append(score)
            wanted += 1 / (_RECALLS - 1)
    return chosen[:_RECALLS]


@njit(cache=True)
@no_type_check
def _match(ends, iou, score, found_role, true_role, unsure, least, threshold, by_iou, hits):
    """How many boxes of at least a score are right, and how many wrong; `hits` is the score of what finds each truth.

    Truth in its order takes the free box of the highest IoU, one that counts before one that is tolerated; or,
    where thresholds are sought, the one of the highest score.
    """
    right, wrong = 0, 0
    taken = np.zeros(len(score), np.bool_)
    for f in range(len(ends) - 1):
        first, stop = ends[f, 0], ends[f + 1, 0]
        start, end = ends[f, 1], ends[f + 1, 1]
        for t in range(start, end):
            if true_role[t] == _OTHER:
                continue
            place, best = -1, -np.inf
            for p in range(first, stop):
                if found_role[p] == _OTHER or taken[p] or score[p] < threshold:
                    continue
                shared = iou[ends[f, 2] + (p - first) * (end - start) + t - start]
                if not shared > least:
                    continue
                worth = score[p]
                if by_iou:
                    worth = shared if found_role[p] == _COUNTS else -1.0
                if worth > best:
                    place, best = p, worth
            if place >= 0:
                taken[place] = True
                if true_role[t] == _COUNTS and found_role[place] == _COUNTS:
                    right += 1
                    hits[t] = score[place]
        for p in range(first, stop):
            if found_role[p] == _COUNTS and not taken[p] and score[p] >= threshold and not unsure[p]:
                wrong += 1
    return right, wrong
