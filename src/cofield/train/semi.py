"""LiDAR segmentation from few labels: what the cameras show teaches the scans that nobody labelled.

A labelled scan teaches the head, and the field along its own beams. Of an unlabelled one the field is rendered into the
cameras; where a segment's pixels are confident they vote for its class, and that teaches all of them. Inference is
LiDAR alone: points to classes, without field, cameras or segments.
"""

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cofield.classes import UNKNOWN, Classes
from cofield.data import Source
from cofield.data.augment import Augment, mixed, sectors
from cofield.data.fractions import Subset
from cofield.data.partly import PartlyLabelled, Truth, aside_of, has_label
from cofield.data.segment_cache import SegmentCache
from cofield.data.segments import segmenter_called
from cofield.frame import Batch, Frame, Hidden, collate
from cofield.grid import Volume
from cofield.metrics.iou import PointIoU
from cofield.models.cylinder import Cylinder3D, CylinderHead
from cofield.models.field import Field
from cofield.models.pointseg import PointHead, known_labels
from cofield.models.project import beside, in_front, point_labels
from cofield.models.render import Seen, astray, look, render
from cofield.models.sampler import guided, occupancy, skipping
from cofield.models.semantics import rendered_loss, seen_classes, segmentation_loss
from cofield.models.trunk import Trunk
from cofield.models.vote import Confidence, Votes, frequencies, ramp, segment_pixels, told_apart, vote
from cofield.rays import Rays
from cofield.train.config import Optim, Pseudo, SegmentTuning, Semi
from cofield.train.few_labels import PIXELS
from cofield.train.tasks import Supervised
from cofield.train.views import Sampling, beam_view, jitter_of

AREAS = (3, 6)  # into how many inclinations two scans are cut before they are mixed, from and to
SCORED = ("kept", "voting", "labelled", "precision", "recall", "unfounded")


@dataclass(frozen=True)
class Supplies:
    """What a run knows beside its batches.

    Args:
        segments: of unlabelled frames' images; None where every pixel stands for itself.
        truth: of unlabelled frames, to score pseudo-labels by; nothing is learned from it.
        prior: how often each class is labelled.
        others: whether scans without labels teach.
    """

    segments: SegmentCache | None = None
    truth: Truth | None = None
    prior: Tensor | None = None
    others: bool = True


@dataclass(frozen=True)
class Reading:
    """What the network makes of scans.

    Args:
        points: the logits of every point.
        voxels: those of every occupied cell, and the row of each point's cell; None where cells have no classes.
        volume: what the field reads; None where there is no field.
    """

    points: Float[Tensor, "p k"]
    voxels: tuple[Float[Tensor, "v k"], Int[Tensor, "p"]] | None = None
    volume: Volume | None = None

    def loss(self, labels: Int[Tensor, "p"]) -> Float[Tensor, ""]:
        """Cross-entropy and Lovász-softmax of the labelled points, and of the cells that they are in."""
        loss = segmentation_loss(self.points, labels)
        if self.voxels is not None:
            logits, slot = self.voxels
            loss = loss + segmentation_loss(logits, commonest(labels, slot, *logits.shape))
        return loss


def commonest(labels: Int[Tensor, "p"], slot: Int[Tensor, "p"], cells: int, classes: int) -> Int[Tensor, "v"]:
    """The label that most of each cell's labelled points have; UNKNOWN where none is."""
    known = labels != UNKNOWN
    place = slot[known] * classes + labels[known]
    counts = torch.bincount(place, minlength=cells * classes).view(cells, classes)
    most, label = counts.max(1)
    return torch.where(most > 0, label, UNKNOWN)


class SemiSegment(Supervised[PointIoU]):
    """The class of every point, from few labelled scans and many others.

    Scans whose points have no label at all are the unlabelled ones.

    Args:
        trunk, head: a volume and a head that points read it with, or the cylinder and its own head.
        field: of the channel `semantics`; of the method `nerf` alone.
    """

    def __init__(
        self,
        trunk: Trunk | Cylinder3D,
        head: PointHead | CylinderHead,
        field: Field | None,
        classes: Classes,
        semi: Semi,
        pseudo: Pseudo,
        optim: Optim,
    ) -> None:
        super().__init__(trunk, optim)
        if (field is None) == (semi.method == "nerf"):
            raise ValueError("the method nerf has a field, and no other has one")
        self.head, self.field, self.classes, self.semi, self.pseudo = head, field, classes, semi, pseudo
        self.confidence = Confidence(
            pseudo.threshold,
            rays=1 if pseudo.segmenter == PIXELS else pseudo.voters,
            pixels=pseudo.smallest,
            caution=pseudo.caution,
            balance=pseudo.balance,
        )
        self.supplies = Supplies()
        self.teacher: nn.ModuleDict | None = None
        if semi.mixing:
            self.teacher = nn.ModuleDict({"trunk": copy.deepcopy(trunk), "head": copy.deepcopy(head)})
            self.teacher.requires_grad_(False)
        if field is None and isinstance(trunk, Cylinder3D):
            trunk.empty.requires_grad_(False)  # only a field reads cells without points

    def forward(self, batch: Batch) -> Tensor:
        """The label of every point, in the order of the batch."""
        return self.read(batch).points.argmax(-1)

    def read(self, batch: Batch) -> Reading:
        """What the network makes of a batch's points, and of nothing else."""
        return read(self.trunk, self.head, batch, with_volume=self.field is not None)

    def objective(self, batch: Batch) -> Tensor:
        # Measured before the first step, so that what a step needs is known when everything is switched on.
        return total(self.learn(batch, self.optim.steps)[0])

    def training_step(self, batch: Batch, index: int) -> Tensor:
        terms, scores = self.learn(batch, self.trainer.global_step)
        loss = total(terms)
        values = {"loss": loss, **{name: value.detach() for name, (_, value) in terms.items()}, **scores}
        self.log_dict(values, batch_size=len(batch), sync_dist=self.trainer.world_size > 1)
        return loss

    def learn(self, batch: Batch, step: int) -> tuple[dict[str, tuple[float, Tensor]], dict[str, float]]:
        """Weight and value of every term at a step, and the score of the pseudo-labels."""
        labels = known_labels(batch, self.classes)
        is_taught = has_labels(batch, labels)
        taught = batch.select([b for b, known in enumerate(is_taught) if known])
        others = batch.select([b for b, known in enumerate(is_taught) if not known and self.supplies.others])
        terms: dict[str, tuple[float, Tensor]] = {}
        scores: dict[str, float] = dict.fromkeys(SCORED if self.semi.looks else (), math.nan)
        if len(taught):
            reading = self.read(taught)
            assert taught.points.labels is not None
            terms["points"] = 1.0, reading.loss(taught.points.labels)
            if self.field is not None:
                classes, ranges = self.along_beams(taught, reading)
                terms |= {"beams": (self.semi.rendered, classes), "range": (self.semi.rendered, ranges)}
                if self.semi.placed:
                    terms["placed"] = self.semi.placed, self.at_points(taught, reading)
        begin, full = self.semi.ramp
        rise = ramp(step, self.optim.steps, full - begin, begin)
        # Ranges are measured and need no network to be sure of anything: they teach from the first step on.
        if len(others) and (rise > 0 or self.semi.measures):
            reading = self.read(others) if self.semi.looks else None
            if reading is not None and self.semi.weight and rise > 0:
                look = self.rendered if self.semi.method == "nerf" else self.projected
                value, votes, truth = look(others, reading)
                terms["pseudo"] = self.semi.weight * rise, value
                scores |= votes.score(truth)
            if reading is not None and self.semi.measures:
                terms["free_range"] = self.semi.ranges, self.along_beams(others, reading)[1]
            if self.semi.mixing and len(taught) and rise > 0:
                terms["mixed"] = self.semi.mixing * rise, self.mixed(taught, others)
        if not terms:
            terms["points"] = 1.0, self.read(batch).loss(labels)  # nobody labelled anything here: 0, and no gradient
        return terms, scores

    def along_beams(self, batch: Batch, reading: Reading) -> tuple[Tensor, Tensor]:
        """The error of the class and of the range that the field shows along beams, of the labelled ones if any is.

        Half of the samples are about the known range. The range's error is that of all that a beam sees, not of its
        mean: fog before a wall and as much behind it would mean the wall, and hide from cameras what stands in it.
        """
        field, volume = self.field, reading.volume
        if field is None or volume is None:
            raise ValueError("beams are rendered by the method nerf alone")
        labels = batch.points.labels
        assert labels is not None
        if bool((labels != UNKNOWN).any()):
            batch = batch.select_points(labels != UNKNOWN)
        nothing = Hidden(torch.zeros(*batch.valid.shape[:2], 1, 1).bool(), torch.zeros(len(batch.points)).bool())
        nothing = replace(nothing, points=nothing.points.to(batch.sample.device))
        sampling = Sampling(beams=self.semi.beams, samples=self.pseudo.samples)
        view = beam_view(batch, nothing, sampling, volume.grid, self.optim.seed)
        target = view.targets["range"]
        seen = look(field, volume, view.rays, guided(view.rays, view.jitter, view.known()))
        assert batch.points.labels is not None
        wanted = torch.where(target.valid, batch.points.labels[view.rays.source], UNKNOWN)
        error = astray(seen, view.rays, target.value) / target.value.clamp(min=5.0)
        range_error = torch.where(target.valid, error, 0.0).sum() / target.valid.sum().clamp(min=1)
        return rendered_loss(seen_classes(seen), wanted), range_error

    def at_points(self, batch: Batch, reading: Reading) -> Tensor:
        """The error of the classes that the field has at labelled points: what beams are told, without rendering."""
        field, volume, labels = self.field, reading.volume, batch.points.labels
        if field is None or volume is None:
            raise ValueError("the method nerf alone has a field")
        assert labels is not None
        known = (labels != UNKNOWN) & volume.grid.contains(batch.points.xyz_ego)
        xyz_ego = batch.points.xyz_ego[known]
        _, values = field(volume, xyz_ego[:, None], torch.zeros_like(xyz_ego), batch.sample[known])
        return segmentation_loss(values["semantics"][:, 0].clamp(min=1e-6).log(), labels[known])

    def rendered(self, batch: Batch, reading: Reading) -> tuple[Tensor, Votes, Tensor | None]:
        """The error of rendered pixels against what their segments voted for, the votes, and the truth if known.

        Together, a segment's points vote beside its rays, and it teaches both.
        """
        field, volume, pseudo, seed = self.field, reading.volume, self.pseudo, self.optim.seed
        if field is None or volume is None:
            raise ValueError("pixels are rendered by the method nerf alone")
        segments = self.segments_of(batch)
        if segments is None:
            image = torch.where(batch.valid, 0, UNKNOWN)
            pixels = segment_pixels(batch, image, 1, pseudo.count * pseudo.rays, seed, pseudo.cameras)
            segment = torch.arange(len(pixels), device=pixels.device)
        else:
            pixels = segment_pixels(batch, segments, pseudo.count, pseudo.rays, seed, pseudo.cameras)
            segment = segments.flatten()[pixels]
        rays = Rays.from_cameras(batch, pixels, volume.grid)
        jitter = jitter_of(batch, rays, pseudo.samples, seed, "segments")
        seen = seen_classes(self.see(batch, volume, rays, jitter))
        truth = None if self.supplies.truth is None else self.supplies.truth.pixels(batch).flatten()[pixels]
        if segments is None or not self.semi.together:
            votes = vote(seen, segment, self.confidence, self.supplies.prior)
            return rendered_loss(seen, votes.label), votes, truth
        at = in_front(batch)
        voters = beside(seen, segment, at, reading.points.softmax(-1), segments)
        votes = vote(*voters, self.confidence, self.supplies.prior)
        of_pixels, of_points = votes.label.split([len(pixels), len(at.point)])
        labels = point_labels(at, of_points, len(batch.points))
        if truth is not None and self.supplies.truth is not None:
            truth = torch.cat([truth, self.supplies.truth.points(batch)[at.point]])
        return rendered_loss(seen, of_pixels) + reading.loss(labels), votes, truth

    def see(self, batch: Batch, volume: Volume, rays: Rays, jitter: Float[Tensor, "r s"]) -> Seen:
        """What camera rays see of a volume, by default only where points are, and in the cells beside them.

        Elsewhere nothing ever taught the field: a LiDAR looks up less far than a camera. Opaque and of the commonest
        class there, it would outvote what it knows.
        """
        assert self.field is not None
        fixed = not self.semi.carves
        if self.pseudo.everywhere:
            return render(self.field, volume, rays, jitter, fixed)
        full = occupancy(batch.points.xyz_ego, batch.sample, volume.grid, len(batch))
        return look(self.field, volume, rays, skipping(rays, jitter, full, volume.grid), fixed)

    def projected(self, batch: Batch, reading: Reading) -> tuple[Tensor, Votes, Tensor | None]:
        """The error of points against what the segments that they fall on voted for: the plain alternative."""
        at = in_front(batch)
        segments = self.segments_of(batch)
        segment = torch.arange(len(at.pixel), device=at.pixel.device)
        if segments is not None:
            segment = segments.flatten()[at.pixel]
        seen = reading.points.softmax(-1)[at.point]
        votes = vote(seen, segment, self.confidence, self.supplies.prior)
        agree = self.semi.method == "projection-consistent"
        labels = point_labels(at, votes.label, len(batch.points), agree)
        truth = None if self.supplies.truth is None else self.supplies.truth.points(batch)[at.point]
        return reading.loss(labels), replace(votes, label=labels[at.point]), truth

    def segments_of(self, batch: Batch) -> Int[Tensor, "b n h w"] | None:
        """The segments of a batch's images, told apart; None where every pixel is one."""
        if not batch.images.shape[1]:
            raise ValueError(
                f"frame {batch.tokens[0]} has no cameras, which the method {self.semi.method} learns from; "
                "--semi.method supervised needs none, also with --semi.mixing"
            )
        if self.pseudo.segmenter == PIXELS:
            return None
        if self.supplies.segments is None:
            raise ValueError("segments are read from a cache, and this task was given none; see supplied()")
        return told_apart(self.supplies.segments.of_batch(batch), self.confidence.pixels)

    @torch.no_grad()
    def surely(self, batch: Batch) -> Int[Tensor, "p"]:
        """What the teacher is sure of, and UNKNOWN."""
        assert self.teacher is not None
        probability = read(self.teacher["trunk"], self.teacher["head"], batch).points.softmax(-1)
        highest, label = probability.max(-1)
        return torch.where(highest >= self.semi.sure, label, UNKNOWN)

    def mixed(self, taught: Batch, others: Batch) -> Tensor:
        """The error of scans that are mixed of labelled ones and of what the teacher is sure of in the others."""
        told = replace(others, points=replace(others.points, labels=self.surely(others)))
        batch = interleaved(taught, told, self.optim.seed)
        assert batch.points.labels is not None
        return self.read(batch).loss(batch.points.labels)

    def optimizer_step(self, *given: Any, **options: Any) -> None:
        super().optimizer_step(*given, **options)
        self.follow(self.trainer.global_step)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the teacher towards the network; quickly at first."""
        if self.teacher is None:
            return
        stay = min(self.semi.momentum, step / (step + 1))
        own = nn.ModuleDict({"trunk": self.trunk, "head": self.head}).state_dict()
        for name, value in self.teacher.state_dict().items():
            if value.is_floating_point():
                value.lerp_(own[name], 1 - stay)
            else:
                value.copy_(own[name])

    def fresh_score(self) -> PointIoU:
        return PointIoU(self.classes.names)

    def count(self, score: PointIoU, batch: Batch) -> None:
        now = batch.points.age == 0
        truth = known_labels(batch, self.classes)
        score.add(self(batch)[now].cpu(), truth[now].cpu(), batch.points.xyz_ego[now].cpu())

    def told(self, score: PointIoU) -> dict[str, float]:
        return score.compute()


def read(trunk: nn.Module, head: nn.Module, batch: Batch, with_volume: bool = False) -> Reading:
    """What a trunk and the head that fits it make of a batch's points."""
    match trunk, head:
        case Trunk(), PointHead():
            volume = trunk(batch)
            return Reading(head(volume, batch), volume=volume)
        case Cylinder3D(), CylinderHead():
            encoded = trunk.encode(batch)
            voxels, points = head(encoded)
            return Reading(points, (voxels, encoded.slot), trunk.volume(encoded) if with_volume else None)
    raise ValueError(f"a {type(head).__name__} does not read a {type(trunk).__name__}")


def total(terms: dict[str, tuple[float, Tensor]]) -> Float[Tensor, ""]:
    """The weighted sum."""
    return torch.stack([weight * value for weight, value in terms.values()]).sum()


def has_labels(batch: Batch, labels: Int[Tensor, "p"]) -> list[bool]:
    """Which frames have a labelled point."""
    return (torch.bincount(batch.sample[labels != UNKNOWN], minlength=len(batch)) > 0).tolist()


def interleaved(first: Batch, second: Batch, seed: int) -> Batch:
    """LaserMix: the inclinations of two scans by turns, of each pair both ways; scans without images.

    How many areas there are is drawn for each pair.
    """
    device = first.sample.device
    scans = []
    for b, (one, other) in enumerate(zip(scans_of(first), scans_of(second), strict=False)):
        areas = int(torch.randint(AREAS[0], AREAS[1] + 1, (), generator=first.draw(b, seed, "mixing", other.token)))
        angle = torch.cat([inclination(one), inclination(other)])
        borders = torch.linspace(float(angle.min()), float(angle.max()), areas + 1)[1:-1]
        cut = [sectors(scan, tuple(borders.tolist())) for scan in (one, other)]
        scans += [mixed(one, other, cut[0], cut[1]), mixed(other, one, cut[1], cut[0])]
    return collate(scans).to(device)


def scans_of(batch: Batch) -> list[Frame]:
    """The frames of a batch, of their points alone."""
    batch = batch.to("cpu")
    still = torch.eye(4, dtype=torch.float64)
    points = replace(batch.points, instances=None)
    return [
        Frame(token, "", 0.0, still, (), points.select(batch.sample == b), batch.origins_ego)
        for b, token in enumerate(batch.tokens)
    ]


def inclination(scan: Frame) -> Float[Tensor, "p"]:
    """How far above the horizon each point's beam looks, in radians."""
    direction = scan.points.xyz_ego - scan.origins_ego[scan.points.origin]
    return torch.atan2(direction[:, 2], direction[:, :2].norm(dim=-1))


def supplied(task: SemiSegment, config: SegmentTuning, source: Source, chosen: list[int]) -> Source:
    """The frames that a task trains on, and for the task what it needs beside them.

    A method that asks nothing of unlabelled frames does not get any.
    """
    semi, pseudo = config.semi, config.pseudo
    few = Subset(source, chosen)
    if not any(has_label(few[index]) for index in range(len(few))):
        raise ValueError(
            f"no point of the {len(few)} chosen frames of {source.name} has a label; "
            "choose others by --labels.seed or --labels.fraction, or see cofield check-data"
        )
    if not (semi.looks or semi.mixing) or len(chosen) == len(source):
        task.supplies = Supplies(others=False)
        return few
    if semi.looks and moves_pixels(config.augment):
        raise ValueError(
            "segments are of images as they are, and this augmentation changes images; leave resize, size, image_flip "
            "and image_turn_deg out, or take --semi.method supervised"
        )
    segmenter = None
    if semi.looks and semi.weight and pseudo.segmenter != PIXELS:
        segmenter = segmenter_called(pseudo.segmenter, pseudo.weights)
    aside = aside_of(source, segmenter, None if pseudo.segments is None else Path(pseudo.segments))
    aside = aside if semi.looks and semi.weight else replace(aside, truth=None)
    prior = None
    if pseudo.caution or pseudo.balance:
        prior = prior_of(few, len(task.classes))
    task.supplies = Supplies(aside.segments, aside.truth, prior)
    return PartlyLabelled(source, chosen, semi.unlabelled, aside)


def prior_of(few: Source, classes: int) -> Float[Tensor, "k"]:
    """How often each class is labelled in some frames."""
    known = [few[index].points.labels for index in range(len(few))]
    return frequencies(torch.cat([labels for labels in known if labels is not None]), classes)


def moves_pixels(augment: Augment) -> bool:
    """Whether an augmentation changes images."""
    plain = Augment()
    names = ("resize", "size", "image_flip", "image_turn_deg")
    return any(getattr(augment, name) != getattr(plain, name) for name in names)
