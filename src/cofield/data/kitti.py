"""KITTI, as its object benchmark is laid out: <root>/training/{velodyne,image_2,calib,label_2}.

Ego is the LiDAR's frame lowered to the road (0, 0, 1.73). Boxes come from the rectified camera frame,
where their position is the middle of the bottom face; here they are upright in the ego frame.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cofield.classes import KITTI, UNKNOWN
from cofield.data.files import read_image, read_points, scaled
from cofield.frame import Boxes, Camera, Frame, Points
from cofield.geometry import inverse, pose, rotate, transform

LIDAR_HEIGHT = 1.73
SCAN_PERIOD = 0.1
DONT_CARE = "DontCare"
_LABEL_FIELDS = 15
_CALLED = {
    "R_rect": "R0_rect",
    "Tr_velo_cam": "Tr_velo_to_cam",
    "Tr": "Tr_velo_to_cam",
    "Tr_imu_velo": "Tr_imu_to_velo",
}


@dataclass(frozen=True)
class Kitti:
    """The frames that <root>/ImageSets/<split>.txt lists, or, without that file, every frame with a scan.

    `DontCare` regions are boxes without a class: label UNKNOWN, size 0, position NaN, and a `box2d`.

    Args:
        split: train, val, trainval or test; test is in <root>/testing and has no labels.
        cameras: of image_2 (left colour) and image_3 (right).
        sequence: the frames follow each other at 10 Hz, as in a raw drive; else each is a scene of its own.
            Either way there are no poses, so every `world_T_ego` is the identity.
        scale: of the images, 0..1.
    """

    root: Path
    split: str = "train"
    cameras: tuple[str, ...] = ("image_2",)
    sequence: bool = False
    scale: float = 1.0

    name = "kitti"
    box_classes = KITTI
    point_classes = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        if not (self.folder / "velodyne").is_dir():
            raise FileNotFoundError(f"{self.folder / 'velodyne'} is missing; the root of KITTI holds training/velodyne")

    @property
    def folder(self) -> Path:
        """Where the split's files are."""
        return self.root / ("testing" if self.split == "test" else "training")

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The names of the frames, in order."""
        listing = self.root / "ImageSets" / f"{self.split}.txt"
        if listing.is_file():
            return tuple(sorted(listing.read_text().split()))
        if self.split not in ("trainval", "test"):
            raise FileNotFoundError(
                f"{listing} is missing; it lists the frames of the split, one name a line. "
                "Without one there are the splits trainval and test"
            )
        return tuple(sorted(path.stem for path in (self.folder / "velodyne").glob("*.bin")))

    def __len__(self) -> int:
        return len(self.tokens)

    def scenes(self) -> list[str]:
        """The scene of every frame."""
        return [self.root.name] * len(self) if self.sequence else list(self.tokens)

    def __getitem__(self, index: int) -> Frame:
        token = self.tokens[index]
        time = SCAN_PERIOD * range(len(self))[index] if self.sequence else 0.0
        calibration = read_calibration(self.folder / "calib" / f"{token}.txt")
        cam0_T_ego = rectified_T_ego(calibration)
        return Frame(
            token=token,
            scene=self.root.name if self.sequence else token,
            time=time,
            world_T_ego=torch.eye(4, dtype=torch.float64),
            cameras=tuple(self._camera(name, token, calibration, cam0_T_ego, time) for name in self.cameras),
            points=velodyne_points(self.folder / "velodyne" / f"{token}.bin"),
            origins_ego=torch.tensor([[0.0, 0.0, LIDAR_HEIGHT]]),
            boxes=self._boxes(token, inverse(cam0_T_ego)),
        )

    def files(self, index: int) -> list[Path]:
        """The files that a frame is read from."""
        token = self.tokens[index]
        names = [f"velodyne/{token}.bin", f"calib/{token}.txt"]
        labels = [self.folder / "label_2" / f"{token}.txt"] if self._has_labels else []
        return [self.folder / name for name in names] + [self._image(name, token) for name in self.cameras] + labels

    def _image(self, name: str, token: str) -> Path:
        found = [self.folder / name / f"{token}{ending}" for ending in (".png", ".jpg")]
        return next((path for path in found if path.is_file()), found[0])

    def _camera(self, name: str, token: str, calibration: dict[str, Tensor], cam0_T_ego: Tensor, time: float) -> Camera:
        matrix = projection(self.folder / "calib" / f"{token}.txt", calibration, name)
        return rectified_camera(name, self._image(name, token), matrix, cam0_T_ego, time, self.scale)

    @property
    def _has_labels(self) -> bool:
        return self.split != "test" and (self.folder / "label_2").is_dir()

    def _boxes(self, token: str, ego_T_cam0: Tensor) -> Boxes | None:
        return read_boxes(self.folder / "label_2" / f"{token}.txt", ego_T_cam0) if self._has_labels else None


def velodyne_points(path: Path) -> Points:
    """A scan of x, y, z, reflectance in the ego frame."""
    table = torch.from_numpy(read_points(path, 4))
    zero = torch.zeros(len(table))
    return Points(
        xyz_ego=table[:, :3] + torch.tensor([0.0, 0.0, LIDAR_HEIGHT]),
        intensity=table[:, 3].clamp(0, 1),
        age=zero,
        origin=zero.long(),
    )


def read_calibration(path: Path) -> dict[str, Float[Tensor, "rows columns"]]:
    """The matrices of a KITTI calibration file: 3×3 for R0_rect, else 3×4, in double precision.

    What the tracking and odometry benchmarks call otherwise has the object benchmark's name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; fetch the calibration files of the data set")
    matrices = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        # Some lines of the tracking benchmark have no colon.
        name, *numbers = line.replace(":", " ", 1).split() or [""]
        try:
            values = torch.tensor([float(value) for value in numbers], dtype=torch.float64)
        except ValueError as problem:
            raise ValueError(f"{path}, line {number}: {problem}; fetch the file again") from problem
        if len(values) in (9, 12):
            matrices[_CALLED.get(name, name)] = values.view(3, -1)
    if "Tr_velo_to_cam" not in matrices:
        raise ValueError(f"{path} has no Tr_velo_to_cam or Tr (it has {', '.join(matrices)}); fetch the file again")
    try:
        rectified_T_ego(matrices)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}; fetch the file again") from problem
    return matrices


def projection(path: Path, calibration: dict[str, Tensor], camera: str) -> Float[Tensor, "3 4"]:
    """The matrix of a camera such as image_2 or image_02, from the calibration in a file."""
    name = f"P{camera[-1]}"
    if name not in calibration:
        raise ValueError(f"{path} has no {name}; fetch the file again, or leave out {camera}")
    return calibration[name]


def rectified_T_ego(calibration: dict[str, Tensor]) -> Float[Tensor, "4 4"]:
    """Ego to the rectified frame of camera 0, a rotation to the last digit although the files round."""
    velo_T_ego = pose(torch.eye(3, dtype=torch.float64), torch.tensor([0.0, 0.0, -LIDAR_HEIGHT], dtype=torch.float64))
    tr = calibration["Tr_velo_to_cam"]
    rectify = calibration.get("R0_rect", torch.eye(3, dtype=torch.float64))
    rotation, translation = rectify @ tr[:, :3], rectify @ tr[:, 3]
    return pose(nearest_rotation(rotation), translation) @ velo_T_ego


def nearest_rotation(matrix: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
    """The orthonormal matrix nearest to one that was rounded."""
    left, scale, right = torch.linalg.svd(matrix)
    if (scale - 1).abs().max() > 1e-3 or torch.linalg.det(matrix) < 0:
        raise ValueError(f"no rotation: {matrix.tolist()}")
    return left @ right


def rectified_camera(
    name: str, path: Path, matrix: Float[Tensor, "3 4"], cam0_T_ego: Tensor, time: float, scale: float
) -> Camera:
    """A camera whose 3×4 matrix K [I | t] maps the rectified frame of camera 0 to its pixels."""
    image, size = read_image(path, scale)
    intrinsic = matrix[:, :3]
    shift = pose(torch.eye(3, dtype=torch.float64), torch.linalg.solve(intrinsic, matrix[:, 3]))
    pix_T_cam = pose(intrinsic, torch.zeros(3, dtype=torch.float64))
    return Camera(name, image, scaled(pix_T_cam, size, image).float(), (shift @ cam0_T_ego).float(), time)


def read_boxes(path: Path, ego_T_cam0: Float[Tensor, "4 4"]) -> Boxes:
    """The labels of one frame; a 16th column is a score."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; fetch the labels of the data set")
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    for number, row in enumerate(rows, 1):
        check_label(path, number, row)
    return boxes_of_labels(rows, ego_T_cam0)


def check_label(path: Path, number: int, row: list[str]) -> None:
    """Refuse a line that is none of a label file."""
    try:
        numeric = [float(value) for value in row[1:]]
    except ValueError:
        numeric = []
    known = bool(row) and (row[0] in KITTI.names or row[0] == DONT_CARE)
    if not known or len(numeric) not in (_LABEL_FIELDS - 1, _LABEL_FIELDS):
        raise ValueError(f"{path}, line {number}: {' '.join(row)!r} is no KITTI label; fetch the file again")


def boxes_of_labels(rows: list[list[str]], ego_T_cam0: Float[Tensor, "4 4"]) -> Boxes:
    """The fields of some labels as boxes; a 16th is a score."""
    numbers = np.array([[float(value) for value in row[1:_LABEL_FIELDS]] for row in rows]).reshape(-1, 14)
    values = torch.from_numpy(numbers)
    scores = [float(row[_LABEL_FIELDS]) for row in rows if len(row) > _LABEL_FIELDS]
    known = torch.tensor([row[0] != DONT_CARE for row in rows], dtype=torch.bool)
    height, bottom, turn = values[:, 7], values[:, 10:13], values[:, 13]
    # Camera y points down: the centre is half a height above the bottom. Heading 0 is along camera x.
    centre = bottom - torch.stack([0 * height, height / 2, 0 * height], -1)
    heading = rotate(ego_T_cam0, torch.stack([turn.cos(), 0 * turn, -turn.sin()], -1))
    nothing = torch.where(known, 0.0, torch.nan)
    return Boxes(
        centre=(transform(ego_T_cam0, centre) + nothing[:, None]).float(),
        size=torch.where(known[:, None], values[:, [9, 8, 7]], 0.0).float(),
        yaw=(torch.atan2(heading[:, 1], heading[:, 0]) + nothing).float(),
        velocity=torch.full((len(rows), 2), torch.nan),
        label=torch.tensor([KITTI.index(row[0]) if row[0] != DONT_CARE else UNKNOWN for row in rows]).long(),
        score=torch.tensor(scores) if scores and len(scores) == len(rows) else None,
        box2d=values[:, 3:7].float(),
        truncation=values[:, 0].float(),
        occlusion=values[:, 1].long(),
    )
