"""A source as a SemanticKITTI folder: one sequence per scene."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt32
from torch import Tensor

from cofield.classes import LIDARSEG, SEMANTICKITTI, UNKNOWN, Classes, translate
from cofield.data import Source
from cofield.data.export import point_labels, sweep_numbers, write_array, write_image
from cofield.data.export_kitti import calibration_text, stereo_pair, velodyne_table
from cofield.data.semantickitti import label_table
from cofield.frame import Camera, Frame
from cofield.geometry import inverse

# The second scene is the validation sequence.
SEQUENCES = ("00", "08", "01", "02", "03", "04", "05", "06", "07", "09", "10")

# Poses are those of a camera; for sources without any, one that looks along ego x.
_AHEAD = Camera(
    "image_2",
    torch.zeros(3, 1, 1),
    pix_T_cam=torch.eye(4),
    cam_T_ego=torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]),
    time=0.0,
)


def write_semantickitti(source: Source, root: Path, frames: int) -> None:
    """The first frames of a source, with the first camera and its stereo partner, if any."""
    scenes = source.scenes()[:frames]
    names = list(dict.fromkeys(scenes))
    if len(names) > len(SEQUENCES):
        raise ValueError(
            f"{len(names)} scenes, but SemanticKITTI has {len(SEQUENCES)} labelled sequences; export fewer frames"
        )
    numbers = dict(zip(names, SEQUENCES, strict=False))
    sequences: dict[str, _Sequence] = {}
    for index in range(frames):
        frame = source[index]
        if frame.scene not in sequences:
            sequences[frame.scene] = _Sequence.begun(root / "sequences" / numbers[frame.scene], frame)
        sequences[frame.scene].add(frame, semantickitti_labels(frame, source.point_classes))
    for sequence in sequences.values():
        (sequence.folder / "poses.txt").write_text("\n".join([*sequence.poses, ""]))
        (sequence.folder / "times.txt").write_text("\n".join([*sequence.times, ""]))


@dataclass(frozen=True)
class _Sequence:
    """A folder that grows; its calibration is the first frame's."""

    folder: Path
    cam_T_ego: Tensor
    ego_T_world: Tensor
    start: float
    poses: list[str] = field(default_factory=list)
    times: list[str] = field(default_factory=list)

    @classmethod
    def begun(cls, folder: Path, frame: Frame) -> "_Sequence":
        cameras = stereo_pair(frame) or (_AHEAD,)
        folder.mkdir(parents=True)
        (folder / "calib.txt").write_text(calibration_text(cameras, "Tr"))
        return cls(folder, cameras[0].cam_T_ego.double(), inverse(frame.world_T_ego), frame.time)

    def add(self, frame: Frame, labels: Int[Tensor, "p"] | None) -> None:
        stem = f"{len(self.poses):06d}"
        here = self.cam_T_ego @ self.ego_T_world @ frame.world_T_ego @ inverse(self.cam_T_ego)
        self.poses.append(" ".join(f"{value:.12g}" for value in here[:3].flatten().tolist()))
        self.times.append(f"{frame.time - self.start:.9g}")
        write_array(self.folder / "velodyne" / f"{stem}.bin", velodyne_table(frame))
        for camera, name in zip(stereo_pair(frame), ("image_2", "image_3"), strict=False):
            write_image(self.folder / name / f"{stem}.png", camera.image)
        if labels is not None:
            key = sweep_numbers(frame) == 0
            tracks = None if frame.points.instances is None else frame.points.instances[key]
            write_array(self.folder / "labels" / f"{stem}.label", label_words(labels[key], tracks))


def semantickitti_labels(frame: Frame, own: Classes | None) -> Int[Tensor, "p"] | None:
    """The labels of a frame's points in SemanticKITTI's own space; None where there are none."""
    if own is None or own.space == SEMANTICKITTI.space:
        return frame.points.labels
    labels = point_labels(frame, own, LIDARSEG)
    return None if labels is None else translate(labels, LIDARSEG, SEMANTICKITTI)


def label_words(labels: Int[Tensor, "p"], tracks: Int[Tensor, "p"] | None) -> UInt32[np.ndarray, "p"]:
    """The 32-bit words of a label file: the class's number, and above it the instance."""
    table, numbers = label_table(False), torch.zeros(len(SEMANTICKITTI) + 1, dtype=torch.long)
    for label in range(len(SEMANTICKITTI)):
        numbers[label] = int((table == label).nonzero()[0])
    # "other-vehicle" is found first as a bus; its own number is 20.
    numbers[SEMANTICKITTI.index("other-vehicle")] = 20
    words = numbers[torch.where(labels == UNKNOWN, len(SEMANTICKITTI), labels)]
    if tracks is not None:
        words = words + (torch.where(tracks == UNKNOWN, 0, tracks % 65535 + 1) << 16)
    return words.numpy().astype(np.uint32)
