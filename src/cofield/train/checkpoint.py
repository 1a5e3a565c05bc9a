"""Weights to and from disk: written whole or not at all, read with a report of what matched."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cofield.grid import Grid, grid_from_plain
from cofield.models.cylinder import Cylinder3D
from cofield.models.trunk import Trunk

FORMAT = "cofield-trunk/1"


@dataclass(frozen=True)
class LoadReport:
    """Which of the wanted weights were loaded, and which were not, by name.

    Args:
        loaded: in the file and in the model, of one shape.
        missing: in the model, not in the file.
        unexpected: in the file, not in the model.
        mismatched: in both, of different shapes; with the two shapes.
        skipped: in the model, of parts that were not asked for.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        counts = f"{len(self.loaded)} tensors loaded, {len(self.missing)} missing, {len(self.unexpected)} unexpected, "
        counts += f"{len(self.mismatched)} mismatched, {len(self.skipped)} not asked for"
        lists = {"missing": self.missing, "unexpected": self.unexpected, "mismatched": self.mismatched}
        lines = [f"  {kind}: {_few(names)}" for kind, names in lists.items() if names]
        return "\n".join([counts, *lines])


def write_whole(path: Path, content: bytes) -> None:
    """The file with this content, or, if that fails, what was there before.

    A disk that is full, or a power cut, leaves the earlier file as it was.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as problem:
        part.unlink(missing_ok=True)
        size = len(content) / 2**20
        raise OSError(
            f"could not write {path} ({size:.1f} MiB): {problem}; what was there before is untouched"
        ) from None


def save_trunk(trunk: Trunk | Cylinder3D, path: Path, facts: dict[str, str | int | float]) -> None:
    """The trunk's weights as safetensors; the header names its grid and says where it comes from."""
    header = {"format": FORMAT, "grid": json.dumps(trunk.grid.to_plain()), "facts": json.dumps(facts)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trunk.state_dict().items()}
    write_whole(path, save(tensors, metadata=header))


def load_trunk(
    trunk: Trunk | Cylinder3D, path: Path, parts: tuple[str, ...] | None = None, allow_grid_change: bool = False
) -> LoadReport:
    """Fill a trunk from a file, and report; an expected weight that does not match is an error.

    Args:
        parts: the expected parts, as the beginnings of names: `camera`, `lidar`, `camera.encoder`. None is the whole
            trunk. Weights of other parts stay as they are.
    """
    tensors, grid = read_trunk(path)
    own = trunk.state_dict()
    wanted = ("",) if parts is None else tuple(f"{part}." for part in parts)
    for part in parts or ():
        if not any(name.startswith(f"{part}.") for name in own):
            known = sorted({name.rsplit(".", depth)[0] for name in own for depth in (1, 2)} & _children(trunk))
            raise ValueError(f"this trunk has no part {part!r}; it has {', '.join(known)}")
    related = type(grid) is type(trunk.grid)
    if grid != trunk.grid and not (related and allow_grid_change):
        advice = "--allow-grid-change loads it all the same"
        if not related:
            advice = "boxes and cylinders have encoders that share no weights: pre-train on the grid that is tuned"
        raise ValueError(
            f"{path} was trained on another grid:\n  there: {grid.describe()}\n  here:  {trunk.grid.describe()}\n"
            f"{advice}"
        )
    asked = {name: tensor for name, tensor in own.items() if name.startswith(wanted)}
    common = [name for name in asked if name in tensors]
    loaded = [name for name in common if tensors[name].shape == own[name].shape]
    report = LoadReport(
        loaded=tuple(loaded),
        missing=tuple(name for name in asked if name not in tensors),
        unexpected=tuple(name for name in tensors if name not in own and name.startswith(wanted)),
        mismatched=tuple(
            f"{name} {list(tensors[name].shape)} for {list(own[name].shape)}" for name in common if name not in loaded
        ),
        skipped=tuple(name for name in own if name not in asked),
    )
    if report.missing or report.mismatched:
        raise ValueError(
            f"{path} does not hold what this trunk expects: {report}\n"
            "--parts names what to load; everything else then starts fresh"
        )
    trunk.load_state_dict(own | {name: tensors[name] for name in loaded})
    return report


def read_trunk(path: Path) -> tuple[dict[str, Tensor], Grid]:
    """The tensors of a trunk's file, and its grid."""
    if not path.is_file():
        raise ValueError(f"there is no trunk at {path}; a finished pre-training run has one")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise ValueError(f"{path} cannot be read as safetensors ({problem}); is it complete?") from problem
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is no {FORMAT} file; its header says {header.get('format')!r}")
    return tensors, grid_from_plain(json.loads(header["grid"]))


def _children(trunk: Trunk | Cylinder3D) -> set[str]:
    return {name for name, _ in trunk.named_modules() if name and name.count(".") <= 1}


def _few(names: tuple[str, ...], most: int = 8) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
