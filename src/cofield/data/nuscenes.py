"""nuScenes, as it is downloaded: <root>/{v1.0-trainval,samples,sweeps,lidarseg,panoptic,maps}.

The frame is the car at the keyframe of LIDAR_TOP; each camera goes through the car's pose at its own
time, as does each earlier sweep.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from torch import Tensor

from cofield.classes import DETECTION, LIDARSEG, UNKNOWN, Classes
from cofield.data.columns import Columns
from cofield.data.files import read_image, read_labels, read_panoptic, read_points, scaled
from cofield.data.nuscenes_index import open_tables
from cofield.data.nuscenes_map import open_map, rasterise
from cofield.frame import Boxes, Camera, Frame, Maps, Points
from cofield.geometry import inverse, pose, rotate, rotation_from_quaternion, transform, wrap_angle
from cofield.grid import BoxGrid

LIDAR = "LIDAR_TOP"
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")

MINI_VAL = (103, 916)
# First and last scene of each run of the official validation split; training has all other scenes.
VAL_RUNS = (
    (3, 3), (12, 18), (35, 36), (38, 39), (92, 110), (221, 221), (268, 278), (329, 332), (344, 346), (519, 524),
    (552, 565), (625, 627), (629, 630), (632, 638), (770, 771), (775, 775), (777, 778), (780, 784), (794, 800),
    (802, 802), (904, 917), (919, 931), (962, 963), (966, 969), (971, 972), (1059, 1073),
)  # fmt: skip


@dataclass(frozen=True)
class NuScenes:
    """The keyframes of a split's scenes.

    Args:
        split: train, val or test, as the official lists say; or a name in <root>/<version>/splits.json,
            which maps names to lists of scenes; or `all`.
        version: the folder of the tables: v1.0-mini, v1.0-trainval or v1.0-test.
        sweeps: how many earlier sweeps to add to the keyframe's, at most; a scene's first frames have fewer.
        close: points of earlier sweeps less than this many metres ahead or aside are the car itself: left out.
        cameras: which, in this order; None for all that the tables name.
        labels: of points: lidarseg, panoptic (with instances) or none; None for the best that the tables name.
        map_grid: where to draw the map layers; None for no map.
        scale: of the images, 0..1.
    """

    root: Path
    split: str = "train"
    version: str = "v1.0-trainval"
    sweeps: int = 0
    close: float = 1.0
    cameras: tuple[str, ...] | None = None
    labels: str | None = None
    map_grid: BoxGrid | None = None
    scale: float = 1.0

    name = "nuscenes"
    box_classes = DETECTION

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        unknown = set(self.cameras or ()) - set(self._channels)
        if unknown:
            raise ValueError(f"no channel {', '.join(sorted(unknown))}; there are {', '.join(self._channels)}")
        if self.labels not in (None, "none") and f"sample.{self.labels}" not in self.tables:
            raise ValueError(f"{self.root / self.version} has no {self.labels}.json; fetch it, or ask for no labels")
        if not len(self):
            raise ValueError(f"{self.root / self.version} has no scene of split {self.split!r}")

    @cached_property
    def tables(self) -> Columns:
        """The joined tables."""
        return open_tables(self.root / self.version)

    @property
    def point_classes(self) -> Classes | None:
        return None if self.label_kind == "none" else LIDARSEG

    @property
    def label_kind(self) -> str:
        """Which point labels are read."""
        if self.labels is not None:
            return self.labels
        return next((kind for kind in ("panoptic", "lidarseg") if f"sample.{kind}" in self.tables), "none")

    def __len__(self) -> int:
        return len(self._samples)

    def scenes(self) -> list[str]:
        """The scene of every frame."""
        names = self.tables["scene.name"]
        return [str(name) for name in names[self.tables["sample.scene"][self._samples]]]

    def __getitem__(self, index: int) -> Frame:
        sample = int(self._samples[index])
        scene = int(self.tables["sample.scene"][sample])
        lidar = self._file(sample, LIDAR)
        world_T_ego = self._world_T_ego([lidar])[0]
        points, origins = self._points(sample, lidar, inverse(world_T_ego))
        return Frame(
            token=str(self.tables["sample.token"][sample]),
            scene=str(self.tables["scene.name"][scene]),
            time=self._seconds(lidar, scene),
            world_T_ego=world_T_ego,
            cameras=self._cameras(sample, scene, world_T_ego),
            points=points,
            origins_ego=origins,
            boxes=self._boxes(sample, inverse(world_T_ego)),
            maps=self._maps(scene, world_T_ego),
        )

    def camera_names(self) -> tuple[str, ...]:
        """The cameras of every frame, in order."""
        if self.cameras is not None:
            return self.cameras
        kinds = zip(self._channels, self.tables["channel.modality"].tolist(), strict=True)
        present = tuple(name for name, kind in kinds if kind == "camera")
        return tuple(sorted(present, key=CAMERAS.index)) if set(present) <= set(CAMERAS) else present

    def lidar_token(self, index: int) -> str:
        """The token of a frame's LiDAR file, after which files of point labels are named."""
        return self.tables["file.token"][self._file(int(self._samples[index]), LIDAR)].tobytes().hex()

    def files(self, index: int) -> list[Path]:
        """The files that a frame is read from."""
        sample = int(self._samples[index])
        rows = [*self._sweeps(self._file(sample, LIDAR)), *(self._file(sample, name) for name in self.camera_names())]
        label = "" if self.label_kind == "none" else str(self.tables[f"sample.{self.label_kind}"][sample])
        return [*map(self._path, rows), *([self.root / label] if label else [])]

    @cached_property
    def _channels(self) -> tuple[str, ...]:
        return tuple(self.tables["channel"].tolist())

    @cached_property
    def _samples(self) -> Int[np.ndarray, "n"]:
        names = self.tables["scene.name"].tolist()
        wanted = scenes_of_split(self.root / self.version, self.split, names)
        return np.flatnonzero(np.isin(self.tables["sample.scene"], [names.index(name) for name in wanted]))

    def _file(self, sample: int, channel: str) -> int:
        row = self._channels.index(channel) if channel in self._channels else None
        file = -1 if row is None else int(self.tables["sample.file"][sample, row])
        if file < 0:
            token = self.tables["sample.token"][sample]
            raise ValueError(
                f"{self.root / self.version / 'sample_data.json'} has no keyframe of {channel} for sample {token}; "
                "leave the channel or the frame out"
            )
        return file

    def _path(self, file: int) -> Path:
        return self.root / self.tables.text("file.name", file)

    def _seconds(self, file: int, scene: int) -> float:
        """Since the scene's first keyframe."""
        first = np.searchsorted(self.tables["sample.scene"], scene)
        return float(self.tables["file.timestamp"][file] - self.tables["sample.timestamp"][first]) * 1e-6

    def _world_T_ego(self, files: list[int]) -> Float[Tensor, "n 4 4"]:
        return _poses(self.tables["file.rotation"][files], self.tables["file.translation"][files])

    def _ego_T_sensor(self, files: list[int]) -> Float[Tensor, "n 4 4"]:
        """The mounting of each file's sensor on the car."""
        rows = self.tables["file.calibration"][files]
        return _poses(self.tables["calibration.rotation"][rows], self.tables["calibration.translation"][rows])

    def _cameras(self, sample: int, scene: int, world_T_ego: Tensor) -> tuple[Camera, ...]:
        names = self.camera_names()
        files = [self._file(sample, name) for name in names]
        if not files:
            return ()
        ego_T_cam = inverse(world_T_ego) @ self._world_T_ego(files) @ self._ego_T_sensor(files)
        return tuple(
            self._camera(name, file, inverse(pose).float(), self._seconds(file, scene))
            for name, file, pose in zip(names, files, ego_T_cam, strict=True)
        )

    def _camera(self, name: str, file: int, cam_T_ego: Tensor, time: float) -> Camera:
        path = self._path(file)
        image, size = read_image(path, self.scale)
        matrix = torch.from_numpy(np.array(self.tables["calibration.intrinsic"][self.tables["file.calibration"][file]]))
        pix_T_cam = pose(matrix, torch.zeros(3, dtype=torch.float64))
        return Camera(name, image, scaled(pix_T_cam, size, image).float(), cam_T_ego, time)

    def _points(self, sample: int, key: int, ego_T_world: Tensor) -> tuple[Points, Tensor]:
        """The keyframe's sweep, labelled, and the earlier ones; and where the LiDAR was at each."""
        files = self._sweeps(key)
        ego_T_lidar = ego_T_world @ self._world_T_ego(files) @ self._ego_T_sensor(files)
        age = (self.tables["file.timestamp"][key] - self.tables["file.timestamp"][files]) * 1e-6
        tables = [read_points(self._path(file), 5) for file in files]
        xyz_ego = np.empty((sum(map(len, tables)), 3), np.float32)
        intensity, ages = np.empty((2, len(xyz_ego)), np.float32)
        origin, end = np.empty(len(xyz_ego), np.int64), 0
        for row, (table, T) in enumerate(zip(tables, ego_T_lidar.numpy(), strict=True)):
            # The keyframe keeps all its points: its labels are in their order.
            start, close = end, self.close if row else 0.0
            end += _place(table, T, close, xyz_ego[start:], intensity[start:])
            ages[start:end], origin[start:end] = age[row], row
        labels, instances = self._labels(sample, len(tables[0]))
        points = Points(
            xyz_ego=torch.from_numpy(xyz_ego[:end]),
            intensity=torch.from_numpy(intensity[:end]),
            age=torch.from_numpy(ages[:end]),
            origin=torch.from_numpy(origin[:end]),
            labels=None if labels is None else _with_unknown(labels, end),
            instances=None if instances is None else _with_unknown(instances, end),
        )
        return points, ego_T_lidar[:, :3, 3].float()

    def _sweeps(self, key: int) -> list[int]:
        """The keyframe and the files before it, newest first."""
        files = [key]
        while len(files) <= self.sweeps and (before := int(self.tables["file.prev"][files[-1]])) >= 0:
            files.append(before)
        return files

    def _labels(self, sample: int, points: int) -> tuple[Tensor | None, Tensor | None]:
        kind = self.label_kind
        if kind == "none":
            return None, None
        name = str(self.tables[f"sample.{kind}"][sample])
        table = torch.from_numpy(self.tables["lidarseg.label"].astype(np.int64))
        if not name:
            nothing = torch.full((points,), UNKNOWN)
            return nothing, nothing if kind == "panoptic" else None
        if kind == "lidarseg":
            return table[torch.from_numpy(read_labels(self.root / name, "u1", points))], None
        values = torch.from_numpy(read_panoptic(self.root / name, points))
        return table[values // 1000], torch.where(values % 1000 > 0, values, UNKNOWN)

    def _boxes(self, sample: int, ego_T_world: Tensor) -> Boxes | None:
        """The labelled boxes; None in a data set without labels."""
        column = self.tables
        if not len(column["box.label"]):
            return None
        start, stop = column["box.offset"][sample : sample + 2]
        rows = start + np.flatnonzero(column["box.label"][start:stop] != UNKNOWN)
        read = {name: torch.from_numpy(np.array(column[f"box.{name}"][rows])) for name in _BOX_COLUMNS}
        ego_R_box = ego_T_world[:3, :3] @ rotation_from_quaternion(read["rotation"])
        velocity = torch.cat([read["velocity"][:, :2], torch.zeros(len(rows), 1, dtype=torch.float64)], -1)
        return Boxes(
            centre=transform(ego_T_world, read["centre"]).float(),
            size=read["size"].float(),
            yaw=wrap_angle(torch.atan2(ego_R_box[:, 1, 0], ego_R_box[:, 0, 0])).float(),
            velocity=rotate(ego_T_world, velocity)[:, :2].float(),
            label=read["label"].long(),
            track=read["track"].long(),
            attribute=read["attribute"].long(),
            num_points=read["points"].long(),
            occlusion=read["occlusion"].long(),
        )

    def _maps(self, scene: int, world_T_ego: Tensor) -> Maps | None:
        if self.map_grid is None:
            return None
        location = str(self.tables["scene.location"][scene])
        if location not in self._vectors:
            self._vectors[location] = open_map(self.root / "maps" / "expansion" / f"{location}.json")
        return rasterise(self._vectors[location], world_T_ego, self.map_grid)

    @cached_property
    def _vectors(self) -> dict[str, Columns]:
        """The maps opened so far."""
        return {}


_BOX_COLUMNS = ("centre", "size", "rotation", "velocity", "label", "track", "attribute", "points", "occlusion")


def scenes_of_split(folder: Path, split: str, names: list[str]) -> list[str]:
    """Those of the scenes in a version's tables that belong to a split."""
    if split == "all":
        return names
    listing = folder / "splits.json"
    if listing.is_file():
        lists = json.loads(listing.read_text())
        if split not in lists:
            raise ValueError(f"{listing} has no split {split!r}; it has {', '.join(lists)}, and there is `all`")
        return [name for name in names if name in set(lists[split])]
    val = {f"scene-{number:04d}" for first, last in VAL_RUNS for number in range(first, last + 1)}
    mini_val = {f"scene-{number:04d}" for number in MINI_VAL}
    match folder.name, split:
        case "v1.0-mini", "val":
            return [name for name in names if name in mini_val]
        case "v1.0-mini", "train":
            return [name for name in names if name not in mini_val]
        case "v1.0-trainval", "val":
            return [name for name in names if name in val]
        case "v1.0-trainval", "train":
            return [name for name in names if name not in val]
        case "v1.0-test", "test":
            return names
    raise ValueError(
        f"{folder.name} has no official split {split!r}; write {listing} as "
        '{"train": ["scene-0001", ...], ...}, or say all'
    )


@njit(cache=True)
@no_type_check
def _place(table, ego_T_lidar, close, xyz_ego, intensity):
    """Fill in the points that are not within `close` metres of the LiDAR along both x and y; their number."""
    count = 0
    for i in range(len(table)):
        x, y, z = table[i, 0], table[i, 1], table[i, 2]
        if abs(x) < close and abs(y) < close:
            continue
        for axis in range(3):
            row = ego_T_lidar[axis]
            xyz_ego[count, axis] = row[0] * x + row[1] * y + row[2] * z + row[3]
        intensity[count] = table[i, 3] / np.float32(255)
        count += 1
    return count


def _with_unknown(labels: Int[Tensor, "k"], count: int) -> Int[Tensor, "p"]:
    """The keyframe's labels, and UNKNOWN for the points after them."""
    return torch.cat([labels, torch.full((count - len(labels),), UNKNOWN)])


def _poses(wxyz: np.ndarray, translation: np.ndarray) -> Float[Tensor, "n 4 4"]:
    rotation = rotation_from_quaternion(torch.from_numpy(np.array(wxyz)))
    return pose(rotation, torch.from_numpy(np.array(translation)))
