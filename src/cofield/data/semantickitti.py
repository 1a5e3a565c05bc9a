"""SemanticKITTI and ScribbleKITTI: <root>/sequences/<nn>/{velodyne,labels,image_2,calib.txt,poses.txt,times.txt}.

Ego is the LiDAR's frame lowered to the road (0, 0, 1.73), as for KITTI. The pose files hold camera 0;
the world here is the ego frame of the sequence's scan 0.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cofield.classes import SEMANTICKITTI, UNKNOWN, Classes
from cofield.data.files import read_labels
from cofield.data.kitti import (
    LIDAR_HEIGHT,
    SCAN_PERIOD,
    projection,
    read_calibration,
    rectified_camera,
    rectified_T_ego,
    velodyne_points,
)
from cofield.frame import Camera, Frame, Points
from cofield.geometry import inverse, transform

SPLITS = {
    "train": ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"),
    "val": ("08",),
    "trainval": tuple(f"{number:02d}" for number in range(11)),
    "test": tuple(f"{number:02d}" for number in range(11, 22)),
}

MOVING = Classes(
    "semantickitti-moving",
    (
        *SEMANTICKITTI.names,
        "moving-car",
        "moving-bicyclist",
        "moving-person",
        "moving-motorcyclist",
        "moving-other-vehicle",
        "moving-truck",
    ),
)

_LIDAR = torch.tensor([[0.0, 0.0, LIDAR_HEIGHT]])

# The numbers in the label files. Numbers that are not here (0 unlabelled, 1 outlier, 52 other structure,
# 99 other object) are UNKNOWN.
_NUMBERS = {
    10: "car",
    11: "bicycle",
    13: "other-vehicle",  # bus
    15: "motorcycle",
    16: "other-vehicle",  # on rails
    18: "truck",
    20: "other-vehicle",
    30: "person",
    31: "bicyclist",
    32: "motorcyclist",
    40: "road",
    44: "parking",
    48: "sidewalk",
    49: "other-ground",
    50: "building",
    51: "fence",
    60: "road",  # lane marking
    70: "vegetation",
    71: "trunk",
    72: "terrain",
    80: "pole",
    81: "traffic-sign",
    252: "moving-car",
    253: "moving-bicyclist",
    254: "moving-person",
    255: "moving-motorcyclist",
    256: "moving-other-vehicle",  # on rails
    257: "moving-other-vehicle",  # bus
    258: "moving-truck",
    259: "moving-other-vehicle",
}


@cache
def label_table(moving: bool) -> Int[Tensor, "65536"]:
    """The label of every number that the lower half of a label word may hold."""
    classes = MOVING if moving else SEMANTICKITTI
    table = torch.full((1 << 16,), UNKNOWN)
    for number, name in _NUMBERS.items():
        table[number] = classes.index(name if moving else name.removeprefix("moving-"))
    return table


@dataclass(frozen=True)
class SemanticKitti:
    """The scans of a split's sequences, as far as they are on disk.

    Args:
        split: train, val, trainval, test, or the number of one sequence, such as "08".
        cameras: of image_2 and image_3, from the odometry data set; none by default.
        moving: keep moving objects as six classes of their own (25 in all) instead of merging them.
        scribbles: train on the folder `scribbles` (ScribbleKITTI); other splits keep the full labels.
        scale: of the images, 0..1.
        sweeps: how many earlier scans to add, at most, moved by the poses; a sequence's first frames have fewer.
            Each keeps its own labels, as in the multi-scan benchmark.
    """

    root: Path
    split: str = "train"
    cameras: tuple[str, ...] = ()
    moving: bool = False
    scribbles: bool = False
    scale: float = 1.0
    sweeps: int = 0

    box_classes = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        if not self._files:
            raise FileNotFoundError(
                f"{self.root / 'sequences'} has no scans of split {self.split!r} (sequences {', '.join(self.wanted)}, "
                "each with a folder velodyne); check --root, which holds the folder sequences"
            )

    @property
    def name(self) -> str:
        return "scribblekitti" if self.scribbles else "semantickitti"

    @property
    def point_classes(self) -> Classes | None:
        if self._label_folder is None:
            return None
        return MOVING if self.moving else SEMANTICKITTI

    @property
    def wanted(self) -> tuple[str, ...]:
        """The sequences of the split, on disk or not."""
        if self.split not in SPLITS and not self.split.isdigit():
            raise ValueError(f"split is one of {', '.join(SPLITS)} or a sequence's number, got {self.split!r}")
        return SPLITS.get(self.split, (self.split,))

    def __len__(self) -> int:
        return len(self._files)

    def scenes(self) -> list[str]:
        """The sequence of every frame."""
        return [sequence for sequence, _ in self._files]

    def __getitem__(self, index: int) -> Frame:
        sequence, stem = self._files[index]
        folder, number = self.root / "sequences" / sequence, int(stem)
        drive = self._drive(sequence)
        time = drive.time(number)
        scans = self._scans(index)
        here_T_then = [inverse(drive.world_T_ego(number)) @ drive.world_T_ego(int(then)) for then in scans]
        points = [self._points(folder, then, self._label_folder) for then in scans]
        ages = [time - drive.time(int(then)) for then in scans]
        return Frame(
            token=f"{sequence}/{stem}",
            scene=sequence,
            time=time,
            world_T_ego=drive.world_T_ego(number),
            cameras=tuple(self._camera(name, folder, stem, drive, time) for name in self.cameras),
            points=merged(points, here_T_then, ages),
            origins_ego=transform(torch.stack(here_T_then), _LIDAR.double())[:, 0].float(),
        )

    def files(self, index: int) -> list[Path]:
        """The files that a frame is read from."""
        sequence, stem = self._files[index]
        names = ["calib.txt", *(f"{camera}/{stem}.png" for camera in self.cameras)]
        for then in self._scans(index):
            names += [f"velodyne/{then}.bin"]
            names += [f"{self._label_folder}/{then}.label"] if self._label_folder is not None else []
        return [self.root / "sequences" / sequence / name for name in names]

    def _scans(self, index: int) -> list[str]:
        """The names of a frame's scan and the earlier ones of its sequence, newest first."""
        index %= len(self)
        rows = range(index, max(-1, index - self.sweeps - 1), -1)
        return [self._files[row][1] for row in rows if self._files[row][0] == self._files[index][0]]

    def _points(self, folder: Path, stem: str, label_folder: str | None) -> Points:
        points = velodyne_points(folder / "velodyne" / f"{stem}.bin")
        if label_folder is None:
            return points
        labels, instances = read_point_labels(folder / label_folder / f"{stem}.label", len(points), self.moving)
        return replace(points, labels=labels, instances=instances)

    @cached_property
    def _files(self) -> tuple[tuple[str, str], ...]:
        folders = [(sequence, self.root / "sequences" / sequence / "velodyne") for sequence in self.wanted]
        return tuple((sequence, path.stem) for sequence, folder in folders for path in sorted(folder.glob("*.bin")))

    @cached_property
    def _label_folder(self) -> str | None:
        """Where labels are; None for a split without any."""
        name = "scribbles" if self.scribbles and self.split in ("train", "trainval") else "labels"
        sequences = dict.fromkeys(self.scenes())
        has_labels = any((self.root / "sequences" / sequence / name).is_dir() for sequence in sequences)
        if not has_labels and self.scribbles:
            raise FileNotFoundError(f"no sequence under {self.root} has a folder {name}; fetch ScribbleKITTI's labels")
        return name if has_labels else None

    @cached_property
    def _drives(self) -> dict[str, "Drive"]:
        """The sequences read so far."""
        return {}

    def _drive(self, sequence: str) -> "Drive":
        if sequence not in self._drives:
            self._drives[sequence] = Drive.read(self.root / "sequences" / sequence)
        return self._drives[sequence]

    def _camera(self, name: str, folder: Path, stem: str, drive: "Drive", time: float) -> Camera:
        path = folder / name / f"{stem}.png"
        matrix = projection(folder / "calib.txt", drive.calibration, name)
        return rectified_camera(name, path, matrix, rectified_T_ego(drive.calibration), time, self.scale)


@dataclass(frozen=True)
class Drive:
    """What a sequence knows beside its scans; poses and times are empty where their file is absent."""

    folder: Path
    calibration: dict[str, Tensor]
    cam0_poses: Float[np.ndarray, "n 12"]
    times: Float[np.ndarray, "m 1"]

    @classmethod
    def read(cls, folder: Path) -> "Drive":
        """A sequence's calibration, poses and times."""
        calibration = read_calibration(folder / "calib.txt")
        return cls(folder, calibration, _numbers(folder / "poses.txt", 12), _numbers(folder / "times.txt", 1))

    def time(self, number: int) -> float:
        """Seconds since scan 0; without times.txt scans follow each other at 10 Hz."""
        if not len(self.times):
            return SCAN_PERIOD * number
        return float(self._row(self.times, number, "times.txt")[0])

    def world_T_ego(self, number: int) -> Float[Tensor, "4 4"]:
        """The pose of a scan, from scan 0; without poses.txt the identity."""
        if not len(self.cam0_poses):
            return torch.eye(4, dtype=torch.float64)
        cam0_T_ego = rectified_T_ego(self.calibration)
        first, here = self._matrix(0), self._matrix(number)
        return inverse(cam0_T_ego) @ inverse(first) @ here @ cam0_T_ego

    def _matrix(self, number: int) -> Tensor:
        row = torch.from_numpy(self._row(self.cam0_poses, number, "poses.txt").reshape(3, 4).copy())
        return torch.cat([row, row.new_tensor([[0.0, 0.0, 0.0, 1.0]])])

    def _row(self, table: np.ndarray, number: int, name: str) -> np.ndarray:
        if number >= len(table):
            raise ValueError(
                f"{self.folder / name} has {len(table)} lines but there is a scan {number:06d}; fetch it again"
            )
        return table[number]


def merged(scans: list[Points], here_T_then: list[Float[Tensor, "4 4"]], ages: list[float]) -> Points:
    """Scans, newest first, moved into the first one's frame, each with its age and its origin."""

    def column(name: str) -> Tensor | None:
        known = [getattr(scan, name) for scan in scans]
        return None if known[0] is None else torch.cat(known)

    counts = torch.tensor([len(scan) for scan in scans])
    # The scan itself is where it was, to the last digit.
    moved = [transform(T, scan.xyz_ego.double()).float() for T, scan in zip(here_T_then[1:], scans[1:], strict=True)]
    return Points(
        xyz_ego=torch.cat([scans[0].xyz_ego, *moved]),
        intensity=torch.cat([scan.intensity for scan in scans]),
        age=torch.tensor(ages, dtype=torch.float32).repeat_interleave(counts),
        origin=torch.arange(len(scans)).repeat_interleave(counts),
        labels=column("labels"),
        instances=column("instances"),
    )


def read_point_labels(path: Path, points: int, moving: bool) -> tuple[Int[Tensor, "p"], Int[Tensor, "p"]]:
    """Labels and track ids of a scan; a track is a class and its 16-bit instance, UNKNOWN where that is 0."""
    words = torch.from_numpy(read_labels(path, "<u4", points))
    labels, instance = label_table(moving)[words & 0xFFFF], words >> 16
    merged = label_table(False)[words & 0xFFFF]
    return labels, torch.where(instance > 0, (instance << 8) + merged + 1, UNKNOWN)


def _numbers(path: Path, columns: int) -> np.ndarray:
    if not path.is_file():
        return np.zeros((0, columns))
    try:
        return np.loadtxt(path, dtype=np.float64, ndmin=2).reshape(-1, columns)
    except ValueError as problem:
        raise ValueError(f"{path} is no table of {columns} numbers a line ({problem}); fetch it again") from problem
