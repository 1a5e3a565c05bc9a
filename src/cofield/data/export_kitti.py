"""A source as a KITTI object folder: training/{velodyne,image_2,calib,label_2} and ImageSets.

KITTI has no poses, no sweeps, and labels only what its camera sees. The LiDAR's frame is ego's, raised by
1.73 m: a LiDAR that is mounted elsewhere keeps its points but not its origin.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cofield.classes import DETECTION, KITTI, Classes, translate
from cofield.data import Source
from cofield.data.export import known, relabelled, scene_splits, sweep_numbers, write_array, write_image
from cofield.data.kitti import LIDAR_HEIGHT
from cofield.frame import Boxes, Camera, Frame
from cofield.geometry import inverse, pose, project, rotate, transform

_IDENTITY = "1 0 0 0 1 0 0 0 1"
_NEAREST = 0.5


def write_kitti(source: Source, root: Path, frames: int) -> None:
    """The first frames of a source; the first camera is image_2."""
    folder, scenes = root / "training", source.scenes()[:frames]
    for name in ("velodyne", "calib", "label_2"):
        (folder / name).mkdir(parents=True)
    for index in range(frames):
        frame, stem = source[index], f"{index:06d}"
        write_array(folder / "velodyne" / f"{stem}.bin", velodyne_table(frame))
        cameras = stereo_pair(frame)
        if not cameras:
            raise ValueError(f"frame {frame.token} has no camera; KITTI's boxes need one")
        (folder / "calib" / f"{stem}.txt").write_text(calibration_text(cameras, "Tr_velo_to_cam"))
        for camera, name in zip(cameras, ("image_2", "image_3"), strict=False):
            write_image(folder / name / f"{stem}.png", camera.image)
        lines = []
        if frame.boxes is not None and source.box_classes is not None:
            lines = label_lines(frame.boxes, kitti_labels(frame.boxes.label, source.box_classes), cameras[0])
        (folder / "label_2" / f"{stem}.txt").write_text("".join(line + "\n" for line in lines))
    (root / "ImageSets").mkdir()
    splits = scene_splits(scenes) | {"trainval": scenes}
    for split, names in splits.items():
        stems = [f"{i:06d}\n" for i, scene in enumerate(scenes) if scene in set(names)]
        (root / "ImageSets" / f"{split}.txt").write_text("".join(stems))


def kitti_labels(labels: Int[Tensor, "n"], own: Classes) -> Int[Tensor, "n"]:
    """Labels in KITTI's own space."""
    return labels if own.space == KITTI.space else translate(relabelled(labels, own, DETECTION), DETECTION, KITTI)


def velodyne_table(frame: Frame) -> np.ndarray:
    """The keyframe's points as x, y, z, reflectance in the LiDAR's frame."""
    points = frame.points.select(sweep_numbers(frame) == 0)
    xyz = points.xyz_ego - torch.tensor([0.0, 0.0, LIDAR_HEIGHT])
    return torch.cat([xyz, points.intensity[:, None]], -1).numpy()


def stereo_pair(frame: Frame) -> tuple[Camera, ...]:
    """The first camera, and the next one that looks the same way: KITTI's image_3."""
    first, *others = frame.cameras or (None,)
    if first is None:
        return ()
    same = [other for other in others if (other.cam_T_ego - first.cam_T_ego)[:3, :3].abs().max() < 1e-3]
    return (first, *same[:1])


def calibration_text(cameras: tuple[Camera, ...], mounting: str) -> str:
    """P0 to P3, the rectification and the mounting; the frame of camera 0 is that of the first camera."""
    ego_T_velo = pose(torch.eye(3).double(), torch.tensor([0.0, 0.0, LIDAR_HEIGHT]).double())
    first = cameras[0].cam_T_ego.double()
    matrices = [camera.pix_T_cam.double() @ camera.cam_T_ego.double() @ inverse(first) for camera in cameras]
    rows = [matrices[0], matrices[0], matrices[0], matrices[-1]]
    lines = [f"P{i}: {_numbers(matrix[:3])}" for i, matrix in enumerate(rows)]
    lines += [f"R0_rect: {_IDENTITY}"] if mounting == "Tr_velo_to_cam" else []
    return "\n".join([*lines, f"{mounting}: {_numbers((first @ ego_T_velo)[:3])}", ""])


def label_lines(boxes: Boxes, label: Tensor, camera: Camera) -> list[str]:
    """The boxes of which camera and LiDAR see something, and regions without a class, as lines of a label file.

    Where boxes have scores these are a 16th column, as in result files.
    """
    cam_T_ego = camera.cam_T_ego.double()
    bottom = boxes.centre.double() - torch.tensor([0.0, 0.0, 0.5]).double() * boxes.size.double()[:, 2:]
    heading = torch.stack([boxes.yaw.cos(), boxes.yaw.sin(), 0 * boxes.yaw], -1).double()
    xyz, forward = transform(cam_T_ego, bottom), rotate(cam_T_ego, heading)
    centre = transform(cam_T_ego, boxes.centre.double())
    # KITTI's bottom is half a height below the centre along the camera's own y.
    xyz = centre + torch.stack([0 * xyz[:, 0], boxes.size[:, 2].double() / 2, 0 * xyz[:, 0]], -1)
    turn = torch.atan2(-forward[:, 2], forward[:, 0])
    rectangles, cut = seen_rectangles(boxes, camera)
    lines = []
    for i in range(len(boxes)):
        if not known(label)[i]:
            if boxes.box2d is not None and boxes.centre[i].isnan().any():
                lines.append(f"DontCare -1 -1 -10 {_numbers(boxes.box2d[i])} -1 -1 -1 -1000 -1000 -1000 -10")
            continue
        # KITTI labels what is seen: in the image, and by the LiDAR where the source has counted.
        if not cut[i] < 1 or (boxes.num_points is not None and not boxes.num_points[i]):
            continue
        length, width, height = boxes.size[i].tolist()
        alpha = _wrapped(float(turn[i] - torch.atan2(xyz[i, 0], xyz[i, 2])))
        truncation = float(cut[i]) if boxes.truncation is None else float(boxes.truncation[i])
        occlusion = 0 if boxes.occlusion is None else int(boxes.occlusion[i])
        rectangle = rectangles[i] if boxes.box2d is None else boxes.box2d[i]
        lines.append(
            f"{KITTI.names[int(label[i])]} {truncation:.2f} {occlusion} {alpha:.6f} {_numbers(rectangle)} "
            f"{height:.6f} {width:.6f} {length:.6f} {_numbers(xyz[i])} {float(turn[i]):.6f}"
            + ("" if boxes.score is None else f" {float(boxes.score[i]):.6f}")
        )
    return lines


def in_image(boxes: Boxes, camera: Camera) -> Boxes:
    """The boxes that the camera sees, and where in its image."""
    rectangles, cut = seen_rectangles(boxes, camera)
    return replace(boxes, box2d=rectangles).select(cut < 1)


def seen_rectangles(boxes: Boxes, camera: Camera) -> tuple[Tensor, Tensor]:
    """For each box the rectangle around its corners, cut to the image, and the share that was cut off."""
    corners = boxes.corners()
    uv, depth = project(camera.pix_T_ego.expand(len(boxes), 4, 4), corners)
    height, width = camera.image.shape[-2:]
    whole = torch.cat([uv.amin(1), uv.amax(1)], -1)
    limit = whole.new_tensor([width, height, width, height])
    seen = whole.clamp(min=0).minimum(limit)
    areas = [(r[:, 2] - r[:, 0]) * (r[:, 3] - r[:, 1]) for r in (seen, whole)]
    cut = 1 - areas[0] / areas[1].clamp(min=1e-6)
    return seen, torch.where((depth > _NEAREST).all(1), cut, 1.0)


def _numbers(values: Tensor) -> str:
    return " ".join(f"{value:.9g}" for value in values.flatten().tolist())


def _wrapped(angle: float) -> float:
    return (angle + np.pi) % (2 * np.pi) - np.pi
