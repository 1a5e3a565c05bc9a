"""Losses of class distributions: cross-entropy and Lovász-softmax for points, and the entropy of what rays see."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cofield.classes import UNKNOWN
from cofield.models.render import Seen


def segmentation_loss(
    logits: Float[Tensor, "p k"], labels: Int[Tensor, "p"], ignore: int = UNKNOWN
) -> Float[Tensor, ""]:
    """Cross-entropy plus Lovász-softmax, one to one; 0, with a gradient of 0, where no label is known."""
    known = labels != ignore
    logits, labels = logits[known].float(), labels[known]
    if not len(labels):
        return logits.sum()
    return F.cross_entropy(logits, labels) + lovasz_softmax(logits.softmax(-1), labels)


def lovasz_softmax(probability: Float[Tensor, "p k"], labels: Int[Tensor, "p"]) -> Float[Tensor, ""]:
    """The Lovász extension of 1 - IoU at each class's errors, the mean over the classes that occur.

    With errors m_i = |[y_i = c] - p_ic| in falling order it is Σ_i m_i (Δ_i - Δ_{i-1}), where Δ_i is the Jaccard loss
    if the first i points are wrong. For certain predictions it is 1 - IoU itself.
    """
    truth = F.one_hot(labels, probability.shape[-1]).to(probability.dtype)
    present = truth.any(0)
    truth, probability = truth[:, present], probability[:, present]
    error, order = (truth - probability).abs().sort(0, descending=True)
    sorted_truth = truth.gather(0, order)
    total = truth.sum(0)
    jaccard = 1 - (total - sorted_truth.cumsum(0)) / (total + (1 - sorted_truth).cumsum(0))
    return (error * jaccard.diff(dim=0, prepend=jaccard.new_zeros(1, len(total)))).sum(0).mean()


def seen_classes(seen: Seen) -> Float[Tensor, "r k"]:
    """How likely each class is on each ray: its channel `semantics`, and every class alike behind what is opaque.

    The field's classes are probabilities before they are integrated (ours): a ray through a half-transparent edge is
    the mixture of what it meets, whatever the size of the logits there, and an empty ray knows nothing.
    """
    classes = seen.channels["semantics"]
    return classes + ((1 - seen.opacity).clamp(min=0) / classes.shape[-1])[:, None]


def rendered_loss(
    distribution: Float[Tensor, "r k"], labels: Int[Tensor, "r"], ignore: int = UNKNOWN
) -> Float[Tensor, ""]:
    """The mean of -log ŷ of the labels that are known; 0, with a gradient of 0, where none is."""
    known = labels != ignore
    chosen = distribution[known].gather(1, labels[known, None])
    return -chosen.clamp(min=1e-6).log().sum() / known.sum().clamp(min=1)


def entropy(distribution: Float[Tensor, "*r k"]) -> Float[Tensor, "*r"]:
    """-Σ p log p / log K: 0 for one certain class, 1 where all are alike."""
    classes = distribution.shape[-1]
    if classes < 2:
        raise ValueError(f"entropy needs at least two classes, got {classes}")
    return torch.special.entr(distribution).sum(-1) / math.log(classes)
