"""Point segmentation on another data set: both vocabularies in the common one, and what has no place in it left out."""

from dataclasses import replace

import torch

from cofield.classes import COMMON, UNKNOWN, Classes, translate, translation
from cofield.data import Source
from cofield.data.loader import evaluation_batches
from cofield.metrics.iou import PointIoU
from cofield.models.pointseg import known_labels
from cofield.train.semi import SemiSegment
from cofield.train.tasks import PointSegment

NONE = "none of these"  # what a point is called whose predicted class has no common name: a miss, if it has a true one


@torch.no_grad()
def score_across(task: PointSegment | SemiSegment, source: Source, indices: list[int], batch: int) -> dict[str, float]:
    """What frames score whose labels count other classes than the head: the IoU of the classes of `COMMON`.

    A point whose true class has no common name, or one that the head cannot say, is not scored; of all others a
    prediction without a common name is a miss.
    """
    truth = source.point_classes
    if truth is None:
        raise ValueError(f"{source.name} has no point labels to score against")
    counted = PointIoU([*COMMON.names, NONE])
    sayable = translation(task.classes, COMMON)
    for frames in evaluation_batches(source, batch, indices):
        now = frames.points.age == 0
        asked = replace(frames, points=replace(frames.points, labels=None))
        said = translate(task(asked)[now], task.classes, COMMON).cpu()
        true = translate(known_labels(frames, truth)[now], truth, COMMON).cpu()
        true = torch.where(torch.isin(true, sayable), true, UNKNOWN)
        counted.add(torch.where(said < 0, len(COMMON), said), true, frames.points.xyz_ego[now].cpu())
    return counted.compute()


def left_out(said: Classes, truth: Classes) -> str:
    """What of two vocabularies cannot be compared."""
    parts = [
        f"{classes.space}'s {', '.join(names)} are {how}"
        for classes, how in ((truth, "not scored"), (said, "wrong wherever they are said of what is scored"))
        if (names := [name for name, to in zip(classes.names, translation(classes, COMMON), strict=True) if to < 0])
    ]
    reached = [set(translation(classes, COMMON).tolist()) for classes in (said, truth)]
    for known, classes in zip(reached, (said, truth), strict=True):
        if missing := [name for label, name in enumerate(COMMON.names) if label not in known]:
            parts.append(f"{', '.join(missing)} {classes.space} does not know, and is not scored")
    return f"scored in the classes that {said.space} and {truth.space} have in common; {'; '.join(parts)}"
