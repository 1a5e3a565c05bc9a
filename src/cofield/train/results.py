"""Results as data: one file per finished experiment, rows of plain keys, and what rows say together."""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cofield.train.checkpoint import write_whole

Row = dict[str, Any]

# The 97.5 % points of Student's t for 1 to 15 degrees of freedom; with more, the normal's is close enough.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def write_results(path: Path, rows: list[Row], seconds: float, command: str | None = None) -> None:
    """One experiment's rows, with the command, the commit and the machine that they come from."""
    result = {
        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(),
        "seconds": round(seconds, 1),
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(result, indent=1) + "\n").encode())


def read_results(folder: Path) -> list[Row]:
    """The rows of every file in a folder; each knows its file as `cell`."""
    return [row for path in sorted(folder.glob("*.json")) for row in read_cell(path)]


def read_cell(path: Path) -> list[Row]:
    """The rows of one file."""
    try:
        return [row | {"cell": path.stem} for row in json.loads(path.read_text())["rows"]]
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"{path} holds no results ({problem}); it should have a list of rows") from problem


def commit() -> str:
    """The commit of the code that runs, with a + if it was changed since; empty outside a clone."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", str(here.parent)], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name + "+" * bool(changed)


def machine() -> str:
    """The processor or GPU, in words."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cores = os.cpu_count()
    return f"{platform.machine()}, {cores} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if self.count < 2:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(values: Iterable[float]) -> Interval:
    """The mean of independent values with Student's 95 % interval; of one value, that value."""
    known = list(values)
    if not known:
        raise ValueError("an interval needs at least one value")
    mean = statistics.fmean(known)
    if len(known) < 2:
        return Interval(mean, mean, mean, 1)
    freedom = len(known) - 1
    point = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else 1.96
    half = point * statistics.stdev(known) / len(known) ** 0.5
    return Interval(mean, mean - half, mean + half, len(known))


def paired_difference(rows: list[Row], other: list[Row], key: Callable[[Row], Any]) -> Interval:
    """The mean of (value here - value there) over what both have; several rows of one key are averaged first."""
    here, there = _means(rows, key), _means(other, key)
    common = sorted(set(here) & set(there))
    if not common:
        raise ValueError("the two have no seed in common")
    return interval([here[each] - there[each] for each in common])


def _means(rows: list[Row], key: Callable[[Row], Any]) -> dict[Any, float]:
    groups: dict[Any, list[float]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row["value"])
    return {name: statistics.fmean(values) for name, values in groups.items()}
