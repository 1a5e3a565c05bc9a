"""Objects of other frames, pasted where nothing stands: what a detector rarely sees it sees more often."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cofield.classes import UNKNOWN
from cofield.data import Source
from cofield.draw import generator
from cofield.frame import Boxes, Frame, Points
from cofield.ops.boxes import cuboids, overlap, points_in_boxes

_FLAT = [0, 1, 3, 4, 6]


@dataclass(frozen=True)
class Objects:
    """Labelled objects with the returns inside them, where they were seen in their ego frames.

    Args:
        offsets: object n's points are rows offsets[n] to offsets[n + 1].
    """

    boxes: Boxes
    points: Points
    offsets: Int[Tensor, "n1"]

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, which: Int[Tensor, "m"]) -> "Objects":
        """The objects at the given places."""
        count = self.offsets.diff()[which]
        bounds = self.offsets.tolist()
        rows = [torch.arange(bounds[n], bounds[n + 1]) for n in which.tolist()]
        points = self.points.select(torch.cat([torch.zeros(0).long(), *rows]))
        return Objects(self.boxes.select(which), points, _offsets(count))

    def save(self, path: Path) -> None:
        """Write them to a file."""
        tensors = {"offsets": self.offsets}
        for kind, table in (("boxes", self.boxes), ("points", self.points)):
            columns = {field.name: getattr(table, field.name) for field in fields(table)}
            tensors |= {f"{kind}.{name}": column for name, column in columns.items() if column is not None}
        part = path.with_name(f".{path.name}.part")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Objects":
        """The objects that `save` wrote."""
        tables: dict[str, dict[str, Tensor]] = {"boxes": {}, "points": {}}
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                kind, _, column = name.partition(".")
                if column:
                    tables[kind][column] = file.get_tensor(name)
            return cls(Boxes(**tables["boxes"]), Points(**tables["points"]), file.get_tensor("offsets"))


def collect(source: Source, most: int, least_points: int) -> Objects:
    """The objects of every frame of a source, which is read once.

    Args:
        most: of one class; where there are more, some are kept, evenly spread over the source.
        least_points: returns that an object holds.
    """
    found: list[tuple[Boxes, Points, Tensor]] = []
    for index in range(len(source)):
        frame = source[index]
        if frame.boxes is None:
            raise ValueError(f"{frame.token} of {source.name} has no boxes; there is nothing to paste from it")
        boxes = frame.boxes.select((frame.boxes.label != UNKNOWN) & frame.boxes.centre.isfinite().all(-1))
        slot, _ = points_in_boxes(frame.points.xyz_ego, cuboids(boxes))
        count = torch.bincount(slot[slot >= 0], minlength=len(boxes))
        order = slot.argsort(stable=True)[int((slot < 0).sum()) :]
        kept = count >= least_points
        found.append((boxes.select(kept), frame.points.select(order[kept[slot[order]]]), count[kept]))
    if not sum(len(boxes) for boxes, _, _ in found):
        raise ValueError(f"no box of {source.name} holds {least_points} returns; there is nothing to paste")
    boxes = Boxes(**_together([each for each, _, _ in found]))
    objects = Objects(
        boxes, Points(**_together([each for _, each, _ in found])), _offsets(torch.cat([n for _, _, n in found]))
    )
    rows = [_spread((boxes.label == label).nonzero()[:, 0], most) for label in boxes.label.unique()]
    return objects.select(torch.cat(rows).sort().values)


@dataclass(frozen=True)
class Pasting:
    """`pasting(frame, epoch)` is the frame with objects added, up to `fill` boxes of each class.

    Each object stands where it stood in its own frame, which keeps its distance, its density and the ground under it.
    One that overlaps a box that is there, or was pasted before it, is left out. Returns that were inside it are
    removed; what it would hide behind it stays.

    Images do not show what is pasted, so pasting is for trunks that encode no camera.

    Args:
        seed: of the run. Draws depend on it, the epoch and the frame.
    """

    objects: Objects
    fill: int
    seed: int

    def __call__(self, frame: Frame, epoch: int) -> Frame:
        """The frame as it is seen in one epoch."""
        if frame.boxes is None:
            raise ValueError(f"{frame.token} has no boxes, so nobody knows where something stands; do not paste")
        chosen = self.objects.select(self._chosen(frame.boxes, frame.token, epoch))
        if not len(chosen):
            return frame
        slot, _ = points_in_boxes(frame.points.xyz_ego, cuboids(chosen.boxes))
        # Its sweeps are told apart as far as this frame has as many.
        origin = chosen.points.origin.clamp(max=len(frame.origins_ego) - 1)
        points = [frame.points.select(slot < 0), replace(chosen.points, origin=origin)]
        boxes = replace(chosen.boxes, track=None if chosen.boxes.track is None else _nobody(chosen.boxes.track))
        return replace(frame, points=Points(**_together(points)), boxes=Boxes(**_together([frame.boxes, boxes])))

    def _chosen(self, boxes: Boxes, token: str, epoch: int) -> Int[Tensor, "m"]:
        """The objects that a frame gets: of every class as many as are missing, if they find room."""
        candidates = []
        for label in self.objects.boxes.label.unique().tolist():
            missing = max(0, self.fill - int((boxes.label == label).sum()))
            own = (self.objects.boxes.label == label).nonzero()[:, 0]
            draw = generator(self.seed, epoch, token, "paste", label)
            candidates.append(own[torch.randperm(len(own), generator=draw)[:missing]])
        order = torch.cat([torch.zeros(0).long(), *candidates])
        there = boxes.select(boxes.centre.isfinite().all(-1))
        return order[free(self.objects.boxes.select(order), there)]


def free(candidates: Boxes, there: Boxes) -> Bool[Tensor, "n"]:
    """Which candidates share no ground with a box that is there, nor with an earlier candidate that is free."""
    new, old = cuboids(candidates)[:, _FLAT], cuboids(there)[:, _FLAT]
    taken = (overlap(new, old) > 0).any(-1)
    among = overlap(new, new) > 0
    kept = torch.zeros(len(candidates), dtype=torch.bool)
    for n in range(len(candidates)):
        kept[n] = not taken[n] and not (among[n] & kept).any()
    return kept


def _together(parts: Sequence[Boxes] | Sequence[Points]) -> dict[str, Any]:
    """Every column of some tables one below the other; None for one that some table lacks."""
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(parts[0])}
    return {
        name: None if any(each is None for each in column) else torch.cat(column) for name, column in columns.items()
    }


def _nobody(track: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Tracks of other scenes mean nothing here."""
    return torch.full_like(track, UNKNOWN)


def _spread(rows: Int[Tensor, "n"], most: int) -> Int[Tensor, "m"]:
    count = min(most, len(rows))
    return rows[torch.arange(count) * len(rows) // max(1, count)]


def _offsets(count: Int[Tensor, "n"]) -> Int[Tensor, "n1"]:
    return torch.cat([count.new_zeros(1), count.cumsum(0)])
