"""Tables as folders of .npy columns, built once from slow files and then memory-mapped by everybody.

A folder's name holds the size and time of what it was built from, so a changed source is a new folder.
It is made under another name and renamed when complete: builders that race never see half a table.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

LAYOUT = 2  # changes when the columns do


class Columns(Mapping[str, np.ndarray]):
    """Read-only arrays by name. It pickles as its folder, so that each worker maps the files itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._open:
            path = self.folder / f"{name}.npy"
            if not path.is_file():
                raise KeyError(name)
            # Small files need no mapping, and empty ones have none.
            column = np.load(path) if path.stat().st_size <= 4096 else np.load(path, mmap_mode="r")
            self._open[name] = column
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.stem for path in self.folder.glob("*.npy")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __reduce__(self) -> tuple[type["Columns"], tuple[Path]]:
        return Columns, (self.folder,)

    def text(self, name: str, row: int) -> str:
        """One string of a column that `pack_texts` made."""
        start, stop = self[f"{name}.offset"][row : row + 2]
        return self[f"{name}.bytes"][start:stop].tobytes().decode()


def pack_texts(name: str, texts: list[str]) -> dict[str, np.ndarray]:
    """Strings as one run of bytes and where each begins."""
    encoded = [text.encode() for text in texts]
    offset = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=offset[1:])
    return {f"{name}.bytes": np.frombuffer(b"".join(encoded), np.uint8), f"{name}.offset": offset}


def open_columns(
    kind: str, folder: Path, sources: list[Path], build: Callable[[], Mapping[str, np.ndarray]]
) -> Columns:
    """The columns that `build` makes of the sources, made now unless they have been made before.

    They are kept in `folder`; where that cannot be written, in $COFIELD_CACHE or ~/.cache/cofield.
    """
    states = [(source.name, source.stat().st_size, source.stat().st_mtime_ns) for source in sources]
    key = hashlib.blake2b(repr((LAYOUT, states)).encode(), digest_size=8).hexdigest()
    place = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=8).hexdigest()
    beside, cached = folder / f".cofield-{kind}-{key}", cache_folder() / f"{kind}-{place}-{key}"
    for target in (beside, cached):
        if target.is_dir():
            return Columns(target)
    columns = build()
    problems = []
    for target in (beside, cached):
        try:
            _write(target, columns)
        except OSError as problem:
            problems.append(f"{target.parent}: {problem.strerror or problem}")
        else:
            return Columns(target)
    raise OSError(f"no place for an index ({'; '.join(problems)}); set COFIELD_CACHE to a folder that can be written")


def cache_folder() -> Path:
    """Where indices go that cannot lie beside their data."""
    return Path(os.environ.get("COFIELD_CACHE") or Path.home() / ".cache" / "cofield")


def _write(target: Path, columns: Mapping[str, np.ndarray]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=target.name, dir=target.parent))
    try:
        draft.chmod(0o755)
        for name, column in columns.items():
            np.save(draft / f"{name}.npy", column)
        draft.rename(target)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        # Another process was faster: its table is as good.
        if not target.is_dir():
            raise
