"""Pseudo-labels for camera pixels: confident rays vote for the class of their segment.

Where a segment is one thing, its confident pixels know what the uncertain ones are: a kept segment supervises all.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cofield.classes import UNKNOWN
from cofield.draw import Key
from cofield.frame import Batch
from cofield.models.semantics import entropy


@dataclass(frozen=True)
class Confidence:
    """What a segment's votes must be like.

    Args:
        threshold: the entropy, 0 to 1, below which a ray votes and a segment is kept; None keeps without a test.
        rays: that must vote for a segment to be kept.
        pixels: a smaller segment is not asked.
        caution: against the loss of rare classes (ours). A network that has hardly seen a class is confident of a
            commoner one instead, and teaching itself so makes the class vanish. With caution a segment is kept only
            if it would be kept, with the same class, were its mean vote divided by how often the labelled scans show
            each class: 1 by that share, ½ by its root, 0 without the test. What may be rare is then left untaught.
        balance: the bolder answer: every ray's distribution is divided so before it votes, and what may be rare is
            taught as rare.
    """

    threshold: float | None = 0.3
    rays: int = 5
    pixels: int = 16
    caution: float = 0.0
    balance: float = 0.0

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"an entropy threshold is above 0 and at most 1, or None, got {self.threshold}")
        if self.rays < 1 or self.pixels < 1:
            raise ValueError(f"a segment needs at least one ray and one pixel, got {self.rays} and {self.pixels}")
        if not (0 <= self.caution <= 1 and 0 <= self.balance <= 1):
            raise ValueError(f"caution and balance are 0 to 1, got {self.caution} and {self.balance}")

    def trusts(self, distribution: Float[Tensor, "*r k"]) -> Bool[Tensor, "*r"]:
        """Whether a distribution is certain enough."""
        certain = entropy(distribution)
        return torch.ones_like(certain, dtype=torch.bool) if self.threshold is None else certain < self.threshold


@dataclass(frozen=True)
class Votes:
    """What rays learn from their segments.

    Args:
        label: the pseudo-label of every ray, UNKNOWN where its segment is not kept.
        votes: whether the ray voted.
        slot: of every ray, the place of its segment in the tensors below; UNKNOWN without a segment.
        segment: the segments that have rays, ascending.
        voters: rays that voted.
        winner: the class of the mean vote; UNKNOWN without a vote.
        kept: whether it is good enough.
    """

    label: Int[Tensor, "r"]
    votes: Bool[Tensor, "r"]
    slot: Int[Tensor, "r"]
    segment: Int[Tensor, "s"]
    voters: Int[Tensor, "s"]
    winner: Int[Tensor, "s"]
    kept: Bool[Tensor, "s"]

    def score(self, truth: Int[Tensor, "r"] | None = None) -> dict[str, float]:
        """Shares for a log: of segments kept, of rays that vote and that are labelled; with the truth, also how many
        labels are right (precision), how many of the rays with a true class get it (recall) and how many labels are
        on what has no class, as the sky (unfounded). NaN where of nothing.
        """
        labelled = self.label != UNKNOWN
        shares = {"kept": self.kept, "voting": self.votes, "labelled": labelled}
        if truth is not None:
            right, known = self.label == truth, truth != UNKNOWN
            shares |= {"precision": right[labelled & known], "recall": right[known], "unfounded": ~known[labelled]}
        return {name: float(share.float().mean()) for name, share in shares.items()}


@torch.no_grad()
def vote(
    distribution: Float[Tensor, "r k"],
    segment: Int[Tensor, "r"],
    confidence: Confidence,
    prior: Float[Tensor, "k"] | None = None,
) -> Votes:
    """The pseudo-label of each ray: its segment's class, if enough of the segment's rays are confident and agree.

    A ray whose own entropy is below the threshold votes. A segment's class is the largest of the mean of its votes, and
    it is kept if there are enough of them and the mean is certain enough, too. All rays of a kept segment get its
    class, also those that did not vote. With every ray a segment of its own, confident rays label themselves.

    Args:
        segment: the segment of every ray, by numbers that tell those of all images apart; UNKNOWN is no segment.
        prior: how often the labelled scans show each class; needed for caution and balance.
    """
    if prior is None and (confidence.caution or confidence.balance):
        raise ValueError("caution and balance need the prior: how often each class is labelled")
    if prior is not None and confidence.balance:
        distribution = as_if_even(distribution, prior, confidence.balance)
    rays = torch.full_like(segment, UNKNOWN)
    known = segment != UNKNOWN
    names, rays[known] = segment[known].unique(return_inverse=True)
    voting = known & confidence.trusts(distribution)
    voters = torch.bincount(rays[voting], minlength=len(names))
    mean = distribution.new_zeros(len(names), distribution.shape[1]).index_add(0, rays[voting], distribution[voting])
    mean = mean / voters.clamp(min=1)[:, None]
    winner = mean.argmax(-1)
    kept = (voters >= confidence.rays) & confidence.trusts(mean)
    if prior is not None and confidence.caution:
        even = as_if_even(mean, prior, confidence.caution)
        kept &= (even.argmax(-1) == winner) & confidence.trusts(even)
    winner = torch.where(voters > 0, winner, UNKNOWN)
    label = torch.full_like(segment, UNKNOWN)
    label[known] = torch.where(kept, winner, UNKNOWN)[rays[known]]
    return Votes(label, voting, rays, names, voters, winner, kept)


def as_if_even(
    distribution: Float[Tensor, "*r k"], prior: Float[Tensor, "k"], strength: float
) -> Float[Tensor, "*r k"]:
    """What a network trained on classes as frequent as `prior` would say, had it seen all alike: p_c ∝ p_c / π_c^τ.

    What all classes have, as on a ray that meets nothing, says nothing and stays; the rest is weighed. Of that a class
    that was never labelled keeps nothing: about it the network knows nothing, and where no other has any, all is even.
    """
    weight = torch.where(prior > 0, prior.clamp(min=1e-12) ** -strength, 0.0)
    shared = distribution.amin(-1, keepdim=True)
    even = (distribution - shared) * weight
    left, classes = even.sum(-1, keepdim=True), distribution.shape[-1]
    even = torch.where(left > 0, even / left.clamp(min=1e-30), 1 / classes)
    return shared + (1 - classes * shared) * even


def frequencies(labels: Int[Tensor, "p"], classes: int) -> Float[Tensor, "k"]:
    """The share of every class among the known labels: the prior, when added up over the labelled scans."""
    counts = torch.bincount(labels[labels != UNKNOWN], minlength=classes).float()
    return counts / counts.sum().clamp(min=1)


def ramp(step: int, steps: int, share: float = 0.2, start: float = 0.0) -> float:
    """0 until the share `start` of all steps, then rising evenly to 1 over the next `share`."""
    if share <= 0:
        return float(step >= start * steps)
    return min(1.0, max(0.0, (step / steps - start) / share))


def told_apart(segments: Int[Tensor, "b n h w"], smallest: int = 1) -> Int[Tensor, "b n h w"]:
    """The segments of all images under numbers of their own, without those of fewer than `smallest` pixels."""
    image = torch.arange(segments[..., 0, 0].numel(), device=segments.device).view(*segments.shape[:2], 1, 1)
    most = int(segments.max()) + 1 if segments.numel() else 0
    number = torch.where(segments == UNKNOWN, UNKNOWN, segments + image * most)
    known = number != UNKNOWN
    size = torch.bincount(number[known], minlength=1)
    return torch.where(known & (size[number.clamp(min=0)] >= smallest), number, UNKNOWN)


def segment_pixels(
    batch: Batch, segments: Int[Tensor, "b n h w"], count: int, rays: int, seed: Key, cameras: int | None = None
) -> Int[Tensor, "r"]:
    """Pixels of random segments, as flat indices into [b n h w], in ascending order.

    Args:
        segments: told apart.
        count: segments per camera.
        rays: pixels per segment.
        cameras: how many random cameras of each frame; None is all.
    """
    views, size = segments.shape[1], segments[0, 0].numel() if segments.shape[1] else 0
    if not views:
        raise ValueError("frames without cameras have no pixels; leave unlabelled frames without cameras out")
    chosen = []
    for b in range(len(batch)):
        lucky = torch.randperm(views, generator=batch.draw(b, seed, "segments", "cameras"))[:cameras]
        for n in lucky.sort().values.tolist():
            pixels = choose_pixels(segments[b, n].flatten(), count, rays, batch.draw(b, seed, "segments", n))
            chosen.append(pixels + (b * views + n) * size)
    return torch.cat(chosen)


def choose_pixels(segments: Int[Tensor, "n"], count: int, rays: int, generator: torch.Generator) -> Int[Tensor, "r"]:
    """Up to `rays` pixels each of up to `count` segments, in ascending order; every such choice is equally likely.

    Args:
        segments: of the pixels of an image, or of several, UNKNOWN where there is none.
    """
    places = (segments != UNKNOWN).nonzero()[:, 0]
    names, slot = segments[places].unique(return_inverse=True)
    # On the CPU, whatever the device: the draw must not depend on the machine.
    lucky = torch.zeros(len(names), dtype=torch.bool)
    lucky[torch.randperm(len(names), generator=generator)[:count]] = True
    within = lucky.to(places.device)[slot]
    places, slot = places[within], slot[within]
    order = torch.randperm(len(places), generator=generator).to(places.device)
    order = order[slot[order].argsort(stable=True)]  # shuffled within each segment, segments one after the other
    size = torch.bincount(slot, minlength=1)
    rank = torch.arange(len(places), device=places.device) - (size.cumsum(0) - size)[slot[order]]
    return places[order[rank < rays]].sort().values
