"""What a fine-tuned run says of frames, beside what is true."""

from dataclasses import replace
from pathlib import Path

from jaxtyping import Int
from PIL import Image
from torch import Tensor

from cofield.classes import DETECTION, LIDARSEG, Classes, translate
from cofield.data.submission import MapRaster
from cofield.frame import Boxes, Frame, collate
from cofield.grid import BoxGrid
from cofield.models.mapseg import MapHead
from cofield.train.predict import predicted, score
from cofield.train.run import open_finetuned
from cofield.train.semi import SemiSegment
from cofield.train.tasks import Detect, MapSegment, PointSegment, Supervised
from cofield.view.paint import SEMANTIC_PALETTE, Picture, bird_picture, picture, tiles, upward, with_boxes, write_ply
from cofield.view.pictures import around, frames_of, heat

SURE = 0.3  # the least score of a box that is drawn
TRUE, SAID = (90, 230, 120), (255, 180, 0)
_WIDTH = 480


def render_predictions(
    folder: Path, out: Path, frames: int, split: str = "val", skip_broken: bool = False
) -> dict[str, float]:
    """Write a picture of each of a fine-tuned run's held-out frames, spread over a split; the score of those frames.

    Of points there is also a point cloud in the colours of what was said.
    """
    config, task = open_finetuned(folder)
    source, indices = frames_of(config, split, frames, skip_broken)
    out.mkdir(parents=True, exist_ok=True)
    for index in indices:
        frame = source[index]
        name = frame.token.replace("/", "-")
        shown = prediction_pictures(task, frame, source.box_classes, source.point_classes)
        Image.fromarray(tiles(shown, columns=4, width=_WIDTH)).save(out / f"{name}-predicted.png")
        if isinstance(task, PointSegment | SemiSegment):
            said = predicted(task, frame)
            assert isinstance(said, Tensor)
            labels = translate(said, task.classes, LIDARSEG)
            write_ply(out / f"{name}-predicted.ply", frame.points.xyz_ego, SEMANTIC_PALETTE[labels.numpy()])
    return score(task, source, indices)


def prediction_pictures(
    task: Supervised, frame: Frame, box_classes: Classes | None, point_classes: Classes | None
) -> list[tuple[str, Picture]]:
    """What a task says of a frame, and what is true, with captions."""
    match task, predicted(task, frame):
        case Detect(head=head), Boxes() as boxes:
            return box_pictures(frame, boxes, head.grid, box_classes, head.classes)
        case MapSegment(head=head), MapRaster() as raster:
            return map_pictures(frame, raster.probability, head)
        case PointSegment(head=head), Tensor() as labels:
            assert isinstance(head.grid, BoxGrid)
            return point_pictures(frame, labels, head.grid, point_classes, head.classes)
        case SemiSegment(trunk=trunk, classes=classes), Tensor() as labels:
            return point_pictures(frame, labels, around(trunk.grid), point_classes, classes)
    raise ValueError(f"no picture shows what a {type(task).__name__} says")


def box_pictures(
    frame: Frame, found: Boxes, grid: BoxGrid, true_classes: Classes | None, found_classes: Classes, sure: float = SURE
) -> list[tuple[str, Picture]]:
    """True and found boxes side by side from above, and in every camera: true ones green, found ones orange."""
    assert found.score is not None
    bare = replace(frame, points=replace(frame.points, labels=None))
    sets = {f"found, surer than {sure:g}": as_detections(found.select(found.score >= sure), found_classes)}
    if frame.boxes is not None and true_classes is not None:
        known = frame.boxes.select(frame.boxes.centre.isfinite().all(-1))
        sets = {"true": as_detections(known, true_classes)} | sets
    shown = [(name, bird_picture(replace(bare, boxes=boxes), grid, magnified(grid))) for name, boxes in sets.items()]
    for camera in frame.cameras:
        image = picture(camera.image)
        for name, boxes in sets.items():
            image = with_boxes(image, boxes, camera, TRUE if name == "true" else SAID)
        shown.append((f"{camera.name}: {', '.join(sets)}", image))
    return shown


def as_detections(boxes: Boxes, classes: Classes) -> Boxes:
    """The boxes in the classes `DETECTION`, whose colours are known."""
    return replace(boxes, label=translate(boxes.label, classes, DETECTION))


def map_pictures(frame: Frame, probability: Tensor, head: MapHead) -> list[tuple[str, Picture]]:
    """Each layer: what is true, if that is known, beside its probability from dark blue to red."""
    truth = head.encode(collate([frame]))[0].float() if frame.maps is not None and frame.boxes is not None else None
    shown = []
    for layer, name in enumerate(head.names):
        if truth is not None:
            shown.append((f"{name}: true", upward(heat(truth[layer]))))
        shown.append((f"{name}: probability", upward(heat(probability[layer]))))
    return shown


def point_pictures(
    frame: Frame, labels: Int[Tensor, "p"], grid: BoxGrid, true_classes: Classes | None, found_classes: Classes
) -> list[tuple[str, Picture]]:
    """The points from above in the colours of their true and of their found classes."""
    sets = {"found": translate(labels, found_classes, LIDARSEG)}
    if frame.points.labels is not None and true_classes is not None:
        sets = {"true": translate(frame.points.labels, true_classes, LIDARSEG)} | sets
    bare = replace(frame, boxes=None, maps=None)
    views = {name: replace(bare, points=replace(frame.points, labels=each)) for name, each in sets.items()}
    # Small, to be enlarged: a point is then more than one pixel.
    return [(name, bird_picture(each, grid, magnified(grid, _WIDTH // 2))) for name, each in views.items()]


def magnified(grid: BoxGrid, wide: int = 2 * _WIDTH) -> int:
    """Pixels along a cell that make a picture about so wide."""
    return max(1, round(wide / grid.count[1]))
