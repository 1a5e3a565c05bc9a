"""Named terms and their weighted sum."""

from dataclasses import dataclass, fields

import torch
import torch.distributed as distributed
from jaxtyping import Float
from torch import Tensor

from cofield.models.render import Seen
from cofield.train.views import Target, View


@dataclass(frozen=True)
class Weights:
    """What each term counts; a term of weight 0 is neither computed nor logged.

    The released code's depth weights vanish after one step. These stay what they are (ours, calibrated so that
    at the start every term but `free` contributes alike).

    Args:
        colour: squared error of camera colour.
        depth: error of the depth seen by cameras.
        range: error of the range along beams.
        free: opacity of beams whose return lies beyond the grid.
        height: error of the height seen from above, in metres.
        above_colour: squared error of the colour seen from above.
        relative: divide depth and range errors by the true distance, of at least 5 m.
        masked_only: terms that count only what was hidden.
    """

    colour: float = 30.0
    depth: float = 0.5
    range: float = 1.0
    free: float = 0.2
    height: float = 0.2
    above_colour: float = 5.0
    relative: bool = True
    masked_only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = set(self.masked_only) - set(self.terms())
        if unknown:
            raise ValueError(f"masked_only names {', '.join(sorted(unknown))}; the terms are {', '.join(self.terms())}")

    def terms(self) -> dict[str, float]:
        """The weight of every term."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("relative", "masked_only")}


@dataclass(frozen=True)
class Term:
    """The sum of an error over what is valid, and how much that is.

    Kept apart so that processes can add both before dividing: a frame then counts alike wherever it is.
    """

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]

    @property
    def mean(self) -> Float[Tensor, ""]:
        """The mean error; 0, with a gradient of 0, where nothing is valid."""
        return self.total / torch.where(self.count > 0, self.count, 1.0)


def over_processes(terms: dict[str, Term]) -> dict[str, Term]:
    """The terms of one of several processes, divided so that the mean of all processes' means is the mean over all.

    Processes average their gradients; with each term's count averaged too, a ray weighs the same wherever it is.
    """
    if not distributed.is_initialized():
        return terms
    counts = torch.stack([term.count for term in terms.values()])
    distributed.all_reduce(counts)
    counts = counts / distributed.get_world_size()
    return {name: Term(term.total, count) for (name, term), count in zip(terms.items(), counts, strict=True)}


def compare(view: View, seen: Seen, weights: Weights) -> dict[str, Term]:
    """The terms of one view."""
    terms = {}
    for name, target in view.targets.items():
        if weights.terms()[name] == 0:
            continue
        error = _error(name, target, seen, view, weights.relative)
        valid = target.valid & target.hidden if name in weights.masked_only else target.valid
        # A value that does not count may be anything, also infinite: it is replaced, not multiplied by zero.
        terms[name] = Term(torch.where(valid, error, 0.0).sum(), valid.sum().to(error.dtype))
    return terms


def total(terms: dict[str, Term], weights: Weights) -> Float[Tensor, ""]:
    """The weighted sum of the terms' means."""
    known = weights.terms()
    return torch.stack([known[name] * term.mean for name, term in terms.items()]).sum()


def _error(name: str, target: Target, seen: Seen, view: View, relative: bool) -> Float[Tensor, "r"]:
    match name:
        case "colour" | "above_colour":
            return (seen.channels["colour"] - target.value).square().mean(-1)
        case "depth":
            return _distance_error(seen.range * view.rays.cosine, target.value, relative)
        case "range":
            return _distance_error(seen.range, target.value, relative)
        case "free":
            return seen.opacity
        case "height":
            return (view.rays.origin[:, 2] - seen.range - target.value).abs()
        case _:
            raise ValueError(f"no view has a term {name!r}")


def _distance_error(distance: Tensor, true: Tensor, relative: bool) -> Tensor:
    error = (distance - true).abs()
    return error / true.clamp(min=5.0) if relative else error
