"""Intersection over union, pooled over a whole split."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cofield.classes import UNKNOWN

BANDS = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0)  # metres from the car


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


class PointIoU:
    """IoU of each class of points: Σ TP / Σ (TP + FP + FN) over all frames, also by distance.

    Args:
        names: the classes that labels count.
        bands: distances at which bands begin; the last has no end.
        ignore: points whose true label is this count nowhere.
    """

    def __init__(self, names: Sequence[str], bands: Sequence[float] = BANDS, ignore: int = UNKNOWN) -> None:
        self.names, self.bands, self.ignore = tuple(names), tuple(bands), ignore
        self._confusion = torch.zeros(len(self.bands), len(self.names), len(self.names), dtype=torch.long)

    def add(
        self, predicted: Int[Tensor, "p"], truth: Int[Tensor, "p"], xyz_ego: Float[Tensor, "p 3"] | None = None
    ) -> None:
        """Count some points; without positions they are all in the first band."""
        band = torch.zeros_like(truth)
        if xyz_ego is not None:
            starts = torch.tensor(self.bands[1:], device=xyz_ego.device)
            band = torch.bucketize(xyz_ego[:, :2].norm(dim=-1), starts, right=True)
        known = truth != self.ignore
        for kind, labels in (("predicted", predicted[known]), ("true", truth[known])):
            if bool(((labels < 0) | (labels >= len(self.names))).any()):
                raise ValueError(
                    f"{kind} labels are {labels.unique().tolist()}; they count {len(self.names)} classes from 0, "
                    f"and only a true one may be {self.ignore}"
                )
        place = (band * len(self.names) + truth)[known] * len(self.names) + predicted[known]
        self._confusion += place.bincount(minlength=self._confusion.numel()).cpu().view_as(self._confusion)

    def table(self) -> Float[Tensor, "d k"]:
        """IoU per distance band and class; NaN where there is neither truth nor a prediction."""
        return _iou(self._confusion)

    def compute(self) -> dict[str, float]:
        """IoU per class and their mean as `miou`, over classes that occur; and the mean of each distance band."""
        pooled = self._confusion.sum(0)
        known = pooled.sum(1) > 0
        values = {name: float(iou) for name, iou, there in zip(self.names, _iou(pooled), known, strict=True) if there}
        if not values:
            return {}
        ends = [f"-{end:g}" for end in self.bands[1:]] + ["+"]
        means = {}
        for start, end, iou, counts in zip(self.bands, ends, self.table(), self._confusion, strict=True):
            if counts.any():
                means[f"miou.{start:g}{end}m"] = float(iou[counts.sum(1) > 0].mean())
        return values | {"miou": sum(values.values()) / len(values)} | means


def _iou(confusion: Int[Tensor, "*d k k"]) -> Float[Tensor, "*d k"]:
    """Hits over hits, misses and false alarms; rows are true."""
    hits = confusion.diagonal(dim1=-2, dim2=-1).double()
    return (hits / (confusion.sum(-1) + confusion.sum(-2) - hits)).float()
