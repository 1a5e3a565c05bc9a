"""How well a field paints what it was not shown."""

import math
from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor


class RenderScore:
    """Accumulates errors of hidden beams and pixels, and gives their summary.

    `range_error` is the median of |r - r*| / r* over hidden beams. `psnr` is of the pooled squared error of hidden
    pixels; `psnr_mean_image` is what painting them with their image's mean colour would score.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._ranges: list[Tensor] = []
        self._squares = {"psnr": 0.0, "psnr_mean_image": 0.0}
        self._values = 0
        self._terms: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add_terms(self, terms: dict[str, tuple[float, float]]) -> None:
        """Sums of errors, and how many values they are of."""
        for name, (total, count) in terms.items():
            self._terms[name][0] += total
            self._terms[name][1] += count

    def add_ranges(self, seen: Float[Tensor, "r"], true: Float[Tensor, "r"]) -> None:
        """Rendered and true ranges."""
        self._ranges.append(((seen - true).abs() / true).detach().float().cpu())

    def add_colours(self, seen: Float[Tensor, "r 3"], true: Float[Tensor, "r 3"], mean: Float[Tensor, "r 3"]) -> None:
        """Rendered and true colours, and the mean colour of each pixel's image."""
        self._squares["psnr"] += float((seen - true).square().double().sum())
        self._squares["psnr_mean_image"] += float((mean - true).square().double().sum())
        self._values += true.numel()

    def compute(self) -> dict[str, float]:
        """Every value of which something was added."""
        values = {name: total / count for name, (total, count) in self._terms.items() if count}
        if self._values:
            values |= {name: psnr(total / self._values) for name, total in self._squares.items()}
        errors = torch.cat(self._ranges) if self._ranges else torch.empty(0)
        if len(errors):
            values["range_error"] = float(errors.median())
        return values


def psnr(mean_square: float) -> float:
    """Peak signal-to-noise ratio in dB, of values between 0 and 1."""
    return math.inf if mean_square == 0 else -10 * math.log10(mean_square)
