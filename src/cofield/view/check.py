"""Is a folder the data set it should be? Some frames are read, measured and drawn.

Every check looks at what a wrong folder, axis convention or calibration would break first. Thresholds are
generous (ours): they tell a broken data set from a sound one, not a good one from a better.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from cofield.classes import DETECTION, LIDARSEG, UNKNOWN, Classes, translate
from cofield.data import Source
from cofield.data.folders import open_folder
from cofield.frame import Boxes, Camera, Frame
from cofield.geometry import project
from cofield.grid import BoxGrid
from cofield.view.paint import bird_picture, depth_picture, picture, tiles

_AREA = BoxGrid((-40.0, -40.0, -3.0), (0.2, 0.2, 8.0), (400, 400, 1))
_EDGES = ((0, 1), (0, 2), (1, 3), (2, 3), (4, 5), (4, 6), (5, 7), (6, 7), (0, 4), (1, 5), (2, 6), (3, 7))
_NEAREST = 0.5
_FASTEST = 70.0  # m/s


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: in which frame or file, what, and what to do."""

    where: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}; {self.remedy}" if self.remedy else f"{self.where}: {self.problem}"


def check_data(
    name: str, root: Path, version: str | None = None, out: Path | None = None, frames: int = 4
) -> list[Finding]:
    """What is wrong with the data set `name` below `root`; nothing, if it is what it should be.

    Args:
        out: a folder for overlay pictures of the frames looked at; None for no pictures.
        frames: how many to look at, spread over the data set, each with its successor.
    """
    try:
        source = open_folder(name, root, "all", version)
        if not len(source):
            return [Finding(str(root), "there is no frame", "check the root")]
    except (ValueError, OSError) as problem:
        return [_of_error(str(root), problem)]
    return check_source(source, out, frames)


def check_source(source: Source, out: Path | None = None, frames: int = 4) -> list[Finding]:
    """What is wrong with some frames of a source."""
    findings: list[Finding] = []
    scenes, count = source.scenes(), min(frames, len(source))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    if len(scenes) != len(source):
        findings.append(
            Finding(source.name, f"{len(source)} frames but {len(scenes)} scene names", "name each frame's")
        )
    for index in (i * len(source) // count for i in range(count)):
        frame = _read(source, index, findings)
        if frame is None:
            continue
        findings += check_frame(frame, source.box_classes, source.point_classes)
        if index + 1 < len(source) and scenes[index + 1 : index + 2] == [frame.scene]:
            after = _read(source, index + 1, findings)
            findings += [] if after is None else check_step(frame, after)
        if out is not None:
            name = frame.token.replace("/", "-")
            Image.fromarray(overlay(frame, source.box_classes, source.point_classes)).save(out / f"{name}.png")
    # The same problem in every frame is one problem.
    return list({(finding.where, finding.problem): finding for finding in findings}.values())


def check_frame(frame: Frame, box_classes: Classes | None, point_classes: Classes | None) -> list[Finding]:
    """What is wrong with one frame."""
    if not len(frame.points):
        return [_finding(frame, "there are no points", "fetch the scan again")]
    findings = [*_check_points(frame), *_check_labels(frame, point_classes)]
    if not _is_rigid(frame.world_T_ego):
        findings.append(_finding(frame, "world_T_ego is no rotation and translation", "check the pose's quaternion"))
    for camera in frame.cameras:
        findings += _check_camera(frame, camera)
    if frame.boxes is not None and box_classes is not None:
        findings += _check_boxes(frame, frame.boxes, box_classes)
    return findings


def check_step(before: Frame, after: Frame) -> list[Finding]:
    """What is wrong between two successive frames of a scene."""
    seconds = after.time - before.time
    if seconds <= 0:
        return [_finding(after, f"{-seconds:.3f} s before its predecessor {before.token}", "sort frames by time")]
    speed = float((after.world_T_ego[:3, 3] - before.world_T_ego[:3, 3]).norm()) / seconds
    if speed > _FASTEST:
        return [
            _finding(after, f"the car moved at {speed:.0f} m/s", "check the poses' unit and direction (world_T_ego)")
        ]
    return []


def overlay(frame: Frame, box_classes: Classes | None, point_classes: Classes | None) -> UInt8[np.ndarray, "h w 3"]:
    """Points in the images by depth, boxes in the images, and everything from above."""
    shown = [(f"{camera.name}: points by depth", _with_points(frame, camera)) for camera in frame.cameras]
    boxes = None if frame.boxes is None else frame.boxes.select(~frame.boxes.centre.isnan().any(-1))
    if boxes is not None:
        shown += [(f"{camera.name}: boxes", _with_boxes(boxes, camera)) for camera in frame.cameras]
    points = frame.points
    if points.labels is not None and point_classes is not None:
        points = replace(points, labels=translate(points.labels, point_classes, LIDARSEG))
    else:
        # Without labels, in a colour that can be seen.
        points = replace(points, labels=torch.full((len(points),), LIDARSEG.index("manmade")))
    if boxes is not None and box_classes is not None:
        boxes = replace(boxes, label=translate(boxes.label, box_classes, DETECTION))
    above = bird_picture(replace(frame, points=points, boxes=boxes, maps=None), _AREA, scale=2)
    return tiles([*shown, (f"{frame.token} from above", above)], columns=min(3, max(1, len(frame.cameras))), width=800)


def _read(source: Source, index: int, findings: list[Finding]) -> Frame | None:
    try:
        return source[index]
    except (ValueError, OSError) as problem:
        findings.append(_of_error(f"frame {index}", problem))
        return None


def _check_points(frame: Frame) -> list[Finding]:
    points, found = frame.points, []
    if not points.xyz_ego.isfinite().all():
        return [_finding(frame, "some points are not finite", "remove them")]
    if not -1e-6 <= float(points.intensity.min()) <= float(points.intensity.max()) <= 1 + 1e-6:
        found.append(_finding(frame, f"intensity reaches {float(points.intensity.max()):.4g}", "scale it to 0..1"))
    if int(points.origin.max()) >= len(frame.origins_ego):
        found.append(_finding(frame, "a point's origin is no row of origins_ego", "give each sweep its origin"))
    around = points.xyz_ego[:, :2].norm(dim=-1)
    ground = points.xyz_ego[(around > 3) & (around < 20), 2]
    if len(ground) > 200 and abs(height := float(ground.quantile(0.1))) > 1.0:
        remedy = "points belong in the ego frame (x ahead, y left, z up, zero on the road)"
        found.append(_finding(frame, f"the ground around the car is at {height:.2f} m", remedy))
    return found


def _check_labels(frame: Frame, classes: Classes | None) -> list[Finding]:
    labels = frame.points.labels
    if classes is None or labels is None:
        return []
    if int(labels.min()) < UNKNOWN or int(labels.max()) >= len(classes):
        return [
            _finding(frame, f"point labels reach {int(labels.max())}", f"{classes.space} has {len(classes)} classes")
        ]
    key = labels[frame.points.age == 0] if (frame.points.age == 0).any() else labels
    if not (key != UNKNOWN).any():
        return [_finding(frame, "no point has a label", "check the label files, or that this frame should have any")]
    return []


def _check_camera(frame: Frame, camera: Camera) -> list[Finding]:
    where, (height, width) = f"frame {frame.token}, {camera.name}", camera.image.shape[-2:]
    if not _is_rigid(camera.cam_T_ego):
        return [Finding(where, "cam_T_ego is no rotation and translation", "check the mounting's rotation")]
    if camera.cam_T_ego[1, 2] > -0.5:
        text = "the camera's y axis does not point down"
        return [Finding(where, text, "check cam_T_ego: it maps ego (z up) to camera (y down, z ahead), not back")]
    if camera.pix_T_cam[0, 0] <= 0 or camera.pix_T_cam[1, 1] <= 0:
        return [Finding(where, "a focal length is not positive", "check the intrinsic matrix")]
    found = []
    u, v = camera.pix_T_cam[:2, 2].tolist()
    if not (0 < u < width and 0 < v < height):
        text = f"the optical axis meets pixel ({u:.0f}, {v:.0f}) of a {width}×{height} image"
        found.append(Finding(where, text, "the intrinsics belong to another image size"))
    if not _seen(frame, camera).any():
        found.append(
            Finding(where, "no point falls into the image", "check its mounting: cam_T_ego maps ego to camera")
        )
    if abs(camera.time - frame.time) > 0.5:
        text = f"exposed {camera.time - frame.time:+.2f} s from the LiDAR"
        found.append(Finding(where, text, "check that its times have the same zero and unit"))
    return found


def _check_boxes(frame: Frame, boxes: Boxes, classes: Classes) -> list[Finding]:
    known = boxes.label != UNKNOWN
    if not known.any():
        return []
    boxes = boxes.select(known)
    if int(boxes.label.max()) >= len(classes):
        return [_finding(frame, f"box labels reach {int(boxes.label.max())}", f"{classes.space} has {len(classes)}")]
    if not (boxes.centre.isfinite().all() and (boxes.size > 0).all()):
        return [_finding(frame, "a box has no place or no size", "drop it, or give it label UNKNOWN")]
    found = []
    cars = boxes.label == next((i for i, name in enumerate(classes.names) if name.lower() == "car"), UNKNOWN)
    if cars.any() and float((boxes.size[cars, 0] / boxes.size[cars, 1]).median()) < 1:
        found.append(_finding(frame, "cars are wider than they are long", "sizes are length, width, height"))
    key = frame.points.select(frame.points.age <= frame.points.age.min() + 0.05)
    held = boxes.contains(key.xyz_ego, margin=0.1).sum(1)
    near = boxes.centre[:, :2].norm(dim=-1) < 30
    if boxes.num_points is not None and boxes.num_points.sum() >= 100:
        share = float(held.minimum(boxes.num_points).sum() / boxes.num_points.sum())
        if share < 0.7:
            text = f"boxes hold {share:.0%} of the points that are stated"
            found.append(_finding(frame, text, "check box centres (geometric, ego frame), sizes and yaw"))
    elif near.sum() >= 3 and float((held[near] > 0).float().mean()) < 0.3:
        text = f"{int((held[near] == 0).sum())} of {int(near.sum())} boxes within 30 m hold no point"
        found.append(_finding(frame, text, "check box centres (geometric, ego frame), sizes and yaw"))
    return found


def _is_rigid(a_T_b: Float[Tensor, "4 4"]) -> bool:
    rotation = a_T_b[:3, :3].double()
    near = (rotation @ rotation.mT - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-3
    return bool(near and torch.linalg.det(rotation) > 0 and a_T_b.isfinite().all())


def _seen(frame: Frame, camera: Camera) -> Bool[Tensor, "p"]:
    uv, depth = project(camera.pix_T_ego, frame.points.xyz_ego)
    size = uv.new_tensor([camera.image.shape[-1], camera.image.shape[-2]])
    return (depth > _NEAREST) & (uv >= 0).all(-1) & (uv < size).all(-1)


def _with_points(frame: Frame, camera: Camera) -> UInt8[np.ndarray, "h w 3"]:
    canvas = picture(camera.image)
    seen = _seen(frame, camera) & (frame.points.age <= frame.points.age.min() + 0.05)
    uv, depth = project(camera.pix_T_ego, frame.points.xyz_ego[seen])
    order = depth.argsort(descending=True)
    colour = depth_picture(depth[order][None])[0]
    # As wide as a 400th of the image, the nearest last.
    reach = max(0, camera.image.shape[-1] // 800)
    column, row = uv[order].long().numpy().T
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            y, x = (row + dy).clip(0, canvas.shape[0] - 1), (column + dx).clip(0, canvas.shape[1] - 1)
            canvas[y, x] = colour
    return canvas


def _with_boxes(boxes: Boxes, camera: Camera) -> UInt8[np.ndarray, "h w 3"]:
    canvas = Image.fromarray(picture(camera.image))
    draw = ImageDraw.Draw(canvas)
    uv, depth = project(camera.pix_T_ego.expand(len(boxes), 4, 4), boxes.corners())
    width = max(1, canvas.width // 500)
    for corners, ahead in zip(uv.tolist(), (depth > _NEAREST).all(1).tolist(), strict=True):
        if not ahead:
            continue
        for a, b in _EDGES:
            # The front face, at the far side in x, is white.
            colour = (255, 255, 255) if a >= 4 and b >= 4 else (255, 180, 0)
            draw.line([tuple(corners[a]), tuple(corners[b])], fill=colour, width=width)
    return np.array(canvas)


def _finding(frame: Frame, problem: str, remedy: str) -> Finding:
    return Finding(f"frame {frame.token}", problem, remedy)


def _of_error(where: str, problem: Exception) -> Finding:
    """The messages of readers name the file and the remedy."""
    text, _, remedy = str(problem).partition("; ")
    return Finding(where, text, remedy)
