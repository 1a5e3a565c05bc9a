"""Named terms and their weighted sum."""

from dataclasses import dataclass, field, fields
from typing import Literal

import torch
import torch.distributed as distributed
from jaxtyping import Float
from torch import Tensor, nn

from cofield.models.render import Seen
from cofield.train.views import Target, View

OPTIONS = ("relative", "masked_only", "squared", "outliers", "balance")


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
        eikonal: how much faster than the way travelled a signed distance changes, squared; of fields that have one.
        squared: terms of squared errors; the others are absolute.
        outliers: for a term the error that already is one: errors far beyond it count as it, small ones as they
            are. LiDAR seen by a camera is wrong where the two look past different edges, a beam where it grazes: each
            has its own scale, in the term's unit. Terms that are not named trust every value.
        balance: `fixed` weights, or `learned`: each term also has an uncertainty, which divides it and costs its
            logarithm. Learning starts at the fixed weights.
    """

    colour: float = 30.0
    depth: float = 0.5
    range: float = 1.0
    free: float = 0.2
    height: float = 0.2
    above_colour: float = 5.0
    relative: bool = True
    masked_only: tuple[str, ...] = ()
    eikonal: float = 0.0
    squared: tuple[str, ...] = ("colour", "above_colour")
    outliers: dict[str, float] = field(default_factory=dict)
    balance: Literal["fixed", "learned"] = "fixed"

    def __post_init__(self) -> None:
        for option in ("masked_only", "squared", "outliers"):
            unknown = set(getattr(self, option)) - set(self.terms())
            if unknown:
                raise ValueError(
                    f"{option} names {', '.join(sorted(unknown))}; the terms are {', '.join(self.terms())}"
                )
        if min(self.outliers.values(), default=1.0) <= 0:
            raise ValueError(f"an outlier's scale is above 0, got {self.outliers}; leave a term out to trust it")

    def terms(self) -> dict[str, float]:
        """The weight of every term."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in OPTIONS}


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
        error = _error(name, target, seen, view, weights)
        valid = target.valid & target.hidden if name in weights.masked_only else target.valid
        # A value that does not count may be anything, also infinite: it is replaced, not multiplied by zero.
        terms[name] = Term(torch.where(valid, error, 0.0).sum(), valid.sum().to(error.dtype))
    return terms


def total(terms: dict[str, Term], weights: Weights) -> Float[Tensor, ""]:
    """The weighted sum of the terms' means."""
    known = weights.terms()
    return torch.stack([known[name] * term.mean for name, term in terms.items()]).sum()


class Balance(nn.Module):
    """The weighted sum of terms, each divided by an uncertainty of its own that is learned, plus what that costs.

    Σ w e^{-s} mean + c s, with c = 1/2 for squared errors (s is a Gaussian's log variance) and 1 for absolute ones (a
    Laplace distribution's log scale), up to the factors that the fixed weights w already hold. At s = 0, the start, it
    is the fixed sum. For a given error the best s makes each term worth c.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in weights.terms().items() if weight > 0}
        self.cost = {name: 0.5 if name in weights.squared else 1.0 for name in self.weights}
        self.log_scale = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in self.weights})

    def forward(self, terms: dict[str, Term]) -> Float[Tensor, ""]:
        parts = []
        for name, term in terms.items():
            scale = self.log_scale[name]
            # A term without anything valid says nothing about its uncertainty either.
            price = torch.where(term.count > 0, self.cost[name] * scale, 0.0)
            parts.append(self.weights[name] * torch.exp(-scale) * term.mean + price)
        return torch.stack(parts).sum()


def eikonal_term(excess: Float[Tensor, "r s"]) -> Term:
    """The mean over stretches of how much too fast a signed distance changes."""
    return Term(excess.sum(), excess.new_tensor(excess.numel()))


def bounded(error: Float[Tensor, "*r"], outlier: float) -> Float[Tensor, "*r"]:
    """Errors e as e / (1 + e / o): the small as they are, none beyond o. For e = d² that is Geman and McClure's."""
    return error / (1 + error / outlier)


def _error(name: str, target: Target, seen: Seen, view: View, weights: Weights) -> Float[Tensor, "r"]:
    squared = name in weights.squared
    match name:
        case "colour" | "above_colour":
            difference = seen.channels["colour"] - target.value
            error = (difference.square() if squared else difference.abs()).mean(-1)
        case "free":
            error = seen.opacity.square() if squared else seen.opacity
        case "depth" | "range" | "height":
            difference = _difference(name, target.value, seen, view, weights.relative)
            error = difference.square() if squared else difference.abs()
        case _:
            raise ValueError(f"no view has a term {name!r}")
    if name not in weights.outliers:
        return error
    outlier = weights.outliers[name]
    return bounded(error, outlier**2 if squared else outlier)


def _difference(name: str, true: Tensor, seen: Seen, view: View, relative: bool) -> Tensor:
    """In metres; of depths and ranges relative to the true one if that is wished."""
    if name == "height":
        return view.rays.origin[:, 2] - seen.range - true
    distance = seen.range * view.rays.cosine if name == "depth" else seen.range
    return (distance - true) / true.clamp(min=5.0) if relative else distance - true
