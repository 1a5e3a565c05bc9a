"""A fine-tuned model as a program of tensors: one file that torch runs, also where there is no Cofield.

The program takes one frame as named tensors, with as many points as there are, and gives named tensors. Beside it in
the file is its `Card`, as JSON.
"""

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from cofield.classes import KITTI
from cofield.data import open_source
from cofield.data.augment import Augment
from cofield.data.submission import MapRaster
from cofield.frame import Batch, Boxes, Frame, Points, collate
from cofield.grid import BoxGrid, grid_from_plain
from cofield.models.blocks import compute_in
from cofield.models.centerpoint import CenterPoint
from cofield.models.cylinder import Cylinder3D
from cofield.models.heatmap import Candidates
from cofield.models.mapseg import MapHead
from cofield.models.pointseg import PointHead
from cofield.models.transfusion import TransFusion
from cofield.models.trunk import Trunk
from cofield.models.voxelnet import VoxelNet
from cofield.train.checkpoint import write_whole
from cofield.train.run import open_finetuned
from cofield.train.semi import SemiSegment
from cofield.train.tasks import Detect, KittiDetect, MapSegment, PointSegment, Supervised, in_view

Prediction = MapRaster | Boxes | Int[Tensor, "p"]
Head = MapHead | CenterPoint | TransFusion | PointHead

FORMAT, CARD = "cofield-program/1", "cofield.json"
FEWEST = 2  # points: of none or one a traced program would take a path of its own
FAR = 1e6  # metres: where points are that fill up to that; no grid and no image holds them


@dataclass(frozen=True)
class Card:
    """What a program takes and what its numbers mean.

    Args:
        space, names: of the map's layers, or of the classes that labels count.
        images: how many it takes, their height and width; None if it takes none.
        resize, size: what made the source's images so: scaled, then cropped to height and width from below and in the
            middle.
        in_view: only points that fall on some image are given to it.
        raster: the map's cells.
        overlap, least_score: of candidate boxes that share a `rival`, one that overlaps a surer one by more is
            dropped, and so is every one that scores less.
    """

    task: Literal["map", "detect", "points"]
    space: str
    names: tuple[str, ...]
    images: tuple[int, int, int] | None = None
    resize: float = 1.0
    size: tuple[int, int] | None = None
    in_view: bool = False
    raster: dict[str, object] | None = None
    overlap: float = 1.0
    least_score: float = 0.0

    def still(self, frame: Frame) -> Frame:
        """The frame with images as the program takes them."""
        return Augment(resize=(self.resize, self.resize), size=self.size, centred=True)(frame, 0)

    def tensors(self, frame: Frame) -> dict[str, Tensor]:
        """A frame as the program takes it."""
        batch = collate([self.still(frame)])
        batch = in_view(batch) if self.in_view else batch
        points, missing = batch.points, max(0, FEWEST - len(batch.points))
        given = {
            "xyz_ego": F.pad(points.xyz_ego, (0, 0, 0, missing), value=FAR),
            "intensity": F.pad(points.intensity, (0, missing)),
            "age": F.pad(points.age, (0, missing)),
        }
        if self.images is None:
            return given
        count, _, height, width = batch.images.shape[1:]
        if (count, height, width) != self.images:
            wanted, found = ("{} of {}×{}".format(*each) for each in (self.images, (count, height, width)))
            raise ValueError(
                f"the program takes images, {wanted}; {frame.token} has {found}: export it with such a frame"
            )
        cameras = {"images": batch.images, "valid": batch.valid, "pix_T_cam": batch.pix_T_cam}
        return given | {name: each[0] for name, each in (cameras | {"cam_T_ego": batch.cam_T_ego}).items()}

    def prediction(self, said: dict[str, Tensor], frame: Frame) -> Prediction:
        """What the program said of a frame, as `cofield.load` gives it of a run."""
        match self.task:
            case "map":
                grid = grid_from_plain(self.raster or {})
                assert isinstance(grid, BoxGrid)
                return MapRaster(frame.token, said["probability"], self.names, grid)
            case "detect":
                unknown = torch.full_like(said["centre"][:, :2], torch.nan)
                columns = {name: said[name] for name in ("centre", "size", "yaw", "label", "score")}
                boxes = Boxes(velocity=said.get("velocity", unknown), **columns)
                every = Candidates(boxes, torch.zeros_like(boxes.label), said["rival"])
                return every.kept(1, self.overlap, self.least_score)[0]
            case "points":
                return said["logits"][: len(frame.points)].argmax(-1)


class Program(nn.Module):
    """One frame as plain tensors to what trunk and head say of it."""

    def __init__(self, trunk: Trunk, head: Head) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(
        self,
        xyz_ego: Float[Tensor, "p 3"],
        intensity: Float[Tensor, "p"],
        age: Float[Tensor, "p"],
        images: Float[Tensor, "n 3 h w"] | None = None,
        valid: Bool[Tensor, "n h w"] | None = None,
        pix_T_cam: Float[Tensor, "n 4 4"] | None = None,
        cam_T_ego: Float[Tensor, "n 4 4"] | None = None,
    ) -> dict[str, Tensor]:
        """Probabilities, candidate boxes or logits by name, of one frame and so without a batch axis."""
        batch = _batch(
            Points(xyz_ego, intensity, age, torch.zeros_like(age).long()), images, valid, pix_T_cam, cam_T_ego
        )
        volume = self.trunk(batch)
        match self.head:
            case MapHead():
                return {"probability": self.head.decode(self.head(volume))[0]}
            case PointHead():
                return {"logits": self.head(volume, batch)}
            case CenterPoint():
                return _columns(self.head.candidates(self.head(volume)), self.head.classes != KITTI)
            case TransFusion():
                return _columns(self.head.candidates(self.head(volume)), self.head.classes != KITTI)


def export_model(run: Path | str, path: Path | str, frame: Frame | None = None) -> Card:
    """Write a fine-tuned run as a program, in fp32; what it takes and gives.

    Args:
        frame: one with as many images as all, and of their size; the first held-out one of the run's source if none is
            given. Its values do not matter.
    """
    config, task = open_finetuned(Path(run))
    if frame is None:
        data = config.data
        frame = open_source(data.source, data.root, "val", data.sweeps)[0]
    return write_program(task, Path(path), frame, config.augment.evaluation())


def write_program(task: Supervised, path: Path, frame: Frame, still: Augment) -> Card:
    """Write a task as a program.

    Args:
        still: what is done to every frame before the task sees it.
    """
    program, card = traced(task, frame, still)
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer, extra_files={CARD: json.dumps({"format": FORMAT} | asdict(card), indent=1)})
    write_whole(path, buffer.getvalue())
    return card


def traced(task: Supervised, frame: Frame, still: Augment) -> tuple[ExportedProgram, Card]:
    """The program of a task, and its card."""
    model = program_of(task)
    compute_in(model, None)
    card = card_of(task, model, frame, still)
    given = card.tensors(frame)
    points = Dim("points", min=FEWEST)
    shapes = {name: {0: points} if name in ("xyz_ego", "intensity", "age") else None for name in given}
    with torch.no_grad(), _quiet():
        return export(model.eval(), (), given, dynamic_shapes=shapes, strict=False), card


def program_of(task: Supervised) -> Program:
    """The part of a task that is a program; refused if that can be none."""
    if not isinstance(task, MapSegment | Detect | PointSegment | SemiSegment):
        raise ValueError(f"a {type(task).__name__} does not predict single frames")
    trunk, head = task.trunk, task.head
    sparse = trunk if isinstance(trunk, Cylinder3D) else trunk.lidar
    if isinstance(sparse, Cylinder3D | VoxelNet) or not isinstance(trunk, Trunk) or not isinstance(head, Head):
        raise ValueError(
            f"a {type(sparse).__name__} cannot be exported: which voxels its sparse convolutions join is found anew in "
            "every frame, by kernels of ours; fine-tune with model.lidar pillars, on a grid of boxes"
        )
    return Program(trunk, head)


def card_of(task: Supervised, model: Program, frame: Frame, still: Augment) -> Card:
    """What the program of a task takes and gives."""
    head, images = model.head, None
    if model.trunk.camera is not None:
        shape = collate([still(frame, 0)]).images.shape
        images = (shape[1], shape[3], shape[4])
    taken = {"images": images, "resize": sum(still.resize) / 2, "size": still.size}
    match head:
        case MapHead():
            return Card("map", "map-layers", head.names, raster=head.grid.to_plain(), **taken)
        case PointHead():
            return Card("points", head.classes.space, head.classes.names, **taken)
        case CenterPoint() | TransFusion():
            fate = {"overlap": head.overlap, "least_score": head.least_score}
            kitti = isinstance(task, KittiDetect)
            return Card("detect", head.classes.space, head.classes.names, in_view=kitti, **fate, **taken)


def read_program(path: Path) -> tuple[ExportedProgram, Card]:
    """A file that `export_model` wrote."""
    files = {CARD: ""}
    try:
        program = torch.export.load(path, extra_files=files)
        values = json.loads(files[CARD])
    except (OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError) as problem:
        raise ValueError(f"{path} is no program of ours ({problem}); cofield export-model writes one") from problem
    if values.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is no {FORMAT} file; export the run again")
    return program, TypeAdapter(Card).validate_python(values)


def load_program(path: Path) -> Callable[[Frame], Prediction]:
    """A program as a function of a frame, as `cofield.load` makes one of a run."""
    program, card = read_program(path)
    run = program.module()

    @torch.no_grad()
    def predict(frame: Frame) -> Prediction:
        return card.prediction(run(**card.tensors(frame)), frame)

    return predict


def _batch(
    points: Points, images: Tensor | None, valid: Tensor | None, pix_T_cam: Tensor | None, cam_T_ego: Tensor | None
) -> Batch:
    """The batch of one frame; without images of none."""
    sample = torch.zeros_like(points.origin)
    none = points.xyz_ego.new_zeros(0, 4, 4)
    return Batch(
        images=points.xyz_ego.new_zeros(1, 0, 3, 0, 0) if images is None else images[None],
        valid=sample.new_zeros(1, 0, 0, 0).bool() if valid is None else valid[None],
        pix_T_cam=(none if pix_T_cam is None else pix_T_cam)[None],
        cam_T_ego=(none if cam_T_ego is None else cam_T_ego)[None],
        points=points,
        sample=sample,
        offsets=F.pad((sample + 1).sum()[None], (1, 0)),
        origins_ego=points.xyz_ego.new_zeros(1, 3),
        tokens=("",),
        epochs=(0,),
        boxes=(None,),
    )


def _columns(found: Candidates, moving: bool) -> dict[str, Tensor]:
    """Candidates by name; `moving` if the head has learned velocities."""
    names = ["centre", "size", "yaw", "label", "score", *(["velocity"] if moving else [])]
    return {name: getattr(found.boxes, name) for name in names} | {"rival": found.rival}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that torch gives itself about its own trees."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*")
        yield
