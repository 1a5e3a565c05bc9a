"""A source that is labelled in part: what its other frames show, and nothing that anybody said about them."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cofield.classes import UNKNOWN
from cofield.data import Source, Wrapped
from cofield.data.segment_cache import SegmentCache, command
from cofield.data.segments import Segmenter, described
from cofield.data.simulate import World
from cofield.data.stored import Stored, cache_folder, code_edition
from cofield.frame import Batch, Camera, Frame


@dataclass(frozen=True)
class Semantics:
    """The class of every pixel as its segment, of synthetic worlds: what pseudo-labels are measured by."""

    def __call__(self, camera: Camera, token: str) -> Int[Tensor, "h w"]:
        if camera.semantics is None:
            raise ValueError(f"camera {camera.name!r} of frame {token} has no per-pixel truth; synthetic worlds have")
        return camera.semantics.long()


@dataclass(frozen=True)
class Truth:
    """The true classes of unlabelled frames, on disk: nothing reads them but the score of pseudo-labels."""

    images: SegmentCache

    def write(self, frame: Frame) -> None:
        """Keep the classes of a frame's pixels and points."""
        assert frame.points.labels is not None
        path = self._of_points(frame.token)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.stem}.{os.getpid()}.part")
        with part.open("wb") as stream:
            np.save(stream, frame.points.labels.numpy())
        part.replace(path)
        self.images.write(frame, [Semantics()(camera, frame.token) for camera in frame.cameras])

    def pixels(self, batch: Batch) -> Int[Tensor, "b n h w"]:
        """The class of every pixel."""
        return self.images.of_batch(batch)

    def points(self, batch: Batch) -> Int[Tensor, "p"]:
        """The class of every point; all UNKNOWN where augmentation dropped some."""
        known = []
        for token, count in zip(batch.tokens, batch.offsets.diff().tolist(), strict=True):
            labels = torch.from_numpy(np.load(self._of_points(token)))
            known.append(labels if len(labels) == count else torch.full((count,), UNKNOWN))
        return torch.cat(known).to(batch.sample.device)

    def _of_points(self, token: str) -> Path:
        return self.images.path(token).with_suffix(".points.npy")


@dataclass(frozen=True)
class Aside:
    """What is kept on disk of unlabelled frames beside the frames themselves.

    Args:
        whole: the frames with all that their source knows.
        segments: of their images; None where no segments are asked for.
        make: segments that are missing are computed; otherwise whoever reads them finds them missing.
        truth: None where nobody knows it.
    """

    whole: Source
    segments: SegmentCache | None = None
    make: bool = False
    truth: Truth | None = None

    def prepare(self, index: int, token: str) -> None:
        """Write what is missing of a frame."""
        segments = self.segments if self.make else None
        lacks_segments = segments is not None and not segments.path(token).exists()
        lacks_truth = self.truth is not None and not self.truth.images.path(token).exists()
        if not (lacks_segments or lacks_truth):
            return
        frame = self.whole[index]
        if segments is not None and lacks_segments and frame.cameras:
            segments.write(frame, [segments.segmenter(camera, token) for camera in frame.cameras])
        if self.truth is not None and lacks_truth:
            self.truth.write(frame)


@dataclass(frozen=True)
class PartlyLabelled(Wrapped):
    """The labelled frames of a source first, then all others, whose labels nobody can read from here.

    A frame that was chosen and has no label at a point after all is like the others. Without labels means: every
    point's label is UNKNOWN, which is how a batch's frames are told apart. Boxes and maps are left out of all frames.

    Args:
        labelled: their indices, ascending.
        beside: unlabelled frames that a step takes beside its labelled ones.
    """

    source: Source
    labelled: list[int]
    beside: int
    aside: Aside

    @cached_property
    def unlabelled(self) -> list[int]:
        """The indices of the other frames."""
        known = set(self.labelled)
        return [index for index in range(len(self.source)) if index not in known]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Frame:
        chosen = index < len(self.labelled)
        place = self.labelled[index] if chosen else self.unlabelled[index - len(self.labelled)]
        frame = self.source[place]
        if chosen and (frame.points.labels is None or has_label(frame)):
            return replace(frame, boxes=None, maps=None)  # a frame of a source without labels is for the run to refuse
        self.aside.prepare(place, frame.token)
        return stripped(frame)

    def scenes(self) -> list[str]:
        scenes = self.source.scenes()
        return [scenes[index] for index in self.labelled + self.unlabelled]


def has_label(frame: Frame) -> bool:
    """Whether a point of the frame is labelled."""
    return frame.points.labels is not None and bool((frame.points.labels != UNKNOWN).any())


def still_labelled(change: Callable[[Frame, int], Frame], frame: Frame, epoch: int) -> Frame:
    """The frame changed; as it is if it would lose all its labels, which would make it one of the others."""
    changed = change(frame, epoch)
    return frame if has_label(frame) and not has_label(changed) else changed


def stripped(frame: Frame) -> Frame:
    """The frame without anything that a person, or a world, says of it."""
    nothing = torch.full((len(frame.points),), UNKNOWN)
    instances = None if frame.points.instances is None else nothing
    cameras = tuple(replace(camera, depth=None, semantics=None, instances=None) for camera in frame.cameras)
    points = replace(frame.points, labels=nothing, instances=instances)
    return replace(frame, cameras=cameras, points=points, boxes=None, maps=None)


def aside_of(source: Source, segmenter: Segmenter | None, folder: Path | None) -> Aside:
    """Where segments, and the truth of a synthetic world, are kept for a source.

    Args:
        segmenter: None asks for no segments.
        folder: of segments that were made before; None makes those that are missing, in the cache folder.
    """
    whole = source.source if isinstance(source, Stored) else source
    if segmenter is not None and folder is not None and not folder.is_dir():
        raise ValueError(
            f"there is no folder {folder} with segments: {command(source.name, segmenter, folder)} makes it; "
            "without a folder they are made when first needed"
        )

    def kept(what: str, by: Segmenter, place: Path | None = None) -> SegmentCache:
        name = f"{source.name}-{what}".replace(":", "-").replace("@", "-")
        return SegmentCache(place or cache_folder() / "segments" / f"{name}-{code_edition()}", source.name, by)

    segments = None if segmenter is None else kept("-".join(map(str, described(segmenter).values())), segmenter, folder)
    truth = Truth(kept("truth", Semantics())) if isinstance(_innermost(whole), World) else None
    return Aside(whole, segments, folder is None, truth)


def _innermost(source: Source) -> Source:
    while isinstance(source, Wrapped):
        source = source.source
    return source
