"""Is a folder the data set it should be? Every file is looked for; some frames are read, measured and drawn.

Every check looks at what a wrong folder, axis convention or calibration would break first. Thresholds are
generous (ours): they tell a broken data set from a sound one, not a good one from a better.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from cofield.classes import DETECTION, LIDARSEG, UNKNOWN, Classes, translate
from cofield.data import Source
from cofield.data.folders import lost_files, open_folder
from cofield.data.loader import spread
from cofield.frame import Boxes, Camera, Frame
from cofield.geometry import project
from cofield.grid import BoxGrid
from cofield.view.paint import bird_picture, depth_picture, picture, tiles, with_boxes

_AREA = BoxGrid((-40.0, -40.0, -3.0), (0.2, 0.2, 8.0), (400, 400, 1))
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


@dataclass(frozen=True)
class Report:
    """What a check found.

    Args:
        findings: what is wrong; nothing, if the data is what it should be.
        skipped: frames that were stepped over because they were to be, and why.
        frames: tokens of the frames that were read, successors included.
        facts: what is in the data, by topic; each says which frames it was computed on.
    """

    findings: list[Finding] = field(default_factory=list)
    skipped: list[Finding] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)


def check_data(
    name: str,
    root: Path,
    version: str | None = None,
    out: Path | None = None,
    frames: int = 4,
    skip_broken: bool = False,
) -> Report:
    """What is wrong with the data set `name` below `root`, and what is in it.

    Args:
        out: a folder for overlay pictures of the frames read; None for no pictures.
        frames: how many to read, spread over the data set, each with its successor.
        skip_broken: step over frames whose files are lost or cannot be read, and say which, without a finding.
    """
    try:
        source = open_folder(name, root, "all", version)
        if not len(source):
            return Report([Finding(str(root), "there is no frame", "check the root")])
        lost = lost_files(source)
    except (ValueError, OSError) as problem:
        return Report([_of_error(str(root), problem)])
    report = check_source(source, out, frames, skip_broken, {index for indices in lost.values() for index in indices})
    listed = report.skipped if skip_broken else report.findings
    listed[:0] = _of_lost(lost)
    files = "every file of every frame is there" if not lost else f"{len(lost)} are missing or empty"
    report.facts["files"] = f"{files} (all {len(source)} frames)"
    return report


def check_source(
    source: Source,
    out: Path | None = None,
    frames: int = 4,
    skip_broken: bool = False,
    lost: set[int] | None = None,
) -> Report:
    """What is wrong with some frames of a source, and what is in them.

    Args:
        lost: frames that are known to be broken; others are read in their place.
    """
    report, read, scenes = Report(), [], source.scenes()
    lost = lost or set()
    whole = [index for index in range(len(source)) if index not in lost]
    counts = _Counts(source.box_classes, source.point_classes)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            text = f"{out} cannot be written ({problem.strerror}); name another folder for the pictures (--out)"
            raise OSError(text) from problem
    if len(scenes) != len(source):
        report.findings.append(
            Finding(source.name, f"{len(source)} frames but {len(scenes)} scene names", "name each frame's")
        )
    for index in (whole[i] for i in spread(len(whole), frames)):
        frame = _read(source, index, report, skip_broken)
        if frame is None:
            continue
        read.append(index)
        counts.add(frame)
        report.findings.extend(check_frame(frame, source.box_classes, source.point_classes))
        if index + 1 < len(source) and index + 1 not in lost and scenes[index + 1 : index + 2] == [frame.scene]:
            after = _read(source, index + 1, report, skip_broken)
            report.findings.extend([] if after is None else check_step(frame, after))
        if out is not None:
            name = frame.token.replace("/", "-")
            Image.fromarray(overlay(frame, source.box_classes, source.point_classes)).save(out / f"{name}.png")
    # The same problem in every frame is one problem.
    once = {(finding.where, finding.problem): finding for finding in report.findings}
    report.findings[:] = once.values()
    report.facts.update(counts.facts(read, len(source)))
    return report


class _Counts:
    """What is in the frames read so far."""

    def __init__(self, box_classes: Classes | None, point_classes: Classes | None) -> None:
        self.box_classes, self.point_classes = box_classes, point_classes
        self.points: list[int] = []
        self.ranges: list[float] = []
        self.images: Counter[str] = Counter()
        self.labels: Counter[int] = Counter()
        self.boxes: Counter[int] = Counter()

    def add(self, frame: Frame) -> None:
        """Count one more frame; of labels, those of the keyframe's own points."""
        points = frame.points
        self.points.append(len(points))
        if len(points):
            self.ranges.append(float(points.xyz_ego[:, :2].norm(dim=-1).median()))
        self.images.update(f"{camera.image.shape[-2]}×{camera.image.shape[-1]}" for camera in frame.cameras)
        if points.labels is not None:
            self.labels.update(points.labels[points.age == 0].tolist())
        if frame.boxes is not None:
            self.boxes.update(frame.boxes.label.tolist())

    def facts(self, indices: list[int], length: int) -> dict[str, str]:
        """Each topic in words, with the frames it was computed on."""
        if not indices:
            return {}
        where = f"(frames {', '.join(map(str, indices))} of 0 to {length - 1})"
        near = f", half of them within {np.median(self.ranges):.1f} m" if self.ranges else ""
        images = ", ".join(f"{count} of {size}" for size, count in self.images.items()) or "none"
        facts = {"points": f"{np.median(self.points):.0f} a frame{near} {where}", "images": f"{images} {where}"}
        if self.point_classes is not None and self.labels:
            facts["point labels"] = f"{_shares(self.labels, self.point_classes)} {where}"
        if self.box_classes is not None and self.boxes:
            count = sum(self.boxes.values()) - self.boxes[UNKNOWN]
            facts["boxes"] = f"{count} of a class: {_shares(self.boxes, self.box_classes)} {where}"
        return facts


def _shares(counts: Counter[int], classes: Classes) -> str:
    """How many have a label, which labels are most frequent, and which do not occur."""
    known = {label: count for label, count in counts.items() if 0 <= label < len(classes)}
    total, labelled = sum(counts.values()), sum(known.values())
    often = sorted(known, key=lambda label: -known[label])[:5]
    shown = ", ".join(f"{classes.names[label]} {known[label] / total:.0%}" for label in often)
    never = [name for label, name in enumerate(classes.names) if label not in known]
    text = f"{labelled / total:.1%} have a label" + (f", most {shown}" if shown else "")
    return text + (f"; no {', '.join(never)}" if never else "; every class occurs")


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
        shown += [
            (f"{camera.name}: boxes", with_boxes(picture(camera.image), boxes, camera)) for camera in frame.cameras
        ]
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


def _read(source: Source, index: int, report: Report, skip_broken: bool) -> Frame | None:
    try:
        frame = source[index]
    except (ValueError, OSError) as problem:
        (report.skipped if skip_broken else report.findings).append(_of_error(f"frame {index}", problem))
        return None
    report.frames.extend([frame.token] if frame.token not in report.frames else [])
    return frame


def _of_lost(lost: dict[Path, list[int]]) -> list[Finding]:
    """One finding for each folder from which files are missing."""
    folders: dict[Path, list[Path]] = {}
    for path in lost:
        folders.setdefault(path.parent, []).append(path)
    findings = []
    for folder, paths in folders.items():
        broken = sorted({index for path in paths for index in lost[path]})
        others = f", as are {len(paths) - 1} more files of {folder.name}" if len(paths) > 1 else ""
        frames = f"{len(broken)} frames need them" if len(broken) > 1 else f"frame {broken[0]} needs it"
        text = f"is missing or empty{others} ({frames})"
        remedy = "fetch that part of the data set again, or leave these frames out with --skip-broken"
        findings.append(Finding(str(paths[0]), text, remedy))
    return findings


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


def _finding(frame: Frame, problem: str, remedy: str) -> Finding:
    return Finding(f"frame {frame.token}", problem, remedy)


def _of_error(where: str, problem: Exception) -> Finding:
    """The messages of readers name the file and the remedy."""
    text, _, remedy = str(problem).partition("; ")
    return Finding(where, text, remedy)
