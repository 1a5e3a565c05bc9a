"""What the official nuScenes devkit makes of a folder, as one .npz file; runs in the devkit's own environment.

Usage: python devkit.py ROOT OUT [SWEEPS]
"""

import sys
from functools import cache
from pathlib import Path

import numpy as np
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.nuscenes import NuScenes
from nuscenes.utils import splits
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box, transform_matrix, view_points
from pyquaternion import Quaternion


def pose(record):
    return transform_matrix(record["translation"], Quaternion(record["rotation"]))


def examine(devkit, sample, sweeps):
    """Points, boxes and projections of one sample."""
    out = {}
    key = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
    lidar = devkit.get("calibrated_sensor", key["calibrated_sensor_token"])
    car = devkit.get("ego_pose", key["ego_pose_token"])
    cloud, age = LidarPointCloud.from_file_multisweep(devkit, sample, "LIDAR_TOP", "LIDAR_TOP", sweeps + 1, 1.0)
    cloud.transform(pose(lidar))
    out["xyz"], out["age"] = cloud.points[:3].T, age[0]
    out["world_T_ego"] = pose(car)
    boxes = devkit.get_boxes(key["token"])
    keyframe = LidarPointCloud.from_file(str(Path(devkit.dataroot) / key["filename"]))
    # In single precision, world coordinates of a kilometre would cost a tenth of a millimetre.
    keyframe.points = keyframe.points.astype(np.float64)
    keyframe.transform(pose(lidar))
    keyframe.transform(pose(car))
    out["counts"] = [points_in_box(box, keyframe.points[:3]).sum() for box in boxes]
    out["velocity"] = np.array([devkit.box_velocity(box.token) for box in boxes]).reshape(-1, 3)
    for box in boxes:
        box.translate(-np.array(car["translation"]))
        box.rotate(Quaternion(car["rotation"]).inverse)
    out["centre"] = np.array([box.center for box in boxes]).reshape(-1, 3)
    out["size"] = np.array([box.wlh for box in boxes]).reshape(-1, 3)
    out["heading"] = np.array([box.orientation.rotation_matrix[:, 0] for box in boxes]).reshape(-1, 3)
    out["category"] = np.array([box.name for box in boxes])
    for channel, token in sample["data"].items():
        if not channel.startswith("CAM"):
            continue
        data = devkit.get("sample_data", token)
        camera = devkit.get("calibrated_sensor", data["calibrated_sensor_token"])
        then = devkit.get("ego_pose", data["ego_pose_token"])
        view = LidarPointCloud(keyframe.points.copy())
        for placed in (then, camera):
            view.translate(-np.array(placed["translation"]))
            view.rotate(Quaternion(placed["rotation"]).rotation_matrix.T)
        out[f"depth.{channel}"] = view.points[2]
        out[f"uv.{channel}"] = view_points(view.points[:3], np.array(camera["camera_intrinsic"]), normalize=True)[:2].T
    return out


def point_classes(devkit, sample):
    """The category of each point of the keyframe."""
    record = devkit.get("lidarseg", sample["data"]["LIDAR_TOP"])
    numbers = np.fromfile(Path(devkit.dataroot) / record["filename"], np.uint8)
    return np.array([devkit.lidarseg_idx2name_mapping[number] for number in numbers])


@cache
def opened(root, location):
    return NuScenesMap(str(root), location)


def map_layers(devkit, root, sample, names, half, cells):
    """The devkit's raster around the car, x ahead and y left."""
    key = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
    car = devkit.get("ego_pose", key["ego_pose_token"])
    scene = devkit.get("scene", sample["scene_token"])
    location = devkit.get("log", scene["log_token"])["location"]
    yaw = Quaternion(car["rotation"]).yaw_pitch_roll[0] / np.pi * 180
    patch = (*car["translation"][:2], 2 * half, 2 * half)
    return opened(root, location).get_map_mask(patch, yaw, names, (cells, cells))


def main(root, out, sweeps):
    devkit = NuScenes("v1.0-mini", str(root), verbose=False)
    found = {"val": np.array(splits.val), "mini_val": np.array(splits.mini_val), "train": np.array(splits.train)}
    for sample in devkit.sample:
        results = examine(devkit, sample, sweeps)
        if (root / "v1.0-mini" / "lidarseg.json").is_file():
            results["points.category"] = point_classes(devkit, sample)
        if (root / "maps" / "expansion").is_dir():
            areas = ["drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area"]
            results["map"] = map_layers(devkit, root, sample, areas, 24.0, 120)
        found |= {f"{sample['token']}.{name}": value for name, value in results.items()}
    np.savez(out, **found)


main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
