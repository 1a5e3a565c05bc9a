"""Official result files: detections for nuScenes and KITTI, point labels, and map rasters.

What is written loads in the official evaluations, and is read back here: a file that an evaluation would refuse, or
misread, is refused with the reason and the frame.
"""

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cofield.classes import ATTRIBUTES, DETECTION, LIDARSEG, SEMANTICKITTI, UNKNOWN, Classes, likely_attributes
from cofield.data.export import write_array
from cofield.data.export_kitti import label_lines
from cofield.data.export_semantickitti import label_words
from cofield.data.files import read_labels
from cofield.data.kitti import read_boxes
from cofield.data.semantickitti import read_point_labels
from cofield.frame import Boxes, Camera
from cofield.geometry import (
    pose,
    quaternion_from_rotation,
    rotation_from_quaternion,
    yaw_of,
    yaw_rotation,
)
from cofield.grid import BoxGrid

MOST_BOXES = 500
SENSORS = ("camera", "lidar", "radar", "map", "external")

# The rectified camera's axes turned upright (x ahead, y left, z up): KITTI's boxes are upright in it exactly.
UPRIGHT_T_CAM = pose(torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]).double(), torch.zeros(3).double())

_UNIT = 1e-3  # how far from 1 a quaternion's length may be
_FIELDS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2}


def write_detections(
    path: Path, found: Iterable[tuple[str, Boxes]], sensors: Sequence[str] = ("camera", "lidar")
) -> int:
    """A nuScenes detection file of every sample's boxes, which are in the world; how many samples that is.

    Each sample of the split must be among them, though it may have no boxes. Boxes without attributes get those of
    `likely_attributes`; an unknown velocity is written as 0, since JSON has no NaN. The file appears when complete.

    Args:
        sensors: what the predictions were made from.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, tokens = path.with_name(path.name + ".part"), set()
    with part.open("w") as file:
        file.write(f'{{"meta": {json.dumps(_meta(sensors))}, "results": {{')
        for token, boxes in found:
            if token in tokens:
                raise ValueError(f"sample {token} came twice")
            file.write(f"{',' if tokens else ''}\n{json.dumps(token)}: {json.dumps(_records(token, boxes))}")
            tokens.add(token)
        file.write("\n}}\n")
    part.replace(path)
    return len(tokens)


def read_detections(path: Path, tokens: Iterable[str] | None = None) -> dict[str, Boxes]:
    """The boxes of a nuScenes detection file by sample, in the world and in double precision.

    Args:
        tokens: the samples of the split that is evaluated: all must be there, and no other.
    """
    try:
        results = json.loads(path.read_text())["results"]
        samples = dict(results.items())
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ValueError(
            f'{path} is no detection file ({problem!r}); it should be {{"meta": ..., "results": {{...}}}}'
        ) from problem
    if tokens is not None:
        _check_samples(path, samples, tokens)
    return {token: _read_sample(f"{path}, sample {token}", token, records) for token, records in samples.items()}


def in_world(boxes: Boxes, world_T_ego: Float[Tensor, "4 4"]) -> Boxes:
    """Boxes of the ego frame in the world, in double precision."""
    exact = replace(
        boxes,
        centre=boxes.centre.double(),
        size=boxes.size.double(),
        yaw=boxes.yaw.double(),
        velocity=boxes.velocity.double(),
    )
    return exact.moved(world_T_ego.to(exact.centre))


def write_kitti(folder: Path, token: str, boxes: Boxes, label: Int[Tensor, "n"], camera: Camera) -> Path:
    """A KITTI result file of a frame's boxes that the camera sees: labels with a score as 16th column.

    Args:
        boxes: in the ego frame.
        label: of each box, in the classes `KITTI`.
    """
    if boxes.score is None:
        raise ValueError(f"frame {token}: predicted boxes need scores")
    path = folder / f"{token}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in label_lines(boxes, label, camera)))
    return path


def read_kitti(folder: Path, tokens: Iterable[str], scored: bool = True) -> dict[str, Boxes]:
    """The boxes of KITTI text files by frame, upright in the rectified camera's axes: x ahead, y left, z up.

    Args:
        scored: result files; False for labels.
    """
    found = {}
    for token in tokens:
        path = folder / f"{token}.txt"
        if not path.is_file():
            raise ValueError(f"{folder} has no {path.name}; every frame of the split needs a file, which may be empty")
        boxes = read_boxes(path, UPRIGHT_T_CAM)
        if scored and not len(boxes):
            boxes = replace(boxes, score=torch.zeros(0))
        if scored and boxes.score is None:
            raise ValueError(f"{path}: a line has no score; result files have it as 16th column")
        if scored and bool((boxes.label == UNKNOWN).any()):
            raise ValueError(f"{path}: a box has no class; DontCare regions belong to labels")
        known = boxes.select(boxes.label != UNKNOWN)
        for name, values in (
            ("position", known.centre),
            ("size", known.size),
            ("rotation", known.yaw),
            ("score", known.score),
        ):
            if values is not None and not bool(values.isfinite().all()):
                raise ValueError(f"{path}: a {name} is not finite")
        found[token] = boxes
    return found


def write_lidarseg(folder: Path, split: str, token: str, labels: Int[Tensor, "p"]) -> Path:
    """A nuScenes-lidarseg prediction, <folder>/lidarseg/<split>/<token>_lidarseg.bin: one byte a point.

    Args:
        token: of the LiDAR keyframe's file, not of the sample.
        labels: of all its points in their order, in the classes `LIDARSEG`; the files count them from 1.
    """
    _check_labels(token, labels, len(LIDARSEG))
    path = _lidarseg_path(folder, split, token)
    write_array(path, (labels.cpu() + 1).byte().numpy())
    return path


def read_lidarseg(folder: Path, split: str, token: str, points: int) -> Int[Tensor, "p"]:
    """The labels of a nuScenes-lidarseg prediction, in the classes `LIDARSEG`, for a scan of so many points."""
    path = _there(_lidarseg_path(folder, split, token))
    numbers = torch.from_numpy(read_labels(path, "u1", points))
    wrong = numbers[(numbers < 1) | (numbers > len(LIDARSEG))]
    if len(wrong):
        raise ValueError(
            f"{path}: a point has the label {int(wrong[0])}; predictions count {len(LIDARSEG)} classes from 1, and the "
            "official evaluation refuses all else, 0 (noise) too"
        )
    return numbers - 1


def write_lidarseg_meta(folder: Path, split: str, sensors: Sequence[str] = ("camera", "lidar")) -> Path:
    """What a lidarseg submission says of itself, <folder>/<split>/submission.json."""
    path = folder / split / "submission.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"meta": _meta(sensors)}))
    return path


def write_semantickitti(folder: Path, token: str, labels: Int[Tensor, "p"]) -> Path:
    """A SemanticKITTI prediction, <folder>/sequences/<nn>/predictions/<nnnnnn>.label: a 32-bit word a point.

    Args:
        token: the frame's, as "08/000000".
        labels: of all its points in their order, in the classes `SEMANTICKITTI`.
    """
    _check_labels(token, labels, len(SEMANTICKITTI))
    path = _semantickitti_path(folder, token)
    write_array(path, label_words(labels.cpu(), None))
    return path


def read_semantickitti(folder: Path, token: str, points: int) -> Int[Tensor, "p"]:
    """The labels of a SemanticKITTI prediction, in the classes `SEMANTICKITTI`, for a scan of so many points.

    Those of moving objects are merged, and instances left out, as the evaluation of single scans does.
    """
    path = _there(_semantickitti_path(folder, token))
    labels, _ = read_point_labels(path, points, moving=False)
    if bool((labels == UNKNOWN).any()):
        number = read_labels(path, "<u4", points)[int((labels == UNKNOWN).nonzero()[0])] & 0xFFFF
        raise ValueError(
            f"{path}: a point has the label {number}, which is none of the {len(SEMANTICKITTI)} classes; a prediction "
            "has one for every point"
        )
    return labels


@dataclass(frozen=True)
class MapRaster:
    """How probable each layer is in each cell around the car: `probability[m, y, x]` of `names[m]` on `grid`."""

    token: str
    probability: Float[Tensor, "m y x"]
    names: tuple[str, ...]
    grid: BoxGrid

    def __getitem__(self, name: str) -> Float[Tensor, "y x"]:
        """One layer by name."""
        if name not in self.names:
            raise KeyError(f"no layer is called {name!r}; there is {', '.join(self.names)}")
        return self.probability[self.names.index(name)]


def write_map(folder: Path, raster: MapRaster) -> Path:
    """<folder>/<token>.npz with `probability` [layer, y, x] in half precision, `names`, and `lower`, `cell`, `count`.

    Cell (y, x) covers lower + (x, y) · cell to lower + (x + 1, y + 1) · cell, metres in the ego frame, wherever the
    raster's own zero is.
    """
    path = folder / f"{raster.token}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        probability=raster.probability.cpu().half().numpy(),
        names=np.array(raster.names),
        lower=np.add(raster.grid.lower, raster.grid.origin_ego),
        cell=np.array(raster.grid.cell),
        count=np.array(raster.grid.count),
    )
    return path


def read_map(path: Path) -> MapRaster:
    """A file that `write_map` wrote."""
    _there(path)
    try:
        with np.load(path) as archive:
            columns = {name: archive[name] for name in ("probability", "names", "lower", "cell", "count")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as problem:
        raise ValueError(f"{path} is no map raster ({problem})") from problem
    probability = torch.from_numpy(columns["probability"]).float()
    if not bool(((probability >= 0) & (probability <= 1)).all()):
        raise ValueError(f"{path}: a probability is not between 0 and 1")
    lower, cell, count = (tuple(columns[name].tolist()) for name in ("lower", "cell", "count"))
    names, grid = tuple(columns["names"].tolist()), BoxGrid(lower, cell, count)
    if probability.shape != (len(names), *grid.shape[1:]):
        raise ValueError(
            f"{path}: the probabilities are {list(probability.shape)}, its {len(names)} names and its raster ask for "
            f"{[len(names), *grid.shape[1:]]}"
        )
    return MapRaster(path.stem, probability, names, grid)


def _lidarseg_path(folder: Path, split: str, token: str) -> Path:
    return folder / "lidarseg" / split / f"{token}_lidarseg.bin"


def _semantickitti_path(folder: Path, token: str) -> Path:
    sequence, _, stem = token.partition("/")
    return folder / "sequences" / sequence / "predictions" / f"{stem}.label"


def _there(path: Path) -> Path:
    """The file, which must exist."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}; every frame that is scored needs a file")
    return path


def _meta(sensors: Sequence[str]) -> dict[str, bool]:
    unknown = set(sensors) - set(SENSORS)
    if unknown:
        raise ValueError(f"no input is called {', '.join(sorted(unknown))}; there is {', '.join(SENSORS)}")
    return {f"use_{sensor}": sensor in sensors for sensor in SENSORS}


def _records(token: str, boxes: Boxes) -> list[dict[str, Any]]:
    """A sample's boxes as the file has them, checked as when they are read."""
    if boxes.score is None:
        raise ValueError(f"sample {token}: predicted boxes need scores")
    known = (boxes.label >= 0) & (boxes.label < len(DETECTION))
    if not bool(known.all()):
        raise ValueError(f"sample {token}: label {int(boxes.label[~known][0])} is none of {len(DETECTION)} classes")
    attribute = likely_attributes(boxes.label, boxes.velocity) if boxes.attribute is None else boxes.attribute
    columns = {
        "translation": boxes.centre.double(),
        "size": boxes.size.double()[:, [1, 0, 2]],
        "rotation": quaternion_from_rotation(yaw_rotation(boxes.yaw.double())),
        "velocity": boxes.velocity.double().nan_to_num(0.0),
        "score": boxes.score.double(),
    }
    _check_numbers(f"sample {token}", **columns)
    lists = [column.tolist() for column in columns.values()]
    return [
        {
            "sample_token": token,
            "translation": translation,
            "size": size,
            "rotation": rotation,
            "velocity": velocity,
            "detection_name": DETECTION.names[label],
            "detection_score": score,
            "attribute_name": "" if which == UNKNOWN else ATTRIBUTES.names[which],
        }
        for translation, size, rotation, velocity, score, label, which in zip(
            *lists, boxes.label.tolist(), attribute.tolist(), strict=True
        )
    ]


def _check_samples(path: Path, found: Iterable[str], wanted: Iterable[str]) -> None:
    """Exactly the samples of the split."""
    there, split = set(found), set(wanted)
    for what, names in (("is missing", split - there), ("is not of this split", there - split)):
        if names:
            raise ValueError(
                f"{path}: sample {min(names)} {what}, and {len(names) - 1} others; a file has all samples of its split"
            )


def _read_sample(where: str, token: str, records: Any) -> Boxes:
    if len(records) > MOST_BOXES:
        raise ValueError(f"{where} has {len(records)} boxes; at most {MOST_BOXES} are allowed")
    try:
        tables = {name: _table(records, name, width) for name, width in _FIELDS.items()}
        score = torch.tensor([record["detection_score"] for record in records], dtype=torch.float64)
        names = [record["detection_name"] for record in records]
        attributes = [record["attribute_name"] for record in records]
        others = {record["sample_token"] for record in records} - {token}
    except (KeyError, TypeError, ValueError, RuntimeError) as problem:
        raise ValueError(f"{where}: a box is not complete or not of numbers ({problem!r})") from problem
    if others:
        raise ValueError(f"{where}: a box says that it is of sample {min(others)}")
    _check_numbers(where, **tables, score=score)
    return Boxes(
        centre=tables["translation"],
        size=tables["size"][:, [1, 0, 2]],
        yaw=yaw_of(rotation_from_quaternion(tables["rotation"])),
        velocity=tables["velocity"],
        label=_labels(where, names, DETECTION),
        score=score,
        attribute=_labels(where, attributes, ATTRIBUTES, may_be_empty=True),
    )


def _table(records: list[dict[str, Any]], name: str, width: int) -> Float[Tensor, "n w"]:
    return torch.tensor([record[name] for record in records], dtype=torch.float64).reshape(len(records), width)


def _labels(where: str, names: list[str], classes: Classes, may_be_empty: bool = False) -> Int[Tensor, "n"]:
    table = {name: label for label, name in enumerate(classes.names)} | ({"": UNKNOWN} if may_be_empty else {})
    for name in names:
        if name not in table:
            raise ValueError(f"{where}: {classes.space} has no {name!r}; it has {', '.join(classes.names)}")
    return torch.tensor([table[name] for name in names], dtype=torch.long)


def _check_numbers(
    where: str,
    translation: Float[Tensor, "n 3"],
    size: Float[Tensor, "n 3"],
    rotation: Float[Tensor, "n 4"],
    velocity: Float[Tensor, "n 2"],
    score: Float[Tensor, "n"],
) -> None:
    """Refuse numbers that no box has."""
    if len(score) > MOST_BOXES:
        raise ValueError(f"{where} has {len(score)} boxes; at most {MOST_BOXES} are allowed: keep the best")
    named = {"translation": translation, "size": size, "rotation": rotation, "velocity": velocity, "score": score}
    for name, values in named.items():
        if not bool(values.isfinite().all()):
            raise ValueError(f"{where}: {name} of a box is not finite")
    if bool((size <= 0).any()):
        raise ValueError(f"{where}: a box has size {float(size.min())}; sizes are more than 0")
    if bool((score < 0).any()):
        raise ValueError(f"{where}: a score is {float(score.min())}; scores are at least 0")
    length = rotation.norm(dim=-1)
    if bool(((length - 1).abs() > _UNIT).any()):
        odd = float(length[(length - 1).abs().argmax()])
        raise ValueError(f"{where}: a rotation has length {odd:.6g}; quaternions (w x y z) have length 1")


def _check_labels(token: str, labels: Tensor, classes: int) -> None:
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(
            f"frame {token} has labels {labels.unique().tolist()}; each point needs one of {classes} classes"
        )
