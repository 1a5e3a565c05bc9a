"""Batches in an order that is a function of the seed and the step."""

import ctypes
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext

import torch
from torch.utils.data import DataLoader, Dataset

from cofield.data import Source
from cofield.draw import generator
from cofield.frame import Batch, Frame, collate

Place = tuple[int, int]  # epoch, index

# glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD: blocks up to 32 MB, its limit, come from memory that stays, up to 1 GB.
_KEPT = {-3: 32 << 20, -1: 1 << 30}


@dataclass(frozen=True)
class Order:
    """Batches of places in a source, from step `start` on, without end.

    Every epoch is a permutation of the frames; a batch may span two epochs, so none is smaller than another.

    Args:
        batch: frames of a step, over all processes.
        process, processes: which of how many takes these batches: it gets its share of every step's frames.
        pieces: equal batches that a process takes one after the other in a step.
    """

    length: int
    batch: int
    seed: int
    start: int = 0
    process: int = 0
    processes: int = 1
    pieces: int = 1

    def __post_init__(self) -> None:
        if not self.length:
            raise ValueError("there are no frames to train on")
        if self.batch % (self.processes * self.pieces):
            raise ValueError(
                f"{self.batch} frames a step cannot be dealt to {self.processes} processes in {self.pieces} equal "
                f"pieces each; make it (data.batch, or semi.unlabelled) a multiple of {self.processes * self.pieces}"
            )

    @property
    def share(self) -> int:
        """Frames that a process takes at once."""
        return self.batch // (self.processes * self.pieces)

    def __iter__(self) -> Iterator[list[Place]]:
        epoch, order = -1, torch.empty(0, dtype=torch.long)
        place = self.start * self.batch
        while True:
            rows = []
            for position in range(place, place + self.batch):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = torch.randperm(self.length, generator=generator(self.seed, epoch, "order"))
                rows.append((epoch, int(order[position % self.length])))
            place += self.batch
            for piece in range(self.pieces):
                yield rows[piece * self.processes + self.process :: self.pieces * self.processes]


@dataclass(frozen=True)
class Beside:
    """Batches of one order with those of another beside them, whose places count on from the end of the first's."""

    first: Order
    second: Order

    @property
    def share(self) -> int:
        """Frames that a process takes at once."""
        return self.first.share + self.second.share

    def __iter__(self) -> Iterator[list[Place]]:
        for rows, others in zip(self.first, self.second, strict=True):
            yield rows + [(epoch, self.first.length + index) for epoch, index in others]


class _Frames(Dataset):
    """Frames by place, changed by the epoch's augmentation."""

    def __init__(self, source: Source, change: Callable[[Frame, int], Frame] | None) -> None:
        self.source, self.change = source, change

    def __getitem__(self, place: Place) -> tuple[Frame, int]:
        epoch, index = place
        frame = self.source[index]
        return (frame if self.change is None else self.change(frame, epoch)), epoch


def training_batches(
    source: Source,
    order: Order | Beside,
    workers: int = 0,
    change: Callable[[Frame, int], Frame] | None = None,
) -> DataLoader:
    """Endless batches for training, in an order over the source."""
    return _loader(_Frames(source, change), order, workers)


def evaluation_batches(source: Source, batch: int, indices: list[int], workers: int = 0) -> DataLoader:
    """The frames at `indices`, in that order, once."""
    rows = [[(0, index) for index in indices[i : i + batch]] for i in range(0, len(indices), batch)]
    return _loader(_Frames(source, None), rows, workers)


def spread(length: int, count: int) -> list[int]:
    """Up to `count` indices, evenly spread over `length` frames."""
    count = min(count, length)
    return [i * length // count for i in range(count)]


def _loader(frames: _Frames, order: Order | Beside | list[list[Place]], workers: int) -> DataLoader:
    context: BaseContext | None = None
    if not workers:
        keep_memory()
    else:
        # A forked child of a process that has run parallel kernels dies; a fork server never ran any.
        context = torch.multiprocessing.get_context("forkserver")
    return DataLoader(
        frames,
        batch_sampler=order,  # pyright: ignore[reportArgumentType]
        collate_fn=_together,
        num_workers=workers,
        multiprocessing_context=context,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_prepare,
        generator=torch.Generator(),
    )


def _together(rows: list[tuple[Frame, int]]) -> Batch:
    frames, epochs = zip(*rows, strict=True)
    return collate(list(frames), list(epochs))


def keep_memory() -> bool:
    """Let this process keep what freed images held for the next ones; whether its allocator can do that.

    Six images are 100 MB. Handed back to the system after each frame and asked for again, page by page, that costs as
    much time as decoding them.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; other allocators have none
    return mallopt is not None and all(mallopt(option, size) == 1 for option, size in _KEPT.items())


def _prepare(worker: int) -> None:
    torch.set_num_threads(1)
    keep_memory()
