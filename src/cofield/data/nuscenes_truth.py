"""What the official nuScenes evaluations know of a split, from its tables alone: no image or scan is read."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cofield.classes import UNKNOWN
from cofield.data.nuscenes import LIDAR, NuScenes, scenes_of_split
from cofield.frame import Boxes
from cofield.geometry import rotation_from_quaternion, yaw_of


@dataclass(frozen=True)
class Truth:
    """A sample's boxes in the world and in double precision.

    Args:
        boxes: their `num_points` are returns of LiDAR and radar; what has none is not evaluated.
        racks: for bicycles, without a class; nor is a bicycle or a motorcycle inside one.
        position: of the car, seen from above.
    """

    token: str
    boxes: Boxes
    racks: Boxes
    position: Float[Tensor, "2"]


def official_truth(source: NuScenes) -> Iterator[Truth]:
    """The truth of every sample of a source, in its order."""
    column = source.tables
    for sample, file in zip(*_samples(source), strict=True):
        start, stop = column["box.offset"][sample : sample + 2]
        boxes = _boxes(source, slice(start, stop))
        racks = torch.from_numpy(np.array(column["box.rack"][start:stop]))
        position = torch.from_numpy(np.array(column["file.translation"][file, :2]))
        token = str(column["sample.token"][sample])
        yield Truth(token, boxes.select(boxes.label != UNKNOWN), boxes.select(racks), position)


def lidar_tokens(source: NuScenes) -> list[str]:
    """The token of every sample's LiDAR keyframe, which names its files of point labels."""
    return [source.tables["file.token"][file].tobytes().hex() for file in _samples(source)[1]]


def _samples(source: NuScenes) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """The rows of a source's samples and of their LiDAR keyframes."""
    column = source.tables
    names = column["scene.name"].tolist()
    wanted = [names.index(name) for name in scenes_of_split(source.root / source.version, source.split, names)]
    samples = np.flatnonzero(np.isin(column["sample.scene"], wanted))
    return samples, column["sample.file"][samples, column["channel"].tolist().index(LIDAR)]


def _boxes(source: NuScenes, rows: slice) -> Boxes:
    names = ("centre", "size", "rotation", "velocity", "label", "attribute", "points", "radar")
    read = {name: torch.from_numpy(np.array(source.tables[f"box.{name}"][rows])) for name in names}
    return Boxes(
        centre=read["centre"],
        size=read["size"],
        yaw=yaw_of(rotation_from_quaternion(read["rotation"])),
        velocity=read["velocity"][:, :2],
        label=read["label"].long(),
        attribute=read["attribute"].long(),
        num_points=(read["points"] + read["radar"]).long(),
    )
