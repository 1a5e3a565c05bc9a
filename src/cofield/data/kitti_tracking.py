"""KITTI's tracking sequences: <root>/training/{velodyne,image_02}/NNNN/FFFFFF.*, {calib,label_02,oxts}/NNNN.txt.

Ego as in the object benchmark; the world is the ego frame of the sequence's frame 0, from the car's own
navigation (oxts). Boxes carry their track.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cofield.classes import KITTI
from cofield.data.kitti import (
    LIDAR_HEIGHT,
    SCAN_PERIOD,
    boxes_of_labels,
    check_label,
    nearest_rotation,
    projection,
    read_calibration,
    rectified_camera,
    rectified_T_ego,
    velodyne_points,
)
from cofield.frame import Boxes, Camera, Frame
from cofield.geometry import inverse, pose

# The sequences that publications hold out; the benchmark itself names none.
VAL = (1, 6, 8, 10, 12, 13, 14, 15, 16, 18, 19)
EARTH = 6378137.0  # metres: the radius that the data set's own tools use

_SITTING = {"Person": "Person_sitting"}  # as this benchmark calls them


@dataclass(frozen=True)
class KittiTracking:
    """The scans of a split's sequences, as far as they are on disk.

    Args:
        split: train, val, trainval, test (in <root>/testing, without labels), or the number of one sequence.
        cameras: of image_02 (left colour) and image_03 (right).
        scale: of the images, 0..1.
    """

    root: Path
    split: str = "train"
    cameras: tuple[str, ...] = ("image_02",)
    scale: float = 1.0

    name = "kitti-tracking"
    box_classes = KITTI
    point_classes = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        if self.split not in ("train", "val", "trainval", "test") and not self.split.isdigit():
            raise ValueError(f"split is one of train, val, trainval, test or a sequence's number, got {self.split!r}")
        if not self._scans:
            raise FileNotFoundError(
                f"{self.folder / 'velodyne'} has no scans of split {self.split!r}; it holds one folder a sequence: "
                "velodyne/0000/000000.bin"
            )

    @property
    def folder(self) -> Path:
        """Where the split's files are."""
        return self.root / ("testing" if self.split == "test" else "training")

    def __len__(self) -> int:
        return len(self._scans)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The names of the frames, in order: SEQUENCE/NUMBER."""
        return tuple(f"{sequence}/{stem}" for sequence, stem in self._scans)

    def scenes(self) -> list[str]:
        """The sequence of every frame."""
        return [sequence for sequence, _ in self._scans]

    def files(self, index: int) -> list[Path]:
        """The files that a frame is read from."""
        sequence, stem = self._scans[index]
        names = [f"velodyne/{sequence}/{stem}.bin", f"calib/{sequence}.txt"]
        names += [f"{camera}/{sequence}/{stem}.png" for camera in self.cameras]
        names += [f"label_02/{sequence}.txt"] if self._has_labels else []
        return [self.folder / name for name in names]

    def __getitem__(self, index: int) -> Frame:
        sequence, stem = self._scans[index]
        drive, number = self._drive(sequence), int(stem)
        cam0_T_ego, time = rectified_T_ego(drive.calibration), SCAN_PERIOD * number
        cameras = [self._camera(name, sequence, stem, drive, time) for name in self.cameras]
        return Frame(
            token=f"{sequence}/{stem}",
            scene=sequence,
            time=time,
            world_T_ego=drive.world_T_ego(number),
            cameras=tuple(cameras),
            points=velodyne_points(self.folder / "velodyne" / sequence / f"{stem}.bin"),
            origins_ego=torch.tensor([[0.0, 0.0, LIDAR_HEIGHT]]),
            boxes=drive.boxes(number, inverse(cam0_T_ego)) if self._has_labels else None,
        )

    def labels(self, a_T_cam0: Float[Tensor, "4 4"]) -> dict[str, Boxes]:
        """The boxes of every frame by its token, in a frame given by the rectified camera's pose in it."""
        if not self._has_labels:
            raise ValueError(
                f"split {self.split!r} of {self.root} has no labels; label_02 has those of the training folder"
            )
        found = {}
        for token, (sequence, stem) in zip(self.tokens, self._scans, strict=True):
            found[token] = self._drive(sequence).boxes(int(stem), a_T_cam0)
        return found

    @cached_property
    def _scans(self) -> tuple[tuple[str, str], ...]:
        folders = sorted(path for path in (self.folder / "velodyne").glob("[0-9]*") if path.is_dir())
        wanted = [path for path in folders if self._is_wanted(int(path.name))]
        return tuple((path.name, scan.stem) for path in wanted for scan in sorted(path.glob("*.bin")))

    def _is_wanted(self, number: int) -> bool:
        match self.split:
            case "train":
                return number not in VAL
            case "val":
                return number in VAL
            case "trainval" | "test":
                return True
            case _:
                return number == int(self.split)

    @property
    def _has_labels(self) -> bool:
        return self.split != "test" and (self.folder / "label_02").is_dir()

    @cached_property
    def _drives(self) -> dict[str, "Drive"]:
        """The sequences read so far."""
        return {}

    def _drive(self, sequence: str) -> "Drive":
        if sequence not in self._drives:
            self._drives[sequence] = Drive.read(self.folder, sequence, self._has_labels)
        return self._drives[sequence]

    def _camera(self, name: str, sequence: str, stem: str, drive: "Drive", time: float) -> Camera:
        matrix = projection(self.folder / "calib" / f"{sequence}.txt", drive.calibration, name)
        path = self.folder / name / sequence / f"{stem}.png"
        return rectified_camera(name, path, matrix, rectified_T_ego(drive.calibration), time, self.scale)


@dataclass(frozen=True)
class Drive:
    """What a sequence knows beside its scans and images.

    Args:
        world_T_imu: a pose a frame, from the first place; none where there is no oxts file.
        labels: lines of the label file by frame, each with its track.
    """

    navigation: Path
    calibration: dict[str, Tensor]
    world_T_imu: Float[Tensor, "n 4 4"]
    labels: dict[int, list[tuple[int, list[str]]]]

    @classmethod
    def read(cls, folder: Path, sequence: str, has_labels: bool) -> "Drive":
        """A sequence's calibration, poses and labels."""
        navigation = folder / "oxts" / f"{sequence}.txt"
        labels = _labels(folder / "label_02" / f"{sequence}.txt") if has_labels else {}
        return cls(navigation, read_calibration(folder / "calib" / f"{sequence}.txt"), read_poses(navigation), labels)

    def world_T_ego(self, number: int) -> Float[Tensor, "4 4"]:
        """The pose of a frame, from frame 0; without an oxts file the identity."""
        if not len(self.world_T_imu):
            return torch.eye(4, dtype=torch.float64)
        if number >= len(self.world_T_imu):
            raise ValueError(
                f"{self.navigation} has {len(self.world_T_imu)} lines but there is a frame {number:06d}; fetch it again"
            )
        velo_T_imu = self.calibration.get("Tr_imu_to_velo")
        if velo_T_imu is None:
            raise ValueError(f"{self.navigation} needs Tr_imu_velo in the calibration, which has none; fetch it again")
        lowered = torch.tensor([0.0, 0.0, LIDAR_HEIGHT], dtype=torch.float64)
        ego_T_imu = pose(nearest_rotation(velo_T_imu[:, :3]), velo_T_imu[:, 3] + lowered)
        return ego_T_imu @ inverse(self.world_T_imu[0]) @ self.world_T_imu[number] @ inverse(ego_T_imu)

    def boxes(self, number: int, ego_T_cam0: Float[Tensor, "4 4"]) -> Boxes:
        """The labels of a frame."""
        labels = self.labels.get(number, [])
        boxes = boxes_of_labels([row for _, row in labels], ego_T_cam0)
        return replace(boxes, track=torch.tensor([track for track, _ in labels], dtype=torch.long))


def read_poses(path: Path) -> Float[Tensor, "n 4 4"]:
    """The navigation unit's pose in each line of an oxts file, in metres on a Mercator map from the first place.

    Without a file there are none. A line begins with latitude, longitude (degrees), altitude, roll, pitch and yaw
    (from east, counter-clockwise).
    """
    if not path.is_file():
        return torch.zeros(0, 4, 4, dtype=torch.float64)
    try:
        rows = np.loadtxt(path, dtype=np.float64, ndmin=2)[:, :6]
    except (ValueError, IndexError) as problem:
        raise ValueError(f"{path} is no table of numbers ({problem}); fetch it again") from problem
    if rows.shape[1] < 6 or not np.isfinite(rows).all():
        raise ValueError(f"{path} has lines without six finite numbers; fetch it again")
    latitude, longitude, altitude, roll, pitch, yaw = torch.from_numpy(rows).unbind(-1)
    # The map is true to scale at the first frame's latitude.
    scale = EARTH * torch.cos(torch.deg2rad(latitude[0]))
    east = scale * torch.deg2rad(longitude)
    north = scale * torch.log(torch.tan(torch.deg2rad(45 + latitude / 2)))
    turn = _turn(yaw, 0, 1) @ _turn(pitch, 2, 0) @ _turn(roll, 1, 2)
    place = torch.stack([east, north, altitude], -1)
    return pose(turn, place - place[0])


def _turn(angle: Float[Tensor, "n"], first: int, second: int) -> Float[Tensor, "n 3 3"]:
    """Rotations that turn one axis towards another."""
    matrix = torch.eye(3, dtype=angle.dtype).repeat(len(angle), 1, 1)
    matrix[:, first, first] = matrix[:, second, second] = angle.cos()
    matrix[:, second, first], matrix[:, first, second] = angle.sin(), -angle.sin()
    return matrix


def _labels(path: Path) -> dict[int, list[tuple[int, list[str]]]]:
    """By frame, the track and the fields of each of a file's labels."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; fetch the labels of the data set")
    labels: dict[int, list[tuple[int, list[str]]]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            frame, track = int(words[0]), int(words[1])
        except (ValueError, IndexError) as problem:
            raise ValueError(f"{path}, line {number}: {line!r} is no KITTI label; fetch the file again") from problem
        row = [_SITTING.get(words[2], words[2]) if len(words) > 2 else "", *words[3:]]
        check_label(path, number, row)
        labels.setdefault(frame, []).append((track, row))
    return labels
