"""A source as a nuScenes folder that the official devkit loads: tables, sweeps, point labels and map.

Scenes are moved apart to share one map. A sweep has one time: slices of a spinning LiDAR take that of
their newest. Images are JPEG. Tokens are hashes of what they name.
"""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cofield.classes import ATTRIBUTES, DETECTION, LIDARSEG, UNKNOWN
from cofield.data import Source
from cofield.data.export import (
    SWEEP_PERIOD,
    known,
    point_labels,
    relabelled,
    scene_splits,
    sweep_numbers,
    write_array,
    write_image,
)
from cofield.data.export_map import MapDrawing
from cofield.data.nuscenes import LIDAR
from cofield.frame import Boxes, Frame
from cofield.geometry import inverse, pose, quaternion_from_rotation, transform, yaw_of, yaw_rotation

VERSION = "v1.0-mini"
LOCATION = "boston-seaport"  # the devkit knows four places by name
APART = 1500.0

# The official categories in the order of their lidarseg numbers.
CATEGORIES = (
    "noise", "animal", "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility", "human.pedestrian.police_officer", "human.pedestrian.stroller",
    "human.pedestrian.wheelchair", "movable_object.barrier", "movable_object.debris",
    "movable_object.pushable_pullable", "movable_object.trafficcone", "static_object.bicycle_rack",
    "vehicle.bicycle", "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.car", "vehicle.construction",
    "vehicle.emergency.ambulance", "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer",
    "vehicle.truck", "flat.driveable_surface", "flat.other", "flat.sidewalk", "flat.terrain", "static.manmade",
    "static.other", "static.vegetation", "vehicle.ego",
)  # fmt: skip
# The category that stands for each class of points; the first ten are also those of boxes.
CATEGORY_OF = {
    "barrier": "movable_object.barrier",
    "bicycle": "vehicle.bicycle",
    "bus": "vehicle.bus.rigid",
    "car": "vehicle.car",
    "construction_vehicle": "vehicle.construction",
    "motorcycle": "vehicle.motorcycle",
    "pedestrian": "human.pedestrian.adult",
    "traffic_cone": "movable_object.trafficcone",
    "trailer": "vehicle.trailer",
    "truck": "vehicle.truck",
    "driveable_surface": "flat.driveable_surface",
    "other_flat": "flat.other",
    "sidewalk": "flat.sidewalk",
    "terrain": "flat.terrain",
    "manmade": "static.manmade",
    "vegetation": "static.vegetation",
}
LEVELS = ("v0-40", "v40-60", "v60-80", "v80-100")

# LiDAR x is to the right, y ahead.
EGO_R_LIDAR = torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]], dtype=torch.float64)

Record = dict[str, Any]


def write_nuscenes(source: Source, root: Path, frames: int) -> None:
    """The first frames of a source as version v1.0-mini below `root`."""
    writer = _Writer(source, root)
    for index in range(frames):
        writer.add(source[index])
    writer.finish(source.scenes()[:frames])


class _Writer:
    """Files as they come, tables at the end."""

    def __init__(self, source: Source, root: Path) -> None:
        self.root, self.source = root, source
        self.tables: dict[str, list[Record]] = defaultdict(list)
        self.tokens: set[str] = set()
        self.scenes: dict[str, Tensor] = {}
        self.boxes: dict[tuple[str, int], list[Record]] = defaultdict(list)
        self.instances: dict[tuple[str, int], int] = {}
        self.mounts: dict[tuple[str, str], Tensor] = {}
        self.drawing = MapDrawing()

    def add(self, frame: Frame) -> None:
        """One keyframe with its sweeps, images, labels and boxes."""
        if frame.scene not in self.scenes:
            self._scene(frame)
        moved = self.scenes[frame.scene].clone()
        world_T_ego = moved @ frame.world_T_ego
        stamp = self._stamp(frame.scene, frame.time)
        token = frame.token if _is_token(frame.token) else _token("sample", frame.token)
        scene_token = _token("scene", frame.scene)
        self.tables["sample"].append({"token": token, "timestamp": stamp, "scene_token": scene_token})
        self._lidar(frame, token, world_T_ego)
        for camera in frame.cameras:
            self._camera(frame, camera, token, world_T_ego)
        if frame.boxes is not None and self.source.box_classes is not None:
            boxes = relabelled(frame.boxes.label, self.source.box_classes, DETECTION)
            self._boxes(frame, boxes, token, world_T_ego)
        if frame.maps is not None:
            self.drawing.add(frame.scene, frame.maps, world_T_ego)

    def finish(self, scenes: list[str]) -> None:
        """Link what follows each other, and write the tables."""
        for table in ("sample", "sample_data"):
            _link(self.tables[table], ["scene_token"] if table == "sample" else ["channel", "scene"])
        for scene in self.tables["scene"]:
            samples = [each for each in self.tables["sample"] if each["scene_token"] == scene["token"]]
            samples.sort(key=lambda each: each["timestamp"])
            scene |= {"nbr_samples": len(samples)}
            scene |= {"first_sample_token": samples[0]["token"], "last_sample_token": samples[-1]["token"]}
        self._instances()
        self._names()
        self._map()
        for each in self.tables["sample_data"]:
            del each["channel"], each["scene"]
        folder = self.root / VERSION
        folder.mkdir(parents=True, exist_ok=True)
        required = ("sample_annotation", "instance", "map")
        for name in {*self.tables, *required}:
            (folder / f"{name}.json").write_text(json.dumps(self.tables[name], indent=0))
        (folder / "splits.json").write_text(json.dumps(scene_splits(scenes), indent=1))

    def _scene(self, frame: Frame) -> None:
        number = len(self.scenes)
        shift = torch.eye(4, dtype=torch.float64)
        shift[:2, 3] = torch.tensor([APART * (number + 0.5), APART / 2]).double() - frame.world_T_ego[:2, 3]
        self.scenes[frame.scene] = shift
        logfile = f"cofield-{frame.scene}".replace("/", "-").replace(":", "-")
        log = {"token": _token("log", frame.scene), "logfile": logfile, "vehicle": "cofield"}
        self.tables["log"].append(log | {"date_captured": "2000-01-01", "location": LOCATION})
        scene = {"token": _token("scene", frame.scene), "name": frame.scene, "description": self.source.name}
        self.tables["scene"].append(scene | {"log_token": log["token"]})

    def _stamp(self, scene: str, time: float) -> int:
        """Microseconds; scenes begin 1000 seconds apart."""
        number = list(self.scenes).index(scene)
        return 1_500_000_000_000_000 + number * 1_000_000_000 + round(time * 1e6)

    def _lidar(self, frame: Frame, sample: str, world_T_ego: Tensor) -> None:
        number = sweep_numbers(frame)
        labels = point_labels(frame, self.source.point_classes, LIDARSEG)
        mount = pose(EGO_R_LIDAR, frame.origins_ego[self._newest(frame, number == 0)].double())
        for sweep in number.unique().tolist():
            which = number == sweep
            newest = self._newest(frame, which)
            age = frame.points.age[which].min().item()
            # The car turned as in the keyframe and moved so that its LiDAR was where the sweep's was.
            at = pose(torch.eye(3).double(), frame.origins_ego[newest].double() - mount[:3, 3])
            stamp = self._stamp(frame.scene, frame.time - age)
            if sweep and self._near(frame.scene, stamp):
                continue
            data = self._data(frame.scene, LIDAR, "lidar", stamp, sample, not sweep, world_T_ego @ at, mount, [])
            xyz = transform(inverse(at @ mount), frame.points.xyz_ego[which].double()).float()
            columns = [xyz, frame.points.intensity[which, None] * 255, torch.zeros(len(xyz), 1)]
            write_array(self.root / data["filename"], torch.cat(columns, -1).numpy())
            if not sweep and labels is not None:
                tracks = frame.points.instances
                self._point_labels(frame.scene, data, labels[which], None if tracks is None else tracks[which])

    def _newest(self, frame: Frame, which: Tensor) -> int:
        """The row of `origins_ego` from which the newest of the points came."""
        if not which.any():
            raise ValueError(f"frame {frame.token} has no points of age 0; nuScenes needs a keyframe sweep")
        rows = which.nonzero()[:, 0]
        return int(frame.points.origin[rows[frame.points.age[rows].argmin()]])

    def _near(self, scene: str, stamp: int) -> bool:
        """Whether the scene has a sweep of about that time already."""
        stamps = [each["timestamp"] for each in self.tables["sample_data"] if each["scene"] == scene]
        return any(abs(each - stamp) < SWEEP_PERIOD * 1e6 / 4 for each in stamps)

    def _camera(self, frame: Frame, camera: Any, sample: str, world_T_ego: Tensor) -> None:
        channel = camera.name if camera.name.startswith("CAM_") else f"CAM_{camera.name.upper()}"
        ego_T_cam = inverse(camera.cam_T_ego.double())
        # One mounting a scene, as on a real car: how the car moved until the exposure goes into its pose.
        mount = self.mounts.setdefault((frame.scene, channel), ego_T_cam)
        world_T_then = world_T_ego @ ego_T_cam @ inverse(mount)
        stamp = self._stamp(frame.scene, camera.time)
        matrix = camera.pix_T_cam[:3, :3].double().tolist()
        data = self._data(frame.scene, channel, "camera", stamp, sample, True, world_T_then, mount, matrix)
        data |= {"height": camera.image.shape[-2], "width": camera.image.shape[-1]}
        write_image(self.root / data["filename"], camera.image)

    def _data(
        self, scene: str, channel: str, modality: str, stamp: int, sample: str, key: bool,
        world_T_then: Tensor, mount: Tensor, matrix: list,
    ) -> Record:  # fmt: skip
        """A record of sample_data, with its pose, calibration and sensor."""
        sensor = self._once("sensor", (channel,), {"channel": channel, "modality": modality})
        calibration = {"sensor_token": sensor, **_placed(mount), "camera_intrinsic": matrix}
        calibrated = self._once("calibrated_sensor", (scene, json.dumps(calibration)), calibration)
        token = _token("sample_data", scene, channel, stamp)
        ego_pose = self._once("ego_pose", (token,), {"timestamp": stamp, **_placed(world_T_then)})
        logfile = self.tables["log"][list(self.scenes).index(scene)]["logfile"]
        ending = {"lidar": "pcd.bin", "camera": "jpg"}[modality]
        record = {
            "token": token,
            "sample_token": sample,
            "ego_pose_token": ego_pose,
            "calibrated_sensor_token": calibrated,
            "timestamp": stamp,
            "fileformat": ending.partition(".")[0],
            "is_key_frame": key,
            "height": 0,
            "width": 0,
            "filename": f"{'samples' if key else 'sweeps'}/{channel}/{logfile}__{channel}__{stamp}.{ending}",
            "channel": channel,
            "scene": scene,
        }
        self.tables["sample_data"].append(record)
        return record

    def _once(self, table: str, keys: tuple, record: Record) -> str:
        token = _token(table, *keys)
        if token not in self.tokens:
            self.tokens.add(token)
            self.tables[table].append({"token": token, **record})
        return token

    def _point_labels(self, scene: str, data: Record, labels: Tensor, tracks: Tensor | None) -> None:
        numbers = [CATEGORIES.index(CATEGORY_OF[name]) for name in LIDARSEG.names]
        category = torch.tensor([*numbers, 0])[labels]
        self._label_file("lidarseg", "bin", data, category.byte().numpy())
        if tracks is not None:
            instance = torch.zeros_like(tracks)
            for track in tracks[known(tracks)].unique().tolist():
                instance[tracks == track] = 1 + self.instances.setdefault((scene, track), len(self.instances)) % 999
            self._label_file("panoptic", "npz", data, (category * 1000 + instance).numpy().astype(np.uint16))

    def _label_file(self, kind: str, ending: str, data: Record, labels: np.ndarray) -> None:
        name = f"{kind}/{VERSION}/{data['token']}_{kind}.{ending}"
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        if ending == "npz":
            np.savez_compressed(self.root / name, data=labels)
        else:
            labels.tofile(self.root / name)
        self.tables[kind].append({"token": data["token"], "sample_data_token": data["token"], "filename": name})

    def _boxes(self, frame: Frame, label: Tensor, sample: str, world_T_ego: Tensor) -> None:
        boxes = frame.boxes
        if boxes is None:
            return
        counts = boxes.num_points
        if counts is None:
            counts = boxes.contains(frame.points.xyz_ego[sweep_numbers(frame) == 0]).sum(1)
        centre = transform(world_T_ego, boxes.centre.double())
        yaw = boxes.yaw.double() + yaw_of(world_T_ego[:3, :3])
        rotation = quaternion_from_rotation(yaw_rotation(yaw))
        for i in known(label).nonzero()[:, 0].tolist():
            track = int(boxes.track[i]) if boxes.track is not None else -1 - i - 10_000 * len(self.tables["sample"])
            key = (frame.scene, track)
            length, width, height = boxes.size[i].tolist()
            self.boxes[key].append({
                "token": _token("annotation", *key, sample),
                "sample_token": sample,
                "instance_token": _token("instance", *key),
                "visibility_token": str(4 - _clamped(boxes, i)),
                "attribute_tokens": _attributes(boxes, i),
                "translation": centre[i].tolist(),
                "size": [width, length, height],
                "rotation": rotation[i].tolist(),
                "num_lidar_pts": int(counts[i]),
                "num_radar_pts": 0,
                "category": CATEGORY_OF[DETECTION.names[int(label[i])]],
            })  # fmt: skip

    def _instances(self) -> None:
        """Each object's labels in order of time."""
        for labels in self.boxes.values():
            for label, before, after in zip(labels, [None, *labels], [*labels[1:], None], strict=False):
                label |= {"prev": before["token"] if before else "", "next": after["token"] if after else ""}
            self.tables["instance"].append({
                "token": labels[0]["instance_token"],
                "category_token": _token("category", labels[0]["category"]),
                "nbr_annotations": len(labels),
                "first_annotation_token": labels[0]["token"],
                "last_annotation_token": labels[-1]["token"],
            })  # fmt: skip
            for label in labels:
                del label["category"]
            self.tables["sample_annotation"] += labels

    def _names(self) -> None:
        for i, name in enumerate(CATEGORIES):
            record = {"token": _token("category", name), "name": name, "description": "", "index": i}
            self.tables["category"].append(record)
        for name in ATTRIBUTES.names:
            self.tables["attribute"].append({"token": _token("attribute", name), "name": name, "description": ""})
        for i, level in enumerate(LEVELS):
            self.tables["visibility"].append({"token": str(i + 1), "level": level, "description": ""})

    def _map(self) -> None:
        token = _token("map", LOCATION)
        record = {"category": "semantic_prior", "token": token, "filename": f"maps/{token}.png"}
        self.tables["map"].append(record | {"log_tokens": [each["token"] for each in self.tables["log"]]})
        folder = self.root / "maps" / "expansion"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (10, 10)).save(self.root / "maps" / f"{token}.png")
        if self.drawing.scenes:
            tables = self.drawing.tables((APART * len(self.scenes), APART))
            (folder / f"{LOCATION}.json").write_text(json.dumps(tables))


def _token(*keys: object) -> str:
    return hashlib.blake2b("\x1f".join(map(str, keys)).encode(), digest_size=16).hexdigest()


def _is_token(text: str) -> bool:
    return len(text) == 32 and all(letter in "0123456789abcdef" for letter in text)


def _placed(a_T_b: Tensor) -> Record:
    return {"translation": a_T_b[:3, 3].tolist(), "rotation": quaternion_from_rotation(a_T_b[:3, :3]).tolist()}


def _clamped(boxes: Boxes, i: int) -> int:
    return 0 if boxes.occlusion is None else min(max(int(boxes.occlusion[i]), 0), 3)


def _attributes(boxes: Boxes, i: int) -> list[str]:
    if boxes.attribute is None or int(boxes.attribute[i]) == UNKNOWN:
        return []
    return [_token("attribute", ATTRIBUTES.names[int(boxes.attribute[i])])]


def _link(records: list[Record], by: list[str]) -> None:
    """Tell each record who is before and after it among those that agree in `by`."""
    chains: dict[tuple, list[Record]] = defaultdict(list)
    for record in records:
        chains[tuple(record[name] for name in by)].append(record)
    for chain in chains.values():
        chain.sort(key=lambda each: each["timestamp"])
        for record, before, after in zip(chain, [None, *chain], [*chain[1:], None], strict=False):
            record |= {"prev": before["token"] if before else "", "next": after["token"] if after else ""}
