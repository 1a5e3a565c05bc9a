"""Any source as an official folder: nuScenes, KITTI or SemanticKITTI files that their own tools read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cofield.classes import UNKNOWN, Classes, translate
from cofield.data import Source
from cofield.data.folders import readable
from cofield.data.fractions import Subset
from cofield.frame import Frame

SWEEP_PERIOD = 0.05


def export(source: Source, format: str, root: Path, frames: int | None = None, skip_broken: bool = False) -> int:
    """Write the first frames of a source below `root`, those that can be read if so wanted; the number written.

    Every fifth scene is validation, the others are training; a single scene is both.
    """
    from cofield.data.export_kitti import write_kitti
    from cofield.data.export_nuscenes import write_nuscenes
    from cofield.data.export_semantickitti import write_semantickitti

    writers: dict[str, Callable[[Source, Path, int], None]] = {
        "nuscenes": write_nuscenes,
        "kitti": write_kitti,
        "semantickitti": write_semantickitti,
    }
    if format not in writers:
        raise ValueError(f"a format is one of {', '.join(writers)}, got {format!r}")
    count = len(source) if frames is None else min(frames, len(source))
    if count < 1:
        raise ValueError(f"nothing to write: {source.name} has {len(source)} frames, asked for {frames}")
    if root.is_dir() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty; name a new folder")
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / ".writable").touch()
        (root / ".writable").unlink()
    except OSError as problem:
        raise OSError(f"{root} cannot be written ({problem.strerror}); name a folder that can") from problem
    if skip_broken:
        source = Subset(source, readable(source, list(range(count))))
        count = len(source)
    writers[format](source, root, count)
    return count


def scene_splits(scenes: list[str]) -> dict[str, list[str]]:
    """Different scenes, in order, by split."""
    names = list(dict.fromkeys(scenes))
    if len(names) == 1:
        return {"train": names, "val": names}
    val = [name for i, name in enumerate(names) if i % 5 == 1]
    return {"train": [name for name in names if name not in val], "val": val}


def relabelled(labels: Tensor, own: Classes, target: Classes) -> Tensor:
    """Labels in another label space, UNKNOWN where it has no such class."""
    return labels if own.space == target.space else translate(labels, own, target)


def point_labels(frame: Frame, own: Classes | None, target: Classes) -> Tensor | None:
    """The labels of a frame's points in another label space; None where there are none."""
    if own is None or frame.points.labels is None:
        return None
    return relabelled(frame.points.labels, own, target)


def sweep_numbers(frame: Frame) -> Tensor:
    """0 for the keyframe's points, then one number per sweep; slices of a sweep share one."""
    return (frame.points.age / SWEEP_PERIOD + 1e-3).floor().long()


def write_image(path: Path, image: Float[Tensor, "3 h w"]) -> None:
    """An image file of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (image * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, quality=95)


def write_array(path: Path, array: np.ndarray) -> None:
    """The bytes of an array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.ascontiguousarray(array).tofile(path)


def known(labels: Tensor) -> Tensor:
    """True where there is a label."""
    return labels != UNKNOWN
