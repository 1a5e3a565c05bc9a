"""A trained run as a function of a frame."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cofield.frame import Frame, collate
from cofield.grid import Grid, Volume
from cofield.models.mapseg import LAYERS
from cofield.train.config import Finetuning
from cofield.train.run import open_finetuned, open_run, run_config
from cofield.train.tasks import MapSegment, Supervised


@dataclass(frozen=True)
class MapPrediction:
    """How probable each layer is in each cell: `probability[m, y, x]` of `names[m]` on `grid`."""

    probability: Float[Tensor, "m y x"]
    names: tuple[str, ...]
    grid: Grid

    def __getitem__(self, name: str) -> Float[Tensor, "y x"]:
        """One layer by name."""
        if name not in self.names:
            raise KeyError(f"no layer is called {name!r}; there is {', '.join(self.names)}")
        return self.probability[self.names.index(name)]


def predicted(task: Supervised, frame: Frame) -> MapPrediction:
    """What a fine-tuned task says of one frame."""
    match task:
        case MapSegment():
            return MapPrediction(task(collate([frame]))[0], LAYERS, task.head.grid)
    raise ValueError(f"a {type(task).__name__} does not predict single frames")


def load(run: Path | str) -> Callable[[Frame], MapPrediction | Volume]:
    """What a run has learned to say of a frame: a fine-tuned one its map, a pre-trained one the trunk's volume."""
    folder = Path(run)
    if isinstance(run_config(folder), Finetuning):
        _, task = open_finetuned(folder)
        return torch.no_grad()(lambda frame: predicted(task, frame))
    _, painter = open_run(folder)

    @torch.no_grad()
    def predict_volume(frame: Frame) -> Volume:
        return painter.trunk(collate([frame]))

    return predict_volume
