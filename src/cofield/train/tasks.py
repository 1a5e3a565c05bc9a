"""What is trained: each task turns a batch into named terms."""

from dataclasses import replace

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from cofield.draw import Key
from cofield.frame import Batch, Hidden
from cofield.metrics.render import RenderScore
from cofield.models.field import Background, Field, light
from cofield.models.mask import Masking, hide
from cofield.models.render import Seen, render
from cofield.models.trunk import Trunk
from cofield.train.config import Optim
from cofield.train.losses import Term, Weights, compare, total
from cofield.train.schedule import one_cycle
from cofield.train.views import Sampling, View, above_view, beam_view, camera_view

MEASURE = "measure"  # the seed of all draws when measuring: every run is measured on the same pieces


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
        seen = self.look(batch, hidden, views)
        terms: dict[str, Term] = {}
        for view, what in zip(views, seen, strict=True):
            terms |= compare(view, what, self.weights)
        return terms, list(zip(views, seen, strict=True))

    def look(self, batch: Batch, hidden: Hidden | None, views: list[View]) -> list[Seen]:
        """What each view sees of the field that the visible part of the batch makes."""
        volume = self.trunk(batch, hidden)
        seen = [render(self.field, volume, view.rays, view.jitter) for view in views]
        if self.background is None:
            return seen
        glow = light(batch if hidden is None else batch.visible(hidden), hidden)
        return [self._before_sky(what, view, glow) for what, view in zip(seen, views, strict=True)]

    def _before_sky(self, seen: Seen, view: View, glow: Tensor) -> Seen:
        """Cameras see the background through what is not opaque; beams and columns do not."""
        if view.camera is None or self.background is None:
            return seen
        sky = self.background(view.rays.direction, glow.flatten(0, 1)[view.camera])
        colour = seen.channels["colour"] + (1 - seen.opacity)[:, None] * sky
        return replace(seen, channels=seen.channels | {"colour": colour})

    def training_step(self, batch: Batch, index: int) -> Tensor:
        terms, _ = self(batch, self.optim.seed)
        loss = total(terms, self.weights)
        self.log_dict({"loss": loss, **{name: term.mean for name, term in terms.items()}}, batch_size=len(batch))
        return loss

    def on_validation_epoch_start(self) -> None:
        self.score.reset()

    def validation_step(self, batch: Batch, index: int) -> None:
        terms, views = self(batch, MEASURE)
        self.score.add_terms({name: (float(term.total), float(term.count)) for name, term in terms.items()})
        for view, seen in views:
            if "range" in view.targets:
                target = view.targets["range"]
                which = target.valid & target.hidden
                self.score.add_ranges(seen.range[which], target.value[which])
            if "colour" in view.targets and view.camera is not None and "colour" in seen.channels:
                target = view.targets["colour"]
                mean = batch.images.flatten(0, 1).mean((-2, -1))[view.camera]
                which = target.hidden
                self.score.add_colours(seen.channels["colour"][which], target.value[which], mean[which])

    def on_validation_epoch_end(self) -> None:
        values = self.score.compute()
        weight = self.weights.terms()
        values["loss"] = sum(weight[name] * values[name] for name in weight if name in values)
        self.log_dict({f"held_out/{name}": value for name, value in values.items()})

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.optim.rate, weight_decay=self.optim.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: one_cycle(step / self.optim.steps, self.optim.warmup)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
