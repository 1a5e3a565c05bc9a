"""Intersection over union, pooled over a whole split."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class MapIoU:
    """IoU of each layer at its best threshold: Σ TP / Σ (TP + FP + FN) over all frames, not a mean of frames' values.

    The threshold is chosen per layer on the data that is measured, as the published map results are.
    """

    def __init__(self, layers: Sequence[str], thresholds: Sequence[float] | None = None) -> None:
        self.layers = tuple(layers)
        self.thresholds = torch.tensor(list(thresholds or [0.05 * i for i in range(1, 20)]))
        self._counts = torch.zeros(3, len(self.layers), len(self.thresholds), dtype=torch.long)

    def add(self, probability: Float[Tensor, "b m y x"], truth: Bool[Tensor, "b m y x"]) -> None:
        """Count hits, false alarms and misses of some frames."""
        probability, truth = (each.transpose(0, 1).flatten(1) for each in (probability, truth))
        # A probability's place among the thresholds says at which of them it is positive: one pass serves all.
        place = torch.bucketize(probability.cpu().float(), self.thresholds, right=False)
        bins = len(self.thresholds) + 1
        for layer in range(len(self.layers)):
            is_true = truth[layer].cpu()
            hits = torch.bincount(place[layer][is_true], minlength=bins).flip(0).cumsum(0).flip(0)[1:]
            alarms = torch.bincount(place[layer][~is_true], minlength=bins).flip(0).cumsum(0).flip(0)[1:]
            self._counts[:, layer] += torch.stack([hits, alarms, is_true.sum() - hits])

    def table(self) -> Float[Tensor, "m t"]:
        """IoU per layer and threshold; NaN where there is neither truth nor a prediction."""
        hits, alarms, misses = self._counts.double()
        return (hits / (hits + alarms + misses)).float()

    def compute(self) -> dict[str, float]:
        """IoU per layer at its best threshold, and their mean as `miou`, over layers that occur."""
        best = self.table().nan_to_num(-1).amax(1)
        known = self._counts[0, :, 0] + self._counts[2, :, 0] > 0
        values = {name: float(best[i]) for i, name in enumerate(self.layers) if known[i]}
        return values | ({"miou": sum(values.values()) / len(values)} if values else {})
