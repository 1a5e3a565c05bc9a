"""Segments on disk: one small lossless file per frame, which says what it is of and is not taken for anything else."""

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cofield.classes import UNKNOWN
from cofield.data import Source
from cofield.data.segments import SEGMENTERS, Sam, Segmenter, described
from cofield.frame import Batch, Frame

FORMAT = 1
MOST = 2**16 - 1  # segments of an image that 16 bits can number
# What reading a damaged file may raise; the last is zipfile's word for a way of packing that it does not know.
BROKEN = (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError)
ALIKE = 0.02  # the largest difference of a thumbnail's grey from what it was: decoders differ, pictures differ more


@dataclass(frozen=True)
class SegmentCache:
    """The segments that one segmenter finds in the frames of one source.

    A file holds the label images of a frame's cameras, deflated (smaller than PNG, and than run lengths of
    superpixels), and a header. Files of another source, segmenter or setting, of images of another size or of other
    images, are refused.

    Args:
        source: its name.
    """

    folder: Path
    source: str
    segmenter: Segmenter

    def path(self, token: str) -> Path:
        """Where a frame's segments are."""
        return self.folder / f"{token.replace('/', '-')}.npz"

    def write(self, frame: Frame, labels: Sequence[Int[Tensor, "_ _"]]) -> None:
        """Keep the label images of a frame's cameras; the file appears whole or not at all."""
        for camera, label in zip(frame.cameras, labels, strict=True):
            if label.shape != camera.image.shape[-2:]:
                raise ValueError(
                    f"the segments of {_where(frame.token, camera.name)} are {_size(label)}, "
                    f"its image {_size(camera.image)}"
                )
            if int(label.max()) >= MOST:
                raise ValueError(
                    f"{_where(frame.token, camera.name)} has {int(label.max()) + 1} segments, and a file holds {MOST}; "
                    "take a coarser segmenter"
                )
        cameras = [
            {"name": camera.name, "size": list(camera.image.shape[-2:]), "grey": _thumbnail(camera.image)}
            for camera in frame.cameras
        ]
        header = json.dumps(self._facts(frame.token) | {"cameras": cameras}).encode()
        tables: dict[str, Any] = {f"camera.{i}": (x + 1).to(torch.uint16).numpy() for i, x in enumerate(labels)}
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f".{self.path(frame.token).stem}.{os.getpid()}.part"
        with part.open("wb") as stream:
            np.savez_compressed(stream, header=np.frombuffer(header, np.uint8), **tables)
        part.replace(self.path(frame.token))

    def read(self, frame: Frame) -> tuple[Int[Tensor, "_ _"], ...]:
        """The label images of a frame's cameras."""
        header, labels = self._load(frame.token)
        names = [camera.name for camera in frame.cameras]
        kept = [camera["name"] for camera in header["cameras"]]
        if names != kept:
            raise ValueError(f"{self.path(frame.token)} is of cameras {kept}, the frame has {names}; {self._remedy()}")
        for camera, facts in zip(frame.cameras, header["cameras"], strict=True):
            self._check_image(frame.token, camera.image, facts)
        return labels

    def of_batch(self, batch: Batch) -> Int[Tensor, "b n h w"]:
        """The label images of a batch, UNKNOWN where an image is padded."""
        views = batch.valid.shape[1]
        if not views:
            raise ValueError(f"frame {batch.tokens[0]} has no cameras, and so no segments; leave such frames out")
        out = torch.full(batch.valid.shape, UNKNOWN)
        for b, token in enumerate(batch.tokens):
            header, labels = self._load(token)
            if len(labels) != views:
                raise ValueError(
                    f"{self.path(token)} is of {len(labels)} cameras, the frame has {views}; {self._remedy()}"
                )
            for n, (facts, label) in enumerate(zip(header["cameras"], labels, strict=True)):
                height, width = label.shape
                beyond = batch.valid[b, n].clone()
                beyond[:height, :width] = False
                if height > out.shape[2] or width > out.shape[3] or beyond.any():
                    raise ValueError(
                        f"{self.path(token)} is of an image of {height}×{width}, the batch has another size "
                        f"({_size(out)}); {self._remedy()}"
                    )
                self._check_image(token, batch.images[b, n, :, :height, :width], facts)
                out[b, n, :height, :width] = label
        return out.to(batch.valid.device)

    def _facts(self, token: str) -> dict[str, Any]:
        return {"format": FORMAT, "source": self.source, "frame": token, "segmenter": described(self.segmenter)}

    def _remedy(self) -> str:
        return f"make it anew, or in another folder: {command(self.source, self.segmenter, 'FOLDER')}"

    def _load(self, token: str) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        path = self.path(token)
        if not path.exists():
            raise FileNotFoundError(f"there are no segments of frame {token}: {path} is missing; {self._remedy()}")
        try:
            with path.open("rb") as stream, np.load(stream) as file:
                header = json.loads(file["header"].tobytes())
                tables = [file[f"camera.{i}"].astype(np.int64) for i in range(len(header["cameras"]))]
        except BROKEN as problem:
            raise ValueError(f"{path} holds no segments ({problem}); delete it and run the command again") from problem
        for name, wanted in self._facts(token).items():
            if header.get(name) != wanted:
                raise ValueError(f"{path} has {name} {header.get(name)}, wanted is {wanted}; {self._remedy()}")
        return header, tuple(torch.from_numpy(table) - 1 for table in tables)

    def _check_image(self, token: str, image: Float[Tensor, "3 h w"], facts: dict[str, Any]) -> None:
        where = f"{self.path(token)} ({facts['name']})"
        if list(image.shape[-2:]) != facts["size"]:
            size = "×".join(str(n) for n in facts["size"])
            raise ValueError(f"{where} is of an image of {size}, not of {_size(image)}; {self._remedy()}")
        if max(abs(a - b) for a, b in zip(_thumbnail(image), facts["grey"], strict=True)) > ALIKE:
            raise ValueError(f"{where} is of another image of the same size; {self._remedy()}")


def command(source: str, segmenter: Segmenter, out: Path | str) -> str:
    """What makes such segments of a source; ROOT stands for the folder of a data set."""
    root = "" if source.startswith("world:") else " --root ROOT"
    known = [name for name, each in SEGMENTERS.items() if each == segmenter]
    if isinstance(segmenter, Sam) and not known:
        known = [f"sam --weights {segmenter.weights}"]
    kind = known[0] if known else type(segmenter).__name__
    return f"cofield segments {source}{root} --segmenter {kind} --out {out}"


@dataclass(frozen=True)
class SegmentReport:
    """What a source's segments are like.

    Args:
        made: frames that were computed now; the others were there.
        size: bytes on disk.
        coverage: the share of image pixels in a segment.
        per_image: segments of an image, in the mean.
        typical: pixels of a segment, in the median.
    """

    frames: int
    made: int
    images: int
    size: int
    coverage: float
    per_image: float
    typical: float

    def __str__(self) -> str:
        return (
            f"{self.frames} frames ({self.made} new), {self.images} images, {self.size / 1e6:.2f} MB; "
            f"{self.coverage:.1%} of the pixels are in a segment, {self.per_image:.0f} segments per image, "
            f"of {self.typical:.0f} pixels in the median"
        )


def precompute(
    source: Source,
    segmenter: Segmenter,
    folder: Path,
    frames: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SegmentReport:
    """Segment frames of a source that are not in the folder yet.

    Args:
        frames: which; None is all.
        progress: told after each frame how many of how many are done.
    """
    cache = SegmentCache(folder, source.name, segmenter)
    chosen = range(len(source)) if frames is None else frames
    made = images = covered = pixels = 0
    sizes: list[int] = []
    tokens: list[str] = []
    for done, index in enumerate(chosen, 1):
        frame = source[index]
        if not frame.cameras:
            raise ValueError(f"frame {frame.token} of {source.name} has no cameras, and so nothing to segment")
        if not cache.path(frame.token).exists():
            cache.write(frame, [segmenter(camera, frame.token) for camera in frame.cameras])
            made += 1
        for camera, label in zip(frame.cameras, cache.read(frame), strict=True):
            covered += int((label != UNKNOWN).sum())
            pixels += label.numel() if camera.valid is None else int(camera.valid.sum())
            sizes += torch.bincount(label[label != UNKNOWN]).tolist()
            images += 1
        tokens.append(frame.token)
        if progress is not None:
            progress(done, len(chosen))
    if not tokens:
        raise ValueError(f"{source.name} has no frames to segment")
    return SegmentReport(
        frames=len(tokens),
        made=made,
        images=images,
        size=sum(cache.path(token).stat().st_size for token in tokens),
        coverage=covered / max(1, pixels),
        per_image=len(sizes) / images,
        typical=float(median(sizes)) if sizes else 0.0,
    )


def _thumbnail(image: Float[Tensor, "3 h w"]) -> list[float]:
    """The grey of 4 × 6 parts of an image: enough to tell it from others, and from itself turned or cut."""
    grey = F.adaptive_avg_pool2d(image.mean(0, keepdim=True), (4, 6))
    return [round(value, 4) for value in grey.flatten().tolist()]


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]}×{image.shape[-1]}"


def _where(token: str, camera: str) -> str:
    return f"camera {camera!r} of frame {token}"
