"""The nuScenes tables joined by row number: opened in milliseconds, shared by all workers.

A reference becomes a row number, and what is derived is derived once: samples in the order of scene and
time, boxes by sample, velocities, poses beside the files that they belong to.
"""

from pathlib import Path

import numpy as np

from cofield.classes import ATTRIBUTES, DETECTION, LIDARSEG, UNKNOWN, Classes
from cofield.data.columns import Columns, open_columns
from cofield.data.tables import Table, token_pairs

# The official categories of each class; any other category (an animal, debris, a stroller) is of no class.
DETECTION_NAMES = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
LIDARSEG_NAMES = DETECTION_NAMES | {
    "flat.driveable_surface": "driveable_surface",
    "flat.other": "other_flat",
    "flat.sidewalk": "sidewalk",
    "flat.terrain": "terrain",
    "static.manmade": "manmade",
    "static.vegetation": "vegetation",
}

RACK = "static_object.bicycle_rack"  # of no class, but what stands in one is not evaluated

_REQUIRED = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)
_LABEL_TABLES = ("lidarseg", "panoptic")
_LONGEST_STEP = 1.5  # seconds between two labels of an object that still make a velocity, as in the devkit


def open_tables(folder: Path) -> Columns:
    """The tables in <root>/<version>, indexed on first use."""
    if not folder.is_dir():
        versions = sorted(path.parent.name for path in folder.parent.glob("*/sample_data.json"))
        raise ValueError(
            f"{folder} is missing: {folder.parent} has the versions {', '.join(versions) or 'none'}; "
            "name one of them, or check the root"
        )
    missing = [f"{name}.json" for name in _REQUIRED if not (folder / f"{name}.json").is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} has no {', '.join(missing)}; fetch the metadata of this version again")
    names = [*_REQUIRED, *(name for name in _LABEL_TABLES if (folder / f"{name}.json").is_file())]
    return open_columns("tables", folder, [folder / f"{name}.json" for name in names], lambda: _build(folder))


def _build(folder: Path) -> dict[str, np.ndarray]:
    category = Table(folder, "category", {"token": "token", "name": "list"})
    scenes, scene_table = _scenes(folder)
    samples, sample_table, place = _samples(folder, scene_table)
    columns = scenes | samples | _calibrations(folder)
    data, data_table = _sample_data(folder, sample_table, place, columns)
    columns |= data
    for name in _LABEL_TABLES:
        if (folder / f"{name}.json").is_file():
            columns |= _label_files(folder, name, data_table, columns)
    del data_table
    if any(f"sample.{name}" in columns for name in _LABEL_TABLES):
        columns["lidarseg.label"] = _label_numbers(folder)
    return columns | _boxes(folder, sample_table, place, category)


def _scenes(folder: Path) -> tuple[dict[str, np.ndarray], Table]:
    log = Table(folder, "log", {"token": "token", "location": "list"})
    scene = Table(folder, "scene", {"token": "token", "name": "list", "log_token": "token"})
    locations = [log["location"][row] for row in scene.rows_of("log_token", log)]
    return {"scene.name": np.array(scene["name"], str), "scene.location": np.array(locations, str)}, scene


def _samples(folder: Path, scene: Table) -> tuple[dict[str, np.ndarray], Table, np.ndarray]:
    """The samples in the order of scene and time, their table, and each record's place in that order."""
    sample = Table(folder, "sample", {"token": "list", "timestamp": "int", "scene_token": "token"})
    texts = np.array(sample.pop("token"), str)
    sample.columns["token"] = token_pairs(texts.tolist())
    scene_row = sample.rows_of("scene_token", scene)
    order = np.lexsort((sample["timestamp"], scene_row))
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    columns = {
        "sample.token": texts[order],
        "sample.timestamp": sample["timestamp"][order],
        "sample.scene": scene_row[order],
    }
    return columns, sample, place


def _calibrations(folder: Path) -> dict[str, np.ndarray]:
    sensor = Table(folder, "sensor", {"token": "token", "channel": "list", "modality": "list"})
    modality = dict(zip(sensor["channel"], sensor["modality"], strict=True))
    kinds = {"sensor_token": "token", "translation": "3", "rotation": "4", "camera_intrinsic": "list"}
    calibrated = Table(folder, "calibrated_sensor", kinds)
    intrinsic = [matrix or [[np.nan] * 3] * 3 for matrix in calibrated["camera_intrinsic"]]
    channels = list(modality)
    number = np.array([channels.index(channel) for channel in sensor["channel"]], np.int32)
    return {
        "channel": np.array(channels, str),
        "channel.modality": np.array(list(modality.values()), str),
        "calibration.channel": number[calibrated.rows_of("sensor_token", sensor)],
        "calibration.translation": calibrated["translation"],
        "calibration.rotation": calibrated["rotation"],
        "calibration.intrinsic": np.array(intrinsic, np.float64).reshape(-1, 3, 3),
    }


def _sample_data(
    folder: Path, sample: Table, place: np.ndarray, known: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], Table]:
    """Each file's pose, calibration, time and predecessor; and each sample's keyframe file by channel."""
    kinds = {
        "token": "token",
        "sample_token": "token",
        "ego_pose_token": "token",
        "calibrated_sensor_token": "token",
        "prev": "token",
        "timestamp": "int",
        "is_key_frame": "bool",
        "filename": "text",
    }
    data = Table(folder, "sample_data", kinds)
    calibrated = Table(folder, "calibrated_sensor", {"token": "token"})
    calibration = data.rows_of("calibrated_sensor_token", calibrated)
    of_sample = place[data.rows_of("sample_token", sample)]
    keys = np.flatnonzero(data["is_key_frame"])
    files = np.full((len(place), len(known["channel"])), -1, np.int32)
    files[of_sample[keys], known["calibration.channel"][calibration[keys]]] = keys
    columns = {
        "sample.file": files,
        "file.token": data["token"],
        "file.timestamp": data.pop("timestamp"),
        "file.calibration": calibration,
        "file.prev": data.rows_of("prev", data, may_be_empty=True),
        **data.pop("filename").columns("file.name"),
    }
    for name in ("prev", "sample_token", "calibrated_sensor_token", "is_key_frame"):
        data.pop(name)
    pose = Table(folder, "ego_pose", {"token": "token", "translation": "3", "rotation": "4"})
    row = data.rows_of("ego_pose_token", pose)
    columns |= {"file.translation": pose.pop("translation")[row], "file.rotation": pose.pop("rotation")[row]}
    return columns, data


def _label_files(folder: Path, name: str, data: Table, known: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The point label file of every sample, empty where it has none."""
    labels = Table(folder, name, {"sample_data_token": "token", "filename": "list"})
    row = labels.rows_of("sample_data_token", data)
    by_file = dict(zip(row.tolist(), labels["filename"], strict=True))
    lidar = known["sample.file"][:, known["channel"].tolist().index("LIDAR_TOP")]
    return {f"sample.{name}": np.array([by_file.get(file, "") for file in lidar.tolist()], str)}


def _label_numbers(folder: Path) -> np.ndarray:
    """The class of every number in a label file."""
    category = Table(folder, "category", {"name": "list", "index": "int"})
    labels = np.full(1 << 16, UNKNOWN, np.int16)
    labels[category["index"]] = _classes_of(category["name"], LIDARSEG_NAMES, LIDARSEG)
    return labels


def _boxes(folder: Path, sample: Table, place: np.ndarray, category: Table) -> dict[str, np.ndarray]:
    kinds = {
        "token": "token",
        "sample_token": "token",
        "instance_token": "token",
        "attribute_tokens": "token",
        "visibility_token": "token",
        "prev": "token",
        "next": "token",
        "translation": "3",
        "size": "3",
        "rotation": "4",
        "num_lidar_pts": "int",
        "num_radar_pts": "int",
    }
    box = Table(folder, "sample_annotation", kinds)
    instance = Table(folder, "instance", {"token": "token", "category_token": "token"})
    attribute = Table(folder, "attribute", {"token": "token", "name": "list"})
    visibility = Table(folder, "visibility", {"token": "token", "level": "list"})
    of_sample, track = box.rows_of("sample_token", sample), box.rows_of("instance_token", instance)
    of_category = instance.rows_of("category_token", category)
    # Rows of -1, no attribute or no visibility, find the last entry.
    attributes = np.array([*_classes_of(attribute["name"], {n: n for n in ATTRIBUTES.names}, ATTRIBUTES), UNKNOWN])
    levels = np.array([*np.argsort(np.argsort(visibility["level"])), len(visibility["level"]) - 1], np.int8)
    order = np.argsort(place[of_sample], kind="stable")
    return {
        "box.offset": np.searchsorted(place[of_sample][order], np.arange(len(place) + 1)),
        "box.centre": box["translation"][order],
        "box.size": box["size"][order][:, [1, 0, 2]],
        "box.rotation": box["rotation"][order],
        "box.velocity": _velocities(box, sample["timestamp"][of_sample])[order],
        "box.label": _classes_of(category["name"], DETECTION_NAMES, DETECTION)[of_category][track][order],
        "box.track": track[order],
        "box.attribute": attributes[box.rows_of("attribute_tokens", attribute, may_be_empty=True)][order],
        # The best visible level is no occlusion.
        "box.occlusion": levels.max(initial=0)
        - levels[box.rows_of("visibility_token", visibility, may_be_empty=True)][order],
        "box.points": box["num_lidar_pts"][order],
        "box.radar": box["num_radar_pts"][order],
        "box.rack": np.array([name == RACK for name in category["name"]])[of_category][track][order],
    }


def _velocities(box: Table, timestamp: np.ndarray) -> np.ndarray:
    """World velocities from the labels before and after; NaN where there are none or they are too far apart."""
    here = np.arange(len(timestamp))
    before, after = box.rows_of("prev", box, may_be_empty=True), box.rows_of("next", box, may_be_empty=True)
    longest = np.where((before >= 0) & (after >= 0), 2 * _LONGEST_STEP, _LONGEST_STEP)
    first, last = np.where(before < 0, here, before), np.where(after < 0, here, after)
    seconds = (timestamp[last] - timestamp[first]) * 1e-6
    usable = (seconds > 0) & (seconds <= longest)
    step = box["translation"][last] - box["translation"][first]
    return np.where(usable[:, None], step / np.where(usable, seconds, 1.0)[:, None], np.nan)


def _classes_of(names: list[str], table: dict[str, str], classes: Classes) -> np.ndarray:
    known = [table.get(name) for name in names]
    return np.array([UNKNOWN if name is None else classes.index(name) for name in known], np.int16)
