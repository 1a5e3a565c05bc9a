"""Label fraction × seed × initialisation: many small runs, each a file, by as many processes as there are."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cofield.data.fractions import Split
from cofield.train.config import Finetuning
from cofield.train.methods import METHODS, Method, with_method
from cofield.train.results import write_results
from cofield.train.run import finetune
from cofield.train.watch import say

Init = Literal["scratch", "pretrained", "scratch-equal-compute", "scratch-converged"]


@dataclass(frozen=True)
class Sweep:
    """What is varied.

    Args:
        inits: where trunks start; or, of segmentation from few labels, the methods to compare.
        trunks: pre-training runs; each `pretrained` cell is done once from each.
        equal_steps: of `scratch-equal-compute`: fine-tuning steps that take as long as pre-training and fine-tuning.
        converged_steps: of `scratch-converged`: so many that more do not help.
    """

    fractions: tuple[float, ...] = (0.01, 0.1)
    seeds: int = 5
    split: Split = "frames"
    inits: tuple[Init | Method, ...] = ("scratch", "pretrained")
    trunks: tuple[str, ...] = ()
    equal_steps: int = 1600
    converged_steps: int = 3200

    def __post_init__(self) -> None:
        if "pretrained" in self.inits and not self.trunks:
            raise ValueError("--trunks names the pre-training runs that the pretrained cells start from; it is empty")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    fraction: float
    split: Split
    seed: int
    init: Init | Method
    trunk: str | None
    steps: int

    @property
    def name(self) -> str:
        """The file that this cell's result is in."""
        origin = f"-from-{Path(self.trunk).name}" if self.trunk else ""
        return f"{self.init}{origin}-{self.fraction:g}-{self.split}-seed{self.seed}"


def cells(sweep: Sweep, steps: int) -> list[Cell]:
    """Every run: seeds outermost, so that an unfinished sweep is complete for its first seeds."""
    lengths = {"scratch-equal-compute": sweep.equal_steps, "scratch-converged": sweep.converged_steps}
    return [
        Cell(fraction, sweep.split, seed, init, trunk, lengths.get(init, steps))
        for seed in range(sweep.seeds)
        for fraction in sweep.fractions
        for init in sweep.inits
        for trunk in (sweep.trunks if init == "pretrained" else (None,))
    ]


def run_sweep(base: Finetuning, sweep: Sweep, out: Path, runs: Path) -> list[Cell]:
    """Run what is neither done nor being done by another process; the cells that are still missing afterwards.

    Start as many as the machine has room for, on one `out` folder: a cell is claimed by a lock file, which is given up
    when its process is gone.
    """
    every = cells(sweep, base.optim.steps)
    out.mkdir(parents=True, exist_ok=True)
    for cell in every:
        target = out / f"{cell.name}.json"
        if target.exists():
            continue
        with claimed(out / f".{cell.name}.lock") as mine:
            if not mine or target.exists():
                continue
            say(f"{cell.name}: {cell.steps} steps")
            began = time.monotonic()
            scores = finetune(configured(base, cell), runs / cell.name)
            if scores is None:
                break
            write_results(target, rows(base, cell, scores), time.monotonic() - began)
    return [cell for cell in every if not (out / f"{cell.name}.json").exists()]


def configured(base: Finetuning, cell: Cell) -> Finetuning:
    """The run of a cell: its labels and all its draws follow from its seed, so cells of one seed are paired."""
    base = with_method(base, cell.init) if cell.init in METHODS else base
    return replace(
        base,
        start=replace(base.start, trunk=cell.trunk),
        labels=replace(base.labels, fraction=cell.fraction, split=cell.split, seed=cell.seed),
        optim=replace(base.optim, steps=cell.steps, seed=cell.seed, validate_every=cell.steps, save_every=100),
    )


def rows(base: Finetuning, cell: Cell, scores: dict[str, float]) -> list[dict[str, object]]:
    """A row per measured value."""
    common = {
        "task": base.task,
        "source": base.data.source,
        "fraction": cell.fraction,
        "split": cell.split,
        "seed": cell.seed,
        "init": cell.init,
        "trunk": Path(cell.trunk).name if cell.trunk else None,
        "steps": cell.steps,
    }
    return [common | {"metric": name, "value": value} for name, value in scores.items()]


@contextmanager
def claimed(lock: Path) -> Iterator[bool]:
    """Whether this process now holds the lock. The lock of a process that no longer runs on this host is taken over."""
    if lock.exists() and not _alive(lock):
        lock.unlink(missing_ok=True)
    try:
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        yield False
        return
    os.write(handle, f"{platform.node()} {os.getpid()}".encode())
    os.close(handle)
    try:
        yield True
    finally:
        lock.unlink(missing_ok=True)


def _alive(lock: Path) -> bool:
    host, _, process = lock.read_text().partition(" ")
    if host != platform.node() or not process.isdigit() or os.name == "nt":
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
