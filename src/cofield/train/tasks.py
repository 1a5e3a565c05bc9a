"""What is trained: each task turns a batch into named terms."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Generic, TypeVar

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from cofield.classes import likely_attributes
from cofield.draw import Key
from cofield.frame import Batch, Boxes, Hidden
from cofield.grid import Volume
from cofield.metrics.iou import MapIoU, PointIoU
from cofield.metrics.nuscenes import MOST_BOXES, RANGES, NuScenesScore
from cofield.metrics.render import RenderScore
from cofield.models.centerpoint import CenterPoint
from cofield.models.field import Background, Field, light
from cofield.models.mapseg import MapHead
from cofield.models.mask import Masking, hide
from cofield.models.pointseg import PointHead
from cofield.models.render import Seen, render
from cofield.models.transfusion import TransFusion
from cofield.models.trunk import Trunk
from cofield.train.config import Optim
from cofield.train.losses import Term, Weights, compare, over_processes, total
from cofield.train.schedule import one_cycle
from cofield.train.views import Sampling, View, above_view, beam_view, camera_view

MEASURE = "measure"  # the seed of all draws when measuring: every run is measured on the same pieces


Score = TypeVar("Score")


class Pretrain(lightning.LightningModule):
    """Hide, encode, render, compare. Nothing here reads a label."""

    def __init__(
        self,
        trunk: Trunk,
        field: Field,
        background: Background | None,
        masking: Masking,
        sampling: Sampling,
        weights: Weights,
        optim: Optim,
    ) -> None:
        super().__init__()
        self.trunk, self.field, self.background = trunk, field, background
        self.masking, self.sampling, self.weights, self.optim = masking, sampling, weights, optim
        self.score = RenderScore()

    def forward(self, batch: Batch, seed: Key) -> tuple[dict[str, Term], list[tuple[View, Seen]]]:
        """The terms of a batch, and the views they come from; the seed decides what is hidden and where rays go."""
        hidden = hide(batch, self.masking, seed)
        grid, weight = self.trunk.grid, self.weights.terms()
        views: list[View] = []
        if weight["colour"] or weight["depth"]:
            views.append(camera_view(batch, hidden, self.sampling, grid, seed))
        if weight["range"] or weight["free"]:
            views.append(beam_view(batch, hidden, self.sampling, grid, seed))
        if weight["height"] or weight["above_colour"]:
            views.append(above_view(batch, hidden, self.sampling, grid, seed))
        volume, glow = self.encode(batch, hidden)
        seen = [(view, self.see(volume, glow, view)) for view in views]
        terms: dict[str, Term] = {}
        for view, what in seen:
            terms |= compare(view, what, self.weights)
        return terms, seen

    def encode(self, batch: Batch, hidden: Hidden | None) -> tuple[Volume, Tensor | None]:
        """The field's volume, and the light of each camera, of what may be seen of a batch."""
        if self.background is None:
            return self.trunk(batch, hidden), None
        return self.trunk(batch, hidden), light(batch if hidden is None else batch.visible(hidden), hidden)

    def see(self, volume: Volume, glow: Tensor | None, view: View) -> Seen:
        """What a view's rays see; cameras have the background behind what is not opaque, beams and columns nothing."""
        seen = render(self.field, volume, view.rays, view.jitter)
        if view.camera is None or view.place is None or self.background is None or glow is None:
            return seen
        sky = self.background(view.rays.direction, view.place, glow.flatten(0, 1)[view.camera])
        colour = seen.channels["colour"] + (1 - seen.opacity)[:, None] * sky
        return replace(seen, channels=seen.channels | {"colour": colour})

    def training_step(self, batch: Batch, index: int) -> Tensor:
        terms = self.learn(batch)
        loss = total(terms, self.weights)
        values = {"loss": loss, **{name: term.mean for name, term in terms.items()}}
        self.log_dict(values, batch_size=len(batch), sync_dist=self.trainer.world_size > 1)
        return loss

    def objective(self, batch: Batch) -> Tensor:
        """What a step makes smaller."""
        return total(self.learn(batch), self.weights)

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

    trunk: Trunk
    optim: Optim

    def __init__(self, trunk: Trunk, optim: Optim) -> None:
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


class Detect(Supervised[NuScenesScore]):
    """Boxes of the nuScenes classes, scored as nuScenes does, as far as the head's cells reach."""

    def __init__(self, trunk: Trunk, head: CenterPoint | TransFusion, optim: Optim) -> None:
        super().__init__(trunk, optim)
        self.head = head

    def forward(self, batch: Batch) -> tuple[Boxes, ...]:
        """The boxes of every frame, surest first."""
        return self.head.decode(self.head(self.trunk(batch)))

    def objective(self, batch: Batch) -> Tensor:
        # Each kind of head reads the truth that it wrote itself.
        return self.head.loss(self.head(self.trunk(batch)), self.head.encode(batch))  # pyright: ignore[reportArgumentType]

    def fresh_score(self) -> NuScenesScore:
        grid = self.head.grid
        reach = min(abs(each) for each in (*grid.lower[:2], *grid.upper[:2]))
        return NuScenesScore({name: min(limit, reach) for name, limit in RANGES.items()})

    def count(self, score: NuScenesScore, batch: Batch) -> None:
        for token, found, true in zip(batch.tokens, self(batch), batch.boxes, strict=True):
            if true is None:
                raise ValueError(f"{token} has no boxes to score against")
            told = found.select(torch.arange(min(len(found), MOST_BOXES), device=found.label.device))
            told = replace(told, attribute=likely_attributes(told.label, told.velocity))
            score.add(token, told.to("cpu"), true.to("cpu"))

    def told(self, score: NuScenesScore) -> dict[str, float]:
        return score.compute().summary()


class PointSegment(Supervised[PointIoU]):
    """The class of every point."""

    def __init__(self, trunk: Trunk, head: PointHead, optim: Optim) -> None:
        super().__init__(trunk, optim)
        self.head = head

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


def one_cycle_adamw(module: torch.nn.Module, optim: Optim) -> OptimizerLRSchedulerConfig:
    """AdamW over all weights, its rate up and down once over the run."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=optim.rate, weight_decay=optim.weight_decay)
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
