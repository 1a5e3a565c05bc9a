"""The nuScenes detection score: precision by distance, the errors of what was found, and NDS.

Numbers are those of the official devkit: a box of a class finds the nearest free truth of its class and frame if
their centres are closer than a threshold, boxes in descending order of score. Arithmetic is in double precision.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float
from numba import njit
from torch import Tensor

from cofield.classes import DETECTION, UNKNOWN
from cofield.frame import Boxes

RANGES = {
    "car": 50.0,
    "truck": 50.0,
    "construction_vehicle": 50.0,
    "bus": 50.0,
    "trailer": 50.0,
    "barrier": 30.0,
    "motorcycle": 40.0,
    "bicycle": 40.0,
    "pedestrian": 40.0,
    "traffic_cone": 30.0,
}
THRESHOLDS = (0.5, 1.0, 2.0, 4.0)  # metres between centres, seen from above
ERRORS = ("translation", "scale", "orientation", "velocity", "attribute")
UNDEFINED = {"traffic_cone": ("orientation", "velocity", "attribute"), "barrier": ("velocity", "attribute")}
MOST_BOXES = 500  # of one frame

_ERRORS_AT = 2  # the threshold whose matches have errors: 2 m
_LOW = 0.1  # recall and precision up to this do not count
_RECALL = np.linspace(0, 1, 101)
_FIRST = round(100 * _LOW) + 1
_IN_RACKS = tuple(DETECTION.index(name) for name in ("bicycle", "motorcycle"))

Array = np.ndarray


@dataclass(frozen=True)
class DetectionScore:
    """What a set of frames scores.

    Args:
        names: the classes, in the order of the rows.
        ap: average precision per class and threshold.
        errors: metres, 1 - IoU, radians, metres per second, 1 - accuracy; NaN where a class has no such error, and 1
            where nothing was found.
    """

    names: tuple[str, ...]
    ap: Float[Tensor, "k t"]
    errors: Float[Tensor, "k e"]

    @property
    def mean_ap(self) -> float:
        return float(self.ap.mean())

    @property
    def mean_errors(self) -> dict[str, float]:
        """Each error's mean over the classes that have it."""
        return dict(zip(ERRORS, self.errors.nanmean(0).tolist(), strict=True))

    @property
    def nds(self) -> float:
        """(5 mAP + Σ max(0, 1 - error)) / 10."""
        found = sum(max(0.0, 1.0 - error) for error in self.mean_errors.values())
        return (5 * self.mean_ap + found) / 10

    def summary(self) -> dict[str, float]:
        """NDS, mAP, the mean errors, and each class's AP, by name."""
        each = dict(zip(self.names, self.ap.mean(1).tolist(), strict=True))
        return {"nds": self.nds, "map": self.mean_ap} | self.mean_errors | {f"ap.{name}": each[name] for name in each}


class NuScenesScore:
    """Accumulates frames, and gives their score.

    Where two scores are equal, what was added later comes first, as in the devkit.

    Args:
        ranges: the classes to score, and how far from the car each counts, in metres.
    """

    def __init__(self, ranges: Mapping[str, float] = RANGES) -> None:
        self.ranges = {DETECTION.index(name): limit for name, limit in ranges.items()}
        self._tokens: set[str] = set()
        self._predicted: list[Array] = []
        self._truth: list[Array] = []

    def add(
        self,
        token: str,
        predicted: Boxes,
        truth: Boxes,
        position: Float[Tensor, "2"] | None = None,
        racks: Boxes | None = None,
    ) -> None:
        """Count a frame's boxes, of the classes `DETECTION`, all in one frame of coordinates.

        Truth without points inside does not count, if its points were counted, nor does truth without a class.

        Args:
            position: of the car; None for the origin, where the ego frame has it.
            racks: bicycle racks; neither a bicycle nor a motorcycle inside one counts, found or true.
        """
        if token in self._tokens:
            raise ValueError(f"sample {token} was added twice")
        check_boxes(token, predicted)
        self._tokens.add(token)
        valid = truth.label != UNKNOWN
        if truth.num_points is not None:
            valid = valid & (truth.num_points > 0)
        for boxes, tables in ((predicted, self._predicted), (truth.select(valid), self._truth)):
            rows = _rows(len(self._tokens) - 1, boxes, position)
            if racks is not None and len(racks):
                rows = rows[~in_racks(boxes, racks).numpy()]
            tables.append(rows)

    def compute(self) -> DetectionScore:
        """The score of all frames so far."""
        predicted, truth = (self._in_range(tables) for tables in (self._predicted, self._truth))
        scores = [_score_class(*(rows[rows[:, 1] == label] for rows in (predicted, truth))) for label in self.ranges]
        names = tuple(DETECTION.names[label] for label in self.ranges)
        errors = torch.tensor([errors for _, errors in scores], dtype=torch.float64).view(-1, len(ERRORS))
        for row, name in enumerate(names):
            errors[row, [ERRORS.index(error) for error in UNDEFINED.get(name, ())]] = torch.nan
        ap = torch.tensor([ap for ap, _ in scores], dtype=torch.float64).view(-1, len(THRESHOLDS))
        return DetectionScore(names, ap, errors)

    def _in_range(self, tables: list[Array]) -> Array:
        rows = np.concatenate([np.empty((0, _COLUMNS)), *tables])
        limit = np.zeros(len(DETECTION))
        limit[list(self.ranges)] = list(self.ranges.values())
        return rows[rows[:, 12] < limit[rows[:, 1].astype(int)]]


def check_boxes(token: str, boxes: Boxes) -> None:
    """Refuse predictions that have no score in the devkit, with the reason."""
    where = f"sample {token}"
    if boxes.score is None:
        raise ValueError(f"{where}: predicted boxes need scores")
    if len(boxes) > MOST_BOXES:
        raise ValueError(f"{where} has {len(boxes)} boxes, but at most {MOST_BOXES} count: keep the best")
    if bool(((boxes.label < 0) | (boxes.label >= len(DETECTION))).any()):
        raise ValueError(
            f"{where} has labels {boxes.label.unique().tolist()}; they count {len(DETECTION)} classes from 0"
        )
    for name, values in (("centre", boxes.centre), ("size", boxes.size), ("yaw", boxes.yaw), ("score", boxes.score)):
        if not bool(values.isfinite().all()):
            raise ValueError(f"{where}: {name} is not finite, which no box may be")
    if bool((boxes.score < 0).any()):
        raise ValueError(f"{where}: a score is {float(boxes.score.min())}, but none is less than 0")
    if not bool((boxes.size > 0).all()):
        raise ValueError(f"{where}: a box has size {boxes.size.amin(0).tolist()}, but sizes are more than 0")


def in_racks(boxes: Boxes, racks: Boxes) -> Bool[Tensor, "n"]:
    """True for bicycles and motorcycles whose centre is inside a rack."""
    parked = torch.isin(boxes.label, torch.tensor(_IN_RACKS, device=boxes.label.device))
    return parked & racks.contains(boxes.centre.to(racks.centre)).any(0)


# Of a row: frame, label, attribute, x y, l w h, yaw, vx vy, score, distance from the car.
_COLUMNS = 13


def _rows(frame: int, boxes: Boxes, position: Tensor | None) -> Float[Array, "n 13"]:
    """Boxes as rows of numbers."""
    rows = np.empty((len(boxes), _COLUMNS))
    rows[:, 0], rows[:, 1] = frame, boxes.label.numpy(force=True)
    rows[:, 2] = UNKNOWN if boxes.attribute is None else boxes.attribute.numpy(force=True)
    rows[:, 3:5] = boxes.centre.numpy(force=True)[:, :2]
    rows[:, 5:8] = boxes.size.numpy(force=True)
    rows[:, 8] = boxes.yaw.numpy(force=True)
    rows[:, 9:11] = boxes.velocity.numpy(force=True)
    rows[:, 11] = -1.0 if boxes.score is None else boxes.score.numpy(force=True)
    offset = rows[:, 3:5] - (0.0 if position is None else position.numpy(force=True))
    rows[:, 12] = np.sqrt((offset**2).sum(1))
    return rows


def _score_class(predicted: Array, truth: Array) -> tuple[list[float], list[float]]:
    """AP at each threshold, and the five errors, of one class."""
    best = predicted[predicted[:, 11].argsort(kind="stable")[::-1]]
    match = np.full((len(THRESHOLDS), len(best)), -1)
    # Truth came frame by frame: each frame's is one run of rows.
    start, stop = (np.searchsorted(truth[:, 0], best[:, 0], side) for side in ("left", "right"))
    _match(best[:, 3:5], start, stop, truth[:, 3:5], np.array(THRESHOLDS), match)
    hit = match >= 0
    curves = [_curve(each, best[:, 11], len(truth)) for each in hit]
    ap = [float((precision[_FIRST:] - _LOW).clip(0).mean() / (1 - _LOW)) for precision, _ in curves]
    found, confidence = hit[_ERRORS_AT], curves[_ERRORS_AT][1]
    errors = _errors(best[found], truth[match[_ERRORS_AT][found]])
    return ap, [_mean_error(each, best[found, 11], confidence) for each in errors]


@njit(cache=True)
@no_type_check
def _match(xy, start, stop, true_xy, thresholds, match):
    """For each threshold and box the nearest truth of its frame that no box before it took, -1 if none is near."""
    for t in range(len(thresholds)):
        taken = np.zeros(len(true_xy), np.bool_)
        for p in range(len(xy)):
            nearest, place = np.inf, -1
            for g in range(start[p], stop[p]):
                if not taken[g]:
                    x, y = xy[p, 0] - true_xy[g, 0], xy[p, 1] - true_xy[g, 1]
                    distance = np.sqrt(x * x + y * y)
                    if distance < nearest:
                        nearest, place = distance, g
            if nearest < thresholds[t]:
                taken[place] = True
                match[t, p] = place


def _curve(hit: Array, score: Array, positives: int) -> tuple[Array, Array]:
    """Precision, and the score of the box that reaches it, at 101 recalls; 0 beyond the last."""
    if not hit.any():
        return np.zeros(len(_RECALL)), np.zeros(len(_RECALL))
    found = hit.cumsum().astype(float)
    precision, recall = found / np.arange(1, len(hit) + 1), found / positives
    return np.interp(_RECALL, recall, precision, right=0), np.interp(_RECALL, recall, score, right=0)


def _errors(found: Array, truth: Array) -> tuple[Array, ...]:
    """The five errors of each pair; NaN where the truth does not say."""
    smaller = np.minimum(found[:, 5:8], truth[:, 5:8]).prod(1)
    scale = 1 - smaller / (found[:, 5:8].prod(1) + truth[:, 5:8].prod(1) - smaller)
    # Both ends of a barrier are alike.
    period = np.where(truth[:, 1] == DETECTION.index("barrier"), np.pi, 2 * np.pi)
    turn = np.abs((truth[:, 8] - found[:, 8] + period / 2) % period - period / 2)
    attribute = np.where(truth[:, 2] == UNKNOWN, np.nan, truth[:, 2] != found[:, 2])
    return (
        np.sqrt(((found[:, 3:5] - truth[:, 3:5]) ** 2).sum(1)),
        scale,
        turn,
        np.sqrt(((found[:, 9:11] - truth[:, 9:11]) ** 2).sum(1)),
        attribute,
    )


def _mean_error(error: Array, score: Array, confidence: Array) -> float:
    """The mean over recalls of the running mean error; 1 if too little was found to have one."""
    reached = np.flatnonzero(confidence)
    if not len(reached) or reached[-1] < _FIRST:
        return 1.0
    known = ~np.isnan(error)
    if not known.any():
        return 1.0
    running = np.where(known, error, 0).cumsum() / known.cumsum().clip(1)
    along = np.interp(confidence[::-1], score[::-1], running[::-1])[::-1]
    return float(along[_FIRST : reached[-1] + 1].mean())
