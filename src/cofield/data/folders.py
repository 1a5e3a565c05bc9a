"""Data sets on disk by name, and a source that steps over what cannot be read."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cofield.data import FOLDERS, Source, Wrapped
from cofield.data.kitti import Kitti
from cofield.data.kitti_tracking import KittiTracking
from cofield.data.nuscenes import NuScenes
from cofield.data.semantickitti import SemanticKitti
from cofield.frame import Frame
from cofield.grid import BoxGrid

_log = logging.getLogger(__name__)


class Folder(Source, Protocol):
    """A data set on disk."""

    def files(self, index: int) -> list[Path]:
        """The files that a frame is read from, without reading any."""
        ...


def open_folder(
    name: str,
    root: Path,
    split: str = "train",
    version: str | None = None,
    scale: float = 1.0,
    sweeps: int | None = None,
    map_grid: BoxGrid | None = None,
) -> Folder:
    """The data set called `name` below `root`, with every camera that is there.

    Args:
        split: as the data set calls it; `all` is everything that has labels, or, failing that, everything.
        version: of nuScenes; None is the only one there is, or else v1.0-trainval.
        scale: of the images, 0..1.
        sweeps: earlier LiDAR sweeps to add; None for none. KITTI's object frames have none to add.
        map_grid: where nuScenes draws the map; the others have none.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder; say where the data set is")
    match name:
        case "nuscenes":
            version = version or _only_version(root)
            return NuScenes(root, split, version, sweeps=sweeps or 0, map_grid=map_grid, scale=scale)
        case "kitti":
            if sweeps:
                raise ValueError(f"KITTI's frames have no earlier sweeps to add, but {sweeps} were asked for")
            found = ("trainval" if (root / "training").is_dir() else "test") if split == "all" else split
            folder = root / ("testing" if found == "test" else "training")
            if any(path.is_dir() for path in (folder / "velodyne").glob("[0-9]*[0-9]")):
                cameras = _present(("image_02", "image_03"), lambda camera: (folder / camera).is_dir())
                return KittiTracking(root, found, cameras, scale=scale)
            cameras = _present(("image_2", "image_3"), lambda camera: (folder / camera).is_dir())
            return Kitti(root, found, cameras, scale=scale)
        case "semantickitti" | "scribblekitti":
            scans = list(root.glob("sequences/[0-9][0-9]/velodyne"))
            labelled = any(int(folder.parent.name) < 11 for folder in scans)
            found = ("trainval" if labelled or not scans else "test") if split == "all" else split
            plain = SemanticKitti(root, found, scribbles=name == "scribblekitti", scale=scale)
            folders = [root / "sequences" / sequence for sequence in dict.fromkeys(plain.scenes())]
            cameras = _present(("image_2", "image_3"), lambda camera: all((f / camera).is_dir() for f in folders))
            return SemanticKitti(root, found, cameras, scribbles=plain.scribbles, sweeps=sweeps or 0, scale=scale)
        case _:
            raise ValueError(f"no data set is called {name!r}; there is {', '.join(FOLDERS)}")


def lost_files(source: Folder) -> dict[Path, list[int]]:
    """Files that are missing or empty, and the frames that need them; each folder is listed once."""
    present: dict[Path, set[str]] = {}
    lost: dict[Path, list[int]] = {}
    for index in range(len(source)):
        for path in source.files(index):
            if path.parent not in present:
                present[path.parent] = _filled(path.parent)
            if path.name not in present[path.parent]:
                lost.setdefault(path, []).append(index)
    return lost


def readable(source: Source, indices: list[int]) -> list[int]:
    """Those of the frames that can be read; what is wrong with the others is logged.

    For one pass over given frames, where `SkipBroken` would show some of them twice.
    """
    whole = []
    for index in indices:
        try:
            _ = source[index]
        except (ValueError, OSError) as problem:
            _log.warning("skipped frame %d of %s: %s", index, source.name, problem)
        else:
            whole.append(index)
    if not whole:
        raise ValueError(f"none of the {len(indices)} frames of {source.name} can be read; check-data says why")
    return whole


class SkipBroken(Wrapped):
    """A source whose unreadable frames are replaced by the next readable one.

    `skipped` says what was wrong with which frame, so far, in this process; each is also logged once. Meant
    for training: for an evaluation, which would count the replacement twice, there is `readable`.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.skipped: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.source)

    def scenes(self) -> list[str]:
        """The scene of every frame, of the broken ones too."""
        return self.source.scenes()

    def __getitem__(self, index: int) -> Frame:
        count = len(self.source)
        if not 0 <= index < count:
            raise IndexError(f"{self.name} has frames 0 to {count - 1}, got {index}")
        for step in range(count):
            here = (index + step) % count
            if here in self.skipped:
                continue
            try:
                return self.source[here]
            except (ValueError, OSError) as problem:
                self.skipped[here] = str(problem)
                _log.warning("skipped frame %d of %s: %s", here, self.name, problem)
        raise ValueError(f"none of the {count} frames of {self.name} can be read; frame {index}: {self.skipped[index]}")


def _filled(folder: Path) -> set[str]:
    """The names of a folder's files that are not empty; label files of text may be."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.stat().st_size or entry.name.endswith(".txt")}
    except FileNotFoundError:
        return set()


def _present(names: tuple[str, ...], there: Callable[[str], bool]) -> tuple[str, ...]:
    return tuple(name for name in names if there(name))


def _only_version(root: Path) -> str:
    versions = sorted(path.parent.name for path in root.glob("*/sample_data.json"))
    return versions[0] if len(versions) == 1 else "v1.0-trainval"
