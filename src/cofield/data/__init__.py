"""Sources of frames: whatever has a length and gives a `Frame` for an index."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from cofield.classes import Classes
from cofield.frame import Frame
from cofield.grid import BoxGrid


@runtime_checkable
class Source(Protocol):
    """A data set, or one split of it, ordered by scene and then by time.

    `source[i]` is a pure function of i: it may be called in any order and from any process.
    `point_classes` names what `Points.labels` count, None where points have no labels;
    `box_classes` likewise for `Boxes.label`.
    """

    @property
    def name(self) -> str: ...

    @property
    def box_classes(self) -> Classes | None: ...

    @property
    def point_classes(self) -> Classes | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Frame: ...

    def scenes(self) -> list[str]:
        """The scene of every frame, without reading any."""
        ...


class Wrapped:
    """What a source over another source has of it."""

    source: Source

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def box_classes(self) -> Classes | None:
        return self.source.box_classes

    @property
    def point_classes(self) -> Classes | None:
        return self.source.point_classes


FOLDERS = ("nuscenes", "kitti", "semantickitti", "scribblekitti")


def open_source(
    name: str,
    root: Path | str | None = None,
    split: str = "train",
    sweeps: int | None = None,
    map_grid: BoxGrid | None = None,
) -> Source:
    """The source called `name`: `world:PRESET[@TOWN][+SENSORS]`, or a data set in the folder `root`.

    SENSORS of a world are changes as `beams=16+delay=0.1` (see `rig.varied`). Data sets are nuscenes[:VERSION], kitti,
    semantickitti and scribblekitti. Without a version nuScenes is the only one that is there, or else v1.0-trainval.

    Args:
        sweeps: earlier LiDAR sweeps to add to each frame's own; None is what the source does by itself.
        map_grid: where nuScenes draws the map; None is no map. Worlds have their preset's, other data sets none.
    """
    kind, _, rest = name.partition(":")
    match kind:
        case "world":
            from cofield.data.simulate import World

            place, _, sensors = rest.partition("+")
            preset, _, town = place.partition("@")
            if sweeps is not None:
                raise ValueError(f"the sweeps of a world are its preset's; leave them out for {name}")
            return World(preset, town=town or "tune", split=split, sensors=sensors)
        case "nuscenes" | "kitti" | "semantickitti" | "scribblekitti":
            from cofield.data.folders import open_folder

            if root is None:
                raise ValueError(f"{kind} is read from a folder: say which, with --root")
            return open_folder(kind, Path(root), split, rest or None, sweeps=sweeps, map_grid=map_grid)
        case _:
            raise ValueError(f"no source is called {name!r}; there is world:PRESET, {', '.join(FOLDERS)}")
