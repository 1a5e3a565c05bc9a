"""Label fraction × seed × initialisation: many small runs, each a file, by as many processes as there are."""

import hashlib
import json
import os
import platform
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from cofield.data.fractions import Split
from cofield.train.config import Finetuning, flat
from cofield.train.methods import METHODS, with_changes, with_method
from cofield.train.recipes import fitting, recipe_for
from cofield.train.results import Row, read_cell, write_results
from cofield.train.run import finetune, trunk_file
from cofield.train.watch import say

STARTS = ("scratch", "pretrained", "scratch-equal-compute", "scratch-converged")
FROM_TRUNK = "pretrained-"  # before a method's name
RECIPE = "map:world:small"  # of a sweep that names none
KINDS = (*STARTS, *METHODS, *(FROM_TRUNK + name for name in METHODS))


@dataclass(frozen=True)
class Sweep:
    """What is varied.

    Args:
        seeds: which; cells of one seed see the same labels in the same order.
        inits: where trunks start; or, of segmentation from few labels, the methods to compare, which `pretrained-`
            before the name starts from a trunk. A + adds changes of the configuration:
            `nerf-exact+pseudo.threshold=0.1+pseudo.samples=16`.
        trunks: pre-training runs; each `pretrained` cell is done once from each.
        equal_steps: of `scratch-equal-compute`: fine-tuning steps that take as long as pre-training and fine-tuning.
        converged_steps: of `scratch-converged`: so many that more do not help.
    """

    fractions: tuple[float, ...] = (0.01, 0.1)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    split: Split = "frames"
    inits: tuple[str, ...] = ("scratch", "pretrained")
    trunks: tuple[str, ...] = ()
    equal_steps: int = 1600
    converged_steps: int = 3200

    def __post_init__(self) -> None:
        kinds = {kind_of(init) for init in self.inits}
        if unknown := kinds - {*KINDS}:
            known = ", ".join([*STARTS, *METHODS])
            raise ValueError(f"no cell is called {', '.join(sorted(unknown))}; there is {known}, and pretrained-METHOD")
        if any(map(from_trunk, kinds)) and not self.trunks:
            raise ValueError("--trunks names the pre-training runs that the pretrained cells start from; it is empty")
        if len({Path(trunk).name for trunk in self.trunks}) < len(self.trunks):
            raise ValueError(
                f"cells are named by their trunks' folders, and two have one name: {', '.join(self.trunks)}"
            )


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Args:
        sensors: of a synthetic world, what its name says of them; the same cell with others is another file.
    """

    fraction: float
    split: Split
    seed: int
    init: str
    trunk: str | None
    steps: int
    sensors: str = ""

    @property
    def name(self) -> str:
        """The file that this cell's result is in."""
        origin = f"-from-{Path(self.trunk).name}" if self.trunk else ""
        sensors = f"+{self.sensors}" if self.sensors else ""
        return f"{self.init}{origin}-{self.fraction:g}-{self.split}-seed{self.seed}{sensors}".replace("/", "-")


def kind_of(init: str) -> str:
    """A start or method without what is changed of it."""
    return init.partition("+")[0]


def from_trunk(init: str) -> bool:
    """Whether a start or method begins with what a pre-training learned."""
    return init.startswith("pretrained")


def cells(sweep: Sweep, steps: int, sensors: str = "") -> list[Cell]:
    """Every run: seeds outermost, so that an unfinished sweep is complete for its first seeds."""
    lengths = {"scratch-equal-compute": sweep.equal_steps, "scratch-converged": sweep.converged_steps}
    return [
        Cell(fraction, sweep.split, seed, init, trunk, lengths.get(kind_of(init), steps), sensors)
        for seed in sweep.seeds
        for fraction in sweep.fractions
        for init in sweep.inits
        for trunk in (sweep.trunks if from_trunk(init) else (None,))
    ]


def run_sweep(base: Finetuning, sweep: Sweep, out: Path, runs: Path) -> list[Cell]:
    """Run what is neither done nor being done by another process; the cells that are still missing afterwards.

    Start as many as the machine has room for, on one `out` folder: a cell is claimed by a lock file, which is given up
    when its process is gone.
    """
    source = base.data.source
    every = cells(sweep, base.optim.steps, source.partition("+")[2] if source.startswith("world:") else "")
    wanted = {cell: configured(base, cell) for cell in every}
    out.mkdir(parents=True, exist_ok=True)
    for cell, config in wanted.items():
        check_done(out / f"{cell.name}.json", base, cell, config)
    for cell, config in wanted.items():
        target = out / f"{cell.name}.json"
        if target.exists():
            continue
        with claimed(out / f".{cell.name}.lock") as mine:
            if not mine or target.exists():
                continue
            say(f"{cell.name}: {cell.steps} steps")
            began = time.monotonic()
            scores = finetune(config, runs / cell.name)
            if scores is None:
                break
            write_results(target, rows(config, cell, scores), time.monotonic() - began)
    return [cell for cell in every if not (out / f"{cell.name}.json").exists()]


def configured(base: Finetuning, cell: Cell) -> Finetuning:
    """The run of a cell: its labels and all its draws follow from its seed, so cells of one seed are paired."""
    kind, _, changes = cell.init.partition("+")
    if (method := kind.removeprefix(FROM_TRUNK)) in METHODS:
        base = with_method(base, method)
    base = with_changes(base, changes)
    config = replace(
        base,
        start=replace(base.start, trunk=cell.trunk),
        labels=replace(base.labels, fraction=cell.fraction, split=cell.split, seed=cell.seed),
        optim=replace(base.optim, steps=cell.steps, seed=cell.seed, validate_every=cell.steps, save_every=100),
    )
    if not config.data.validation:
        raise ValueError("a sweep compares scores, and with data.validation 0 there is none")
    if with_changes(config, changes) != config:
        raise ValueError(f"{cell.init} changes what the sweep itself sets by --seeds, --fractions, --steps or --trunks")
    return config


def check_done(target: Path, base: Finetuning, cell: Cell, config: Finetuning) -> None:
    """Refuse a finished cell of that name that is of another source, length or recipe: it would pass for this one."""
    if not target.exists():
        return
    wanted = {"task": config.task, "source": config.data.source, "steps": config.optim.steps, "config": digest(config)}
    for name, value in wanted.items():
        found = {row.get(name) for row in read_cell(target)}
        if name == "config" and found == {None}:
            found = {digest_by_command(target, base, cell)}
        if found - {value}:
            has = ", ".join(map(str, found - {value}))
            raise ValueError(f"{target} has {name} {has}, this sweep {value}; choose another NAME, or remove the file")


def digest_by_command(target: Path, base: Finetuning, cell: Cell) -> str:
    """The digest of a cell from before cells had one: of the recipe that its command names, as that recipe is now."""
    words = shlex.split(json.loads(target.read_text()).get("command", ""))
    name = words[words.index("--recipe") + 1] if "--recipe" in words[:-1] else RECIPE
    if name not in fitting(Finetuning):
        return f"of an unknown recipe, {name}"
    recipe = recipe_for(name, Finetuning)
    place = replace(recipe.data, source=base.data.source, root=base.data.root)
    try:
        return digest(configured(replace(recipe, data=place), cell))
    except ValueError:  # a method of another task
        return f"of the recipe {name}"


def digest(config: Finetuning) -> str:
    """A short name of what a configuration changes of the defaults, and of its trunk's weights, wherever they are."""
    plain, mine = (flat(each) for each in (type(config)(grid=config.grid), config))
    changed = {name: value for name, value in mine.items() if name.startswith("grid.") or value != plain[name]}
    for place in ("data.root", "data.workers"):
        changed.pop(place, None)
    if config.start.trunk is not None:
        changed["start.trunk"] = of_file(trunk_file(config.start.trunk))
    return hashlib.blake2s(repr(sorted(changed.items())).encode(), digest_size=6).hexdigest()


@cache
def of_file(path: Path) -> str:
    """A short name of what a file holds."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2s").hexdigest()


def rows(config: Finetuning, cell: Cell, scores: dict[str, float]) -> list[Row]:
    """A row per measured value."""
    common = {
        "task": config.task,
        "source": config.data.source,
        "fraction": cell.fraction,
        "split": cell.split,
        "seed": cell.seed,
        "init": cell.init,
        "trunk": Path(cell.trunk).name if cell.trunk else None,
        "steps": cell.steps,
        "config": digest(config),
    }
    return [common | {"metric": name, "value": value} for name, value in scores.items()]


@contextmanager
def claimed(lock: Path) -> Iterator[bool]:
    """Whether this process now holds the lock. The lock of a process that no longer runs on this host is taken over."""
    _give_up(lock)
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


def _give_up(lock: Path) -> None:
    """Remove the lock of a process that is gone."""
    try:
        holder = lock.read_text()
        if _alive(holder):
            return
        aside = lock.with_name(f"{lock.name}.{os.getpid()}")
        lock.rename(aside)
    except FileNotFoundError:  # given up by its process, or by another one that saw the same
        return
    if aside.read_text() != holder:  # somebody has just taken it over: it is theirs
        aside.rename(lock)
    aside.unlink(missing_ok=True)


def _alive(holder: str) -> bool:
    """Whether the process that a lock names runs, as far as can be told from here."""
    host, _, process = holder.partition(" ")
    if host != platform.node() or not process.isdigit() or os.name == "nt":
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
