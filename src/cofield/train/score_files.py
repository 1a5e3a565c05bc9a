"""Result files as a score: boxes, labels of points and maps, each by the measure that scores a run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cofield.classes import DETECTION, LIDARSEG, MAP_LAYERS, SEMANTICKITTI, Classes
from cofield.data import Source, open_source
from cofield.data.kitti import Kitti
from cofield.data.kitti_tracking import KittiTracking
from cofield.data.loader import spread
from cofield.data.nuscenes import NuScenes
from cofield.data.nuscenes_truth import Truth, official_truth
from cofield.data.semantickitti import SemanticKitti
from cofield.data.simulate import World
from cofield.data.submission import (
    UPRIGHT_T_CAM,
    MapRaster,
    in_world,
    read_detections,
    read_kitti,
    read_lidarseg,
    read_map,
    read_semantickitti,
)
from cofield.frame import Boxes, Frame, collate
from cofield.grid import Grid
from cofield.metrics.iou import MapIoU, PointIoU
from cofield.metrics.kitti import KittiAP
from cofield.metrics.nuscenes import NuScenesScore
from cofield.models.mapseg import LAYERS, true_layers
from cofield.train.predict import scan_token

_SAME = 1e-4  # metres by which two rasters may differ and be one


def score_file(path: Path, source: str, root: Path | None, split: str, frames: int | None = None) -> dict[str, float]:
    """The score of what `predict` wrote, which the path's layout tells, against the truth of a source's split.

    Args:
        frames: how many, spread over the split, as `predict` was told; None is all.
    """
    kind = kind_of(path)
    raster = read_map(min(path.glob("*.npz"))) if kind == "maps" else None
    known = without_images(open_source(source, root, split, map_grid=None if raster is None else raster.grid))
    chosen = spread(len(known), frames or len(known))
    match kind:
        case "detections":
            return score_detections(path, known, chosen)
        case "lidarseg":
            return score_points(path, known, LIDARSEG, split, chosen)
        case "semantickitti":
            return score_points(path, known, SEMANTICKITTI, split, chosen)
        case "maps":
            assert raster is not None
            return score_maps(path, known, raster, chosen)
        case _:
            return score_texts(path, known, chosen)


def kind_of(path: Path) -> str:
    """What a path holds: detections, lidarseg, semantickitti, maps or, if nothing else is there, texts."""
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    if path.is_file():
        return "detections"
    kinds = {
        "lidarseg": (path / "lidarseg").is_dir(),
        "semantickitti": (path / "sequences").is_dir(),
        "maps": any(path.glob("*.npz")),
    }
    found = [kind for kind, is_there in kinds.items() if is_there]
    if len(found) > 1:
        raise ValueError(f"{path} holds {' and '.join(found)}; each is scored from a folder of its own")
    return found[0] if found else "texts"


def without_images(source: Source) -> Source:
    """The same frames without their images, which no score needs."""
    match source:
        case NuScenes() | SemanticKitti():
            return replace(source, cameras=())
        case World():
            return World(source.preset, source.town, source.split, replace(source.rig, cameras=()))
    return source


def score_detections(path: Path, source: Source, chosen: list[int]) -> dict[str, float]:
    """The nuScenes score of a detection file of exactly these frames."""
    if source.box_classes != DETECTION:
        raise ValueError(f"{source.name} has no boxes that detection files are scored against; nuscenes and worlds do")
    counted, known = NuScenesScore(), {truth.token: truth for truth in nuscenes_truth(source, chosen)}
    for token, boxes in read_detections(path, known).items():
        truth = known[token]
        counted.add(token, boxes, truth.boxes, truth.position, truth.racks)
    return counted.compute().summary()


def nuscenes_truth(source: Source, chosen: list[int]) -> Iterator[Truth]:
    """What frames of a detection file are scored against: of nuScenes from its tables, else from every frame."""
    if isinstance(source, NuScenes):
        truths = list(official_truth(source))
        yield from (truths[index] for index in chosen)
        return
    for index in chosen:
        frame = source[index]
        if frame.boxes is None:
            raise ValueError(f"{frame.token} of {source.name} has no boxes to score against")
        boxes = in_world(frame.boxes, frame.world_T_ego)
        yield Truth(frame.token, boxes, Boxes.empty(), frame.world_T_ego[:2, 3])


def score_texts(path: Path, source: Source, chosen: list[int]) -> dict[str, float]:
    """KITTI's score of a folder with a text of each of these frames; there may be more."""
    if not isinstance(source, Kitti | KittiTracking):
        raise ValueError(
            f"{path} has no folder lidarseg or sequences and no map rasters (.npz), so it is taken for KITTI's texts, "
            f"which are scored against kitti and not {source.name}; give the path that predict printed"
        )
    tokens = [source.tokens[index] for index in chosen]
    found = read_kitti(path, tokens)
    if isinstance(source, Kitti):
        return score_kitti(found, read_kitti(source.folder / "label_2", tokens, scored=False))
    labels = source.labels(UPRIGHT_T_CAM)
    return score_kitti(found, {token: labels[token] for token in tokens})


def score_kitti(found: dict[str, Boxes], true: dict[str, Boxes]) -> dict[str, float]:
    """KITTI's score of boxes by frame."""
    counted = KittiAP()
    for token, boxes in true.items():
        counted.add(token, found[token], boxes)
    return counted.compute().summary()


def score_points(path: Path, source: Source, classes: Classes, split: str, chosen: list[int]) -> dict[str, float]:
    """The IoU of the label files of exactly these frames, over all points of theirs that have a label."""
    known = source.point_classes
    if known != classes:
        raise ValueError(
            f"{path} holds labels of {classes.space}, and the points of {source.name} have "
            f"{'none' if known is None else f'those of {known.space}'}; files are scored against their own classes"
        )
    if classes == LIDARSEG:
        _check_count([path / "lidarseg" / split], "*.bin", chosen, source)
    else:
        sequences = dict.fromkeys(source.scenes())
        _check_count([path / "sequences" / each / "predictions" for each in sequences], "*.label", chosen, source)
    counted = PointIoU(classes.names)
    for index in chosen:
        frame = source[index]
        points = frame.points.select(frame.points.age == 0)
        if classes == LIDARSEG:
            said = read_lidarseg(path, split, scan_token(source, index, frame), len(points))
        else:
            said = read_semantickitti(path, frame.token, len(points))
        if points.labels is None:
            raise ValueError(f"{frame.token} of {source.name} has no point labels to score against")
        counted.add(said, points.labels, points.xyz_ego)
    values = counted.compute()
    if not values:
        raise ValueError(f"no point of these {len(chosen)} frames of {source.name} has a label to score against")
    return values


def score_maps(path: Path, source: Source, first: MapRaster, chosen: list[int]) -> dict[str, float]:
    """The pooled IoU of the map rasters of exactly these frames, which all have the layers and cells of the first."""
    _check_count([path], "*.npz", chosen, source)
    if unknown := set(first.names) - set(LAYERS):
        raise ValueError(f"{path}: no layer is called {', '.join(sorted(unknown))}; there is {', '.join(LAYERS)}")
    rows = [LAYERS.index(name) for name in first.names]
    counted = MapIoU(first.names)
    for index in chosen:
        frame = source[index]
        raster = read_map(path / f"{frame.token}.npz")
        if (raster.names, raster.grid) != (first.names, first.grid):
            raise ValueError(
                f"{path}: {raster.token} has {', '.join(raster.names)} on {raster.grid.describe()}, and {first.token} "
                f"has {', '.join(first.names)} on {first.grid.describe()}; all frames have the same"
            )
        _check_place(frame, raster, source)
        truth = true_layers(collate([frame]), raster.grid, occupied=max(rows) >= len(MAP_LAYERS))
        counted.add(raster.probability[None], truth[:, rows])
    return counted.compute()


def _check_count(folders: list[Path], pattern: str, chosen: list[int], source: Source) -> None:
    """As many files as frames: if each frame has one, as is seen when it is read, then there is no other either."""
    count = sum(1 for folder in folders for _ in folder.glob(pattern))
    if count != len(chosen):
        raise ValueError(
            f"{' and '.join(map(str, folders))}: there are {count} files {pattern} for the {len(chosen)} frames of "
            f"{source.name} that are scored; each has one, and there are no others. What `predict --frames N` wrote is "
            "scored with --frames N; the official evaluations ask for a whole split"
        )


def _check_place(frame: Frame, raster: MapRaster, source: Source) -> None:
    """A frame's map must have cells where the raster has them; there may be more around."""
    if frame.maps is None:
        raise ValueError(f"{source.name} has no map to score against; nuscenes and worlds do")
    have, want = frame.maps.grid, raster.grid
    apart = [abs(a - b) for a, b in zip(middle(have) + have.cell[:2], middle(want) + want.cell[:2], strict=True)]
    if max(apart) > _SAME:
        raise ValueError(
            f"{raster.token}: the raster is {want.describe()}, and the map of {source.name} is {have.describe()}; "
            "their cells do not lie on each other"
        )


def middle(grid: Grid) -> tuple[float, float]:
    """The middle of a grid's ground plan in the ego frame."""
    x, y = (
        zero + (low + high) / 2
        for zero, low, high in zip(grid.origin_ego[:2], grid.lower[:2], grid.upper[:2], strict=True)
    )
    return x, y
