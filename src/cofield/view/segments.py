"""Segments of a source: made, measured and drawn."""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from cofield.classes import UNKNOWN
from cofield.data import Source, open_source
from cofield.data.loader import spread
from cofield.data.segment_cache import SegmentCache, SegmentReport, precompute
from cofield.data.segments import segmenter_called
from cofield.view.paint import Picture, instance_picture, picture, tiles

EDGE = (255, 255, 255)


def segments(
    name: str,
    out: Path,
    root: Path | None = None,
    segmenter: str = "felzenszwalb",
    weights: str | None = None,
    split: str = "train",
    frames: int | None = None,
    pictures: int = 4,
) -> SegmentReport:
    """Write the segments of a source's frames into a folder, and a picture of a few; the same call again resumes.

    Args:
        name: of the source.
        segmenter: one of `data.segments.SEGMENTERS`.
        weights: for SAM, the folder of a model or its name on the hub.
        frames: how many, spread over the split; None is all.
        pictures: how many frames to draw.
    """
    if frames is not None and frames < 1:
        raise ValueError(f"the number of frames must be at least 1, got {frames}")
    finder = segmenter_called(segmenter, weights)
    source = open_source(name, root, split)
    chosen = spread(len(source), len(source) if frames is None else frames)
    report = precompute(source, finder, out, chosen, Bar())
    shown = [chosen[place] for place in spread(len(chosen), pictures)]
    if shown:
        Image.fromarray(sheet(source, SegmentCache(out, source.name, finder), shown)).save(out / f"{split}.png")
    return report


def sheet(source: Source, cache: SegmentCache, frames: list[int]) -> UInt8[np.ndarray, "rows columns 3"]:
    """Frames and their segments: for every camera the image beside its segments."""
    cells = []
    for index in frames:
        frame = source[index]
        for camera, label in zip(frame.cameras, cache.read(frame), strict=True):
            count = int(label.max()) + 1
            cells.append((f"{frame.token} {camera.name}", picture(camera.image)))
            cells.append((f"{count} segments", segment_picture(camera.image, label)))
    return tiles(cells, columns=4, width=max(320, cells[0][1].shape[1]))


def segment_picture(image: Float[Tensor, "3 h w"], label: Int[Tensor, "h w"]) -> Picture:
    """An image tinted by its segments, with white borders between them where it is large enough; grey without one."""
    tint = instance_picture(label).astype(np.float32)
    grey = picture(image).mean(-1, keepdims=True)
    shown = np.where((label == UNKNOWN).numpy()[..., None], grey * 0.4 + 20, tint * (0.35 + 0.5 * grey / 255))
    if min(label.shape) >= 200:
        edge = torch.zeros_like(label, dtype=torch.bool)
        edge[1:] |= label[1:] != label[:-1]
        edge[:, 1:] |= label[:, 1:] != label[:, :-1]
        shown[edge.numpy()] = EDGE
    return shown.round().clip(0, 255).astype(np.uint8)


class Bar:
    """Progress on the error stream: a bar that grows on a terminal, a line now and then elsewhere."""

    width = 30

    def __init__(self, quiet_seconds: float = 10.0) -> None:
        self.began = self.spoken = time.monotonic()
        self.quiet_seconds = quiet_seconds

    def __call__(self, done: int, of: int) -> None:
        now, last = time.monotonic(), done == of
        live = sys.stderr.isatty()
        if not (live or last or now - self.spoken > self.quiet_seconds):
            return
        self.spoken = now
        left = int((now - self.began) / done * (of - done))
        full = self.width * done // of
        line = f"[{'=' * full}{' ' * (self.width - full)}] {done}/{of} frames, {left // 60}:{left % 60:02d} left"
        sys.stderr.write(f"\r{line}" + "\n" * last if live else f"{line}\n")
        sys.stderr.flush()
