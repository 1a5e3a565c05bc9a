"""What is trained: each task turns a batch into named terms."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from cofield.classes import likely_attributes
from cofield.data.export_kitti import in_image
from cofield.draw import Key
from cofield.frame import Batch, Boxes, Camera, Hidden
from cofield.grid import Volume
from cofield.metrics.iou import MapIoU, PointIoU
from cofield.metrics.kitti import KittiAP
from cofield.metrics.nuscenes import MOST_BOXES, RANGES, NuScenesScore
from cofield.metrics.render import RenderScore
from cofield.models.centerpoint import CenterPoint
from cofield.models.cylinder import Cylinder3D
from cofield.models.field import Background, Field, light
from cofield.models.fields import DistanceField, FrustumField
from cofield.models.lift import DepthBins, Frusta
from cofield.models.mapseg import MapHead
from cofield.models.mask import Masking, hide
from cofield.models.pointseg import PointHead
from cofield.models.render import Seen, look, look_twice, render
from cofield.models.sampler import even, guided, occupancy, skipping
from cofield.models.transfusion import TransFusion
from cofield.models.trunk import Trunk
from cofield.train.config import Optim
from cofield.train.losses import Balance, Term, Weights, compare, eikonal_term, over_processes, total
from cofield.train.schedule import one_cycle
from cofield.train.views import Sampling, View, above_view, beam_view, camera_view

MEASURE = "measure"  # the seed of all draws when measuring: every run is measured on the same pieces


EMPTY = 0.2  # what a cell without visible points counts of one with, to the skipping sampler: it may be a hidden one
Sampler = Literal["even", "guided", "twice", "skipping"]
Score = TypeVar("Score")


@dataclass(frozen=True)
class Scene:
    """What a batch is rendered from.

    Args:
        light: of each camera, for what lies behind the field; None where nothing is painted.
        occupied: the cells that visible points are in or beside; None where no sampler asks.
        frusta: what each camera knew alone; None without cameras.
    """

    volume: Volume
    light: Tensor | None = None
    occupied: Tensor | None = None
    frusta: Frusta | None = None


class Pretrain(lightning.LightningModule):
    """Hide, encode, render, compare. Nothing here reads a label.

    Args:
        trunk: of any sensors on a grid of boxes, or of LiDAR alone on a cylinder.
        frustum: what camera rays are rendered from, in place of the field and its volume.
    """

    def __init__(
        self,
        trunk: Trunk | Cylinder3D,
        field: Field | DistanceField,
        background: Background | None,
        masking: Masking,
        sampling: Sampling,
        weights: Weights,
        optim: Optim,
        sampler: Sampler = "even",
        frustum: FrustumField | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.field, self.background, self.frustum = trunk, field, background, frustum
        self.masking, self.sampling, self.weights, self.optim = masking, sampling, weights, optim
        self.sampler: Sampler = sampler
        self.balance = Balance(weights) if weights.balance == "learned" else None
        self.score = RenderScore()

    def forward(self, batch: Batch, seed: Key) -> tuple[dict[str, Term], list[tuple[View, Seen]]]:
        """The terms of a batch, and the views they come from; the seed decides what is hidden and where rays go."""
        hidden = hide(batch, self.masking, seed, self.trunk.grid)
        views = self.views(batch, hidden, seed)
        scene = self.encode(batch, hidden, seed if self.training else None)
        seen = [(view, self.see(scene, view)) for view in views]
        terms: dict[str, Term] = {}
        for view, what in seen:
            terms |= compare(view, what, self.weights)
        if self.weights.eikonal and isinstance(self.field, DistanceField):
            excess = [self.field.eikonal(scene.volume, view.rays, even(view.rays, view.jitter)) for view in views]
            terms["eikonal"] = eikonal_term(torch.cat(excess))
        return terms, seen

    def views(self, batch: Batch, hidden: Hidden, seed: Key) -> list[View]:
        """The rays of a step and what they should see, of those views that a term asks for."""
        grid, weight = self.trunk.grid, self.weights.terms()
        views: list[View] = []
        if weight["colour"] or weight["depth"]:
            views.append(camera_view(batch, hidden, self.sampling, grid, seed, self.bins))
        if weight["range"] or weight["free"]:
            views.append(beam_view(batch, hidden, self.sampling, grid, seed))
        if weight["height"] or weight["above_colour"]:
            views.append(above_view(batch, hidden, self.sampling, grid, seed))
        return views

    def encode(self, batch: Batch, hidden: Hidden | None, seed: Key | None = None) -> Scene:
        """What a batch is rendered from: of nothing but what may be seen of it.

        Args:
            seed: of the encoders' own draws, which are off without it.
        """
        seen = batch if hidden is None else batch.visible(hidden)
        frusta = None
        if isinstance(self.trunk, Cylinder3D):
            volume = self.trunk(batch, hidden)
        else:
            volume, frusta = self.trunk.with_frusta(batch, hidden, seed)
        occupied = None
        if self.sampler == "skipping":
            occupied = occupancy(seen.points.xyz_ego, seen.sample, volume.grid, len(batch))
        return Scene(volume, None if self.background is None else light(seen, hidden), occupied, frusta)

    @property
    def bins(self) -> DepthBins | None:
        """The depths that camera rays are bound to; None where they cross the whole grid."""
        if self.frustum is None or isinstance(self.trunk, Cylinder3D) or self.trunk.camera is None:
            return None
        return self.trunk.camera.lift.bins

    def see(self, scene: Scene, view: View) -> Seen:
        """What a view's rays see; cameras have the background behind what is not opaque, beams and columns nothing."""
        seen = self._look(scene, view)
        if view.camera is None or view.place is None or self.background is None or scene.light is None:
            return seen
        sky = self.background(view.rays.direction, view.place, scene.light.flatten(0, 1)[view.camera])
        colour = seen.channels["colour"] + (1 - seen.opacity)[:, None] * sky
        return replace(seen, channels=seen.channels | {"colour": colour})

    def training_step(self, batch: Batch, index: int) -> Tensor:
        terms = self.learn(batch)
        loss = self.weighed(terms)
        values = {"loss": loss, **{name: term.mean for name, term in terms.items()}}
        self.log_dict(values, batch_size=len(batch), sync_dist=self.trainer.world_size > 1)
        return loss

    def _look(self, scene: Scene, view: View) -> Seen:
        """The field along a view's rays, at samples that the sampler chooses."""
        field, source = self.field, scene.volume
        if self.frustum is not None and view.camera is not None:
            assert scene.frusta is not None
            field, source = self.frustum, scene.frusta
        match self.sampler:
            case "guided" if self.training:
                return look(field, source, view.rays, guided(view.rays, view.jitter, view.known()))
            case "skipping" if scene.occupied is not None:
                steps = skipping(view.rays, view.jitter, scene.occupied, scene.volume.grid, floor=EMPTY)
                return look(field, source, view.rays, steps)
            case "twice":
                return look_twice(field, source, view.rays, view.jitter, first=view.jitter.shape[1] // 2)
            case _:
                return render(field, source, view.rays, view.jitter)

    def objective(self, batch: Batch) -> Tensor:
        """What a step makes smaller."""
        return self.weighed(self.learn(batch))

    def weighed(self, terms: dict[str, Term]) -> Tensor:
        """The terms' sum, by fixed weights or by learned uncertainties."""
        return total(terms, self.weights) if self.balance is None else self.balance(terms)

    def learn(self, batch: Batch) -> dict[str, Term]:
        """The terms that a step learns from, alike over how many processes it is spread."""
        return over_processes(self(batch, self.optim.seed)[0])

    def on_validation_epoch_start(self) -> None:
        self.score.reset()

    def validation_step(self, batch: Batch, index: int) -> None:
        terms, views = self(batch, MEASURE)
        self.score.add_terms({name: (float(term.total), float(term.count)) for name, term in terms.items()})
        for view, seen in views:
            score_view(self.score, batch, view, seen)

    def on_validation_epoch_end(self) -> None:
        values = self.score.compute()
        weight = self.weights.terms()
        values["loss"] = sum(weight[name] * values[name] for name in weight if name in values)
        self.log_dict({f"held_out/{name}": value for name, value in values.items()})

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return one_cycle_adamw(self, self.optim)


class Supervised(lightning.LightningModule, ABC, Generic[Score]):
    """Trunk and head learn from labelled frames; what differs between tasks is the head and how it is scored."""

    trunk: Trunk | Cylinder3D
    optim: Optim

    def __init__(self, trunk: Trunk | Cylinder3D, optim: Optim) -> None:
        super().__init__()
        self.trunk, self.optim = trunk, optim
        self.latest: dict[str, float] = {}

    @abstractmethod
    def objective(self, batch: Batch) -> Tensor:
        """How wrong the head is about a batch."""

    @abstractmethod
    def fresh_score(self) -> Score:
        """What predictions are counted in."""

    @abstractmethod
    def count(self, score: Score, batch: Batch) -> None:
        """Add a batch's predictions to the score."""

    @abstractmethod
    def told(self, score: Score) -> dict[str, float]:
        """Every measured value by its name."""

    def training_step(self, batch: Batch, index: int) -> Tensor:
        loss = self.objective(batch)
        self.log("loss", loss, batch_size=len(batch), sync_dist=self.trainer.world_size > 1)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.score = self.fresh_score()

    def validation_step(self, batch: Batch, index: int) -> None:
        self.count(self.score, batch)

    def on_validation_epoch_end(self) -> None:
        self.latest = self.told(self.score)
        self.log_dict({f"held_out/{name}": value for name, value in self.latest.items()})

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return one_cycle_adamw(self, self.optim)


class MapSegment(Supervised[MapIoU]):
    """Map layers and occupied ground."""

    def __init__(self, trunk: Trunk, head: MapHead, optim: Optim) -> None:
        super().__init__(trunk, optim)
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        """The probability of every layer in every cell."""
        return self.head.decode(self.head(self.trunk(batch)))

    def objective(self, batch: Batch) -> Tensor:
        return self.head.loss(self.head(self.trunk(batch)), self.head.encode(batch))

    def fresh_score(self) -> MapIoU:
        return MapIoU(self.head.names)

    def count(self, score: MapIoU, batch: Batch) -> None:
        score.add(self(batch), self.head.encode(batch))

    def told(self, score: MapIoU) -> dict[str, float]:
        return score.compute()


class Detect(Supervised[Score]):
    """Boxes."""

    def __init__(self, trunk: Trunk, head: CenterPoint | TransFusion, optim: Optim) -> None:
        super().__init__(trunk, optim)
        self.head = head

    def forward(self, batch: Batch) -> tuple[Boxes, ...]:
        """The boxes of every frame, surest first."""
        return self.head.decode(self.head(self.trunk(batch)))

    def objective(self, batch: Batch) -> Tensor:
        # Each kind of head reads the truth that it wrote itself.
        return self.head.loss(self.head(self.trunk(batch)), self.head.encode(batch))  # pyright: ignore[reportArgumentType]


class NuScenesDetect(Detect[NuScenesScore]):
    """Boxes of the nuScenes classes, scored as nuScenes does, as far as the head's cells reach."""

    def fresh_score(self) -> NuScenesScore:
        grid = self.head.grid
        reach = min(abs(each) for each in (*grid.lower[:2], *grid.upper[:2]))
        return NuScenesScore({name: min(limit, reach) for name, limit in RANGES.items()})

    def count(self, score: NuScenesScore, batch: Batch) -> None:
        for token, found, true in zip(batch.tokens, self(batch), true_boxes(batch), strict=True):
            told = found.select(torch.arange(min(len(found), MOST_BOXES), device=found.label.device))
            told = replace(told, attribute=likely_attributes(told.label, told.velocity))
            score.add(token, told.to("cpu"), true.to("cpu"))

    def told(self, score: NuScenesScore) -> dict[str, float]:
        return score.compute().summary()


class KittiDetect(Detect[KittiAP]):
    """Boxes of KITTI's classes, scored as KITTI does.

    KITTI labels what its camera sees, without a velocity. So points that no camera sees are left out, boxes that the
    first camera does not see are not scored, and velocities are unknown.
    """

    def forward(self, batch: Batch) -> tuple[Boxes, ...]:
        found = super().forward(in_view(batch))
        return tuple(replace(boxes, velocity=torch.full_like(boxes.velocity, torch.nan)) for boxes in found)

    def objective(self, batch: Batch) -> Tensor:
        return super().objective(in_view(batch))

    def fresh_score(self) -> KittiAP:
        return KittiAP()

    def count(self, score: KittiAP, batch: Batch) -> None:
        for frame, (found, true) in enumerate(zip(self(batch), true_boxes(batch), strict=True)):
            seen = in_image(found.to("cpu"), first_camera(batch, frame))
            score.add(batch.tokens[frame], seen, true.to("cpu"))

    def told(self, score: KittiAP) -> dict[str, float]:
        return score.compute().summary()


class PointSegment(Supervised[PointIoU]):
    """The class of every point."""

    def __init__(self, trunk: Trunk, head: PointHead, optim: Optim) -> None:
        super().__init__(trunk, optim)
        self.head, self.classes = head, head.classes

    def forward(self, batch: Batch) -> Tensor:
        """The label of every point, in the order of the batch."""
        return self.head.decode(self.head(self.trunk(batch), batch))

    def objective(self, batch: Batch) -> Tensor:
        return self.head.loss(self.head(self.trunk(batch), batch), self.head.encode(batch))

    def fresh_score(self) -> PointIoU:
        return PointIoU(self.head.classes.names)

    def count(self, score: PointIoU, batch: Batch) -> None:
        # Only the keyframe's points are scored: those of earlier sweeps are there to help.
        now = batch.points.age == 0
        score.add(self(batch)[now].cpu(), self.head.encode(batch)[now].cpu(), batch.points.xyz_ego[now].cpu())

    def told(self, score: PointIoU) -> dict[str, float]:
        return score.compute()


def true_boxes(batch: Batch) -> tuple[Boxes, ...]:
    """The boxes of every frame; each must have been labelled."""
    known = tuple(boxes for boxes in batch.boxes if boxes is not None)
    if len(known) < len(batch):
        names = [token for token, boxes in zip(batch.tokens, batch.boxes, strict=True) if boxes is None]
        raise ValueError(f"{', '.join(names)}: no boxes to score against")
    return known


def in_view(batch: Batch) -> Batch:
    """The batch with the points that fall on some image; all of them, if there are no images."""
    if not batch.images.shape[1]:
        return batch
    seen = torch.zeros_like(batch.sample, dtype=torch.bool)
    seen[batch.seen_points().point] = True
    return batch.select_points(seen)


def first_camera(batch: Batch, frame: int) -> Camera:
    """A frame's first camera, without the padding of its image."""
    if not batch.images.shape[1]:
        raise ValueError(f"{batch.tokens[frame]} has no camera; KITTI scores what its camera sees")
    valid = batch.valid[frame, 0]
    image = batch.images[frame, 0, :, : int(valid.any(1).sum()), : int(valid.any(0).sum())]
    return Camera("first", image.cpu(), batch.pix_T_cam[frame, 0].cpu(), batch.cam_T_ego[frame, 0].cpu(), 0.0)


def one_cycle_adamw(module: torch.nn.Module, optim: Optim) -> OptimizerLRSchedulerConfig:
    """AdamW over all weights, its rate up and down once over the run."""
    # Uncertainties are no weights of a network: pulling them to zero would undo what they learn.
    free = [weight for name, weight in module.named_parameters() if name.startswith("balance.")]
    decayed = [weight for name, weight in module.named_parameters() if not name.startswith("balance.")]
    groups = [{"params": decayed}, *([{"params": free, "weight_decay": 0.0}] if free else [])]
    optimizer = torch.optim.AdamW(groups, lr=optim.rate, weight_decay=optim.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step / optim.steps, optim.warmup))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def score_view(score: RenderScore, batch: Batch, view: View, seen: Seen) -> None:
    """Add what a view shows of hidden beams and hidden pixels to a score."""
    if "range" in view.targets:
        target = view.targets["range"]
        which = target.valid & target.hidden
        score.add_ranges(seen.range[which], target.value[which])
    if view.camera is not None and "colour" in seen.channels:
        target = view.targets["colour"]
        which = target.valid & target.hidden
        mean = batch.images.flatten(0, 1).mean((-2, -1))[view.camera]
        score.add_colours(seen.channels["colour"][which], target.value[which], mean[which])
