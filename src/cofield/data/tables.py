"""JSON tables as arrays: lists of records that name each other by tokens, read in slices.

The nuScenes tables of the full data set take several gigabytes once parsed. Here a few megabytes are
scanned at a time and only the wanted columns are kept: a 32-digit token as two 64-bit numbers, a list of
numbers as a row, strings as one run of bytes.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cofield.data.json_scan import BROKEN, END, FULL, gathered, hex_tokens, numbers, scan

Array = np.ndarray

_SLICE = 1 << 23
_LONGEST_RECORD = 1 << 26
_SHORTEST_RECORD = 128  # bytes: a guess at how many records are in a slice, no limit


class Table:
    """Some columns of a table, by name.

    Args:
        kinds: what each column is: `token` (or the first token of a list, if any) -> [n 2] of 64 bits,
            `int`, `bool`, a number of floats -> [n k], `text` -> `Texts`, `list` -> whatever JSON says.
    """

    def __init__(self, folder: Path, name: str, kinds: dict[str, str]) -> None:
        self.path = folder / f"{name}.json"
        parts: dict[str, list[Any]] = {column: [_empty(kind)] for column, kind in kinds.items()}
        for data, spans in slices(self.path, tuple(kinds)):
            for i, (column, kind) in enumerate(kinds.items()):
                parts[column].append(self._column(data, spans[:, i], column, kind))
        self.columns: dict[str, Any] = {}
        for column, kind in kinds.items():
            self.columns[column] = _joined(parts.pop(column), kind)

    def __getitem__(self, column: str) -> Any:
        return self.columns[column]

    def pop(self, column: str) -> Any:
        """A column that is not needed here any more."""
        return self.columns.pop(column)

    def rows_of(self, column: str, target: "Table", may_be_empty: bool = False) -> Array:
        """For each record the row in another table that `column` names, -1 for none."""
        tokens, known = self[column], target["token"]
        found = _rows(tokens, known)
        lost = found < 0
        if may_be_empty:
            lost &= tokens.any(1)
        if lost.any():
            first = int(lost.argmax())
            raise ValueError(
                f"{self.path}: {column} of {int(lost.sum())} records is nowhere in {target.path.name}, "
                f"first of record {first}: {tokens[first].tobytes().hex()}; the tables are of different versions "
                "or incomplete: fetch the metadata again"
            )
        return found

    def _column(self, data: Array, spans: Array, column: str, kind: str) -> Any:
        if (spans < 0).any():
            raise ValueError(f"{self.path}: a record has no {column!r}; this is no nuScenes table")
        try:
            return _converted(data, np.ascontiguousarray(spans), kind)
        except (TypeError, ValueError) as problem:
            raise ValueError(f"{self.path}: {column!r} is not what it should be ({problem})") from problem


class Texts:
    """Strings as one run of bytes and where each begins."""

    def __init__(self, lengths: Array, data: Array) -> None:
        self.lengths, self.bytes = lengths, data

    @classmethod
    def of(cls, texts: list[str]) -> "Texts":
        """These strings."""
        encoded = [text.encode() for text in texts]
        return cls(np.array([len(text) for text in encoded], np.int64), np.frombuffer(b"".join(encoded), np.uint8))

    def columns(self, name: str) -> dict[str, Array]:
        """As `Columns.text` reads them."""
        return {f"{name}.bytes": self.bytes, f"{name}.offset": np.concatenate([[0], self.lengths.cumsum()])}


def slices(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[Array, Array]]:
    """Parts of a file, and where in them each record's values are: [records columns 2], -1 for a missing one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; fetch the metadata again")
    keys = np.frombuffer("".join(columns).encode(), np.uint8)
    key_end = np.cumsum([len(column.encode()) for column in columns])
    rest, state = b"", FULL
    spans = np.full((_SLICE // _SHORTEST_RECORD + 1, len(columns), 2), -1)
    with path.open("rb") as file:
        while state not in (END, BROKEN) and len(rest) < _LONGEST_RECORD and (block := file.read(_SLICE)):
            data = np.frombuffer(rest + block, np.uint8)
            place, state = 0, FULL
            while state == FULL:
                count, place, state = scan(data, place, keys, key_end, spans)
                yield data, spans[:count]
                spans[: count + 1] = -1
            rest = data[place:].tobytes()
    if state != END:
        raise ValueError(f"{path} is no complete JSON list of records; fetch the metadata again")


def token_pairs(texts: list[str]) -> Array:
    """Tokens [n 2] as pairs of 64-bit numbers, zero for an empty one; what is long and no 32-digit number is hashed."""
    raw = b"".join(_token_bytes(text) for text in texts)
    return np.frombuffer(raw, np.uint64).reshape(-1, 2)


def _token_bytes(text: str) -> bytes:
    if not text:
        return bytes(16)
    encoded = text.encode()
    if len(encoded) < 16:
        return encoded.ljust(15, b"\0") + bytes([128 + len(encoded)])
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    return raw if len(raw) == 16 else hashlib.blake2b(encoded, digest_size=16).digest()


def _rows(tokens: Array, known: Array) -> Array:
    """The row of each token among the known ones, -1 where it is none of them."""
    if len(tokens) == len(known) and (tokens == known).all():
        return np.arange(len(known), dtype=np.int32)
    if not len(known):
        return np.full(len(tokens), -1, np.int32)
    keys = _mixed(known)
    order = np.argsort(keys).astype(np.int32)
    place = np.searchsorted(keys[order], _mixed(tokens))
    found = order[np.minimum(place, len(order) - 1)]
    found[(known[found] != tokens).any(1)] = -1
    return found


def _mixed(tokens: Array) -> Array:
    """One number per token; two tokens of the full data set share one with a chance of 1 in 10⁶."""
    return tokens[:, 0] ^ (tokens[:, 1] * np.uint64(0x9E3779B97F4A7C15))


def _converted(data: Array, spans: Array, kind: str) -> Any:
    """The values in the spans; the quick way if it applies, else as the json module reads them."""
    match kind:
        case "token":
            raw = np.empty((len(spans), 16), np.uint8)
            if hex_tokens(data, spans, raw):
                return raw.view(np.uint64)
            values = _loaded(data, spans)
            return token_pairs([value if isinstance(value, str) else value[0] if value else "" for value in values])
        case "text":
            lengths = spans[:, 1] - spans[:, 0] - 2
            out = np.empty(int(lengths.clip(0).sum()), np.uint8)
            if (data == ord("\\")).any() or not (data[spans[:, 0]] == ord('"')).all():
                return Texts.of(_loaded(data, spans))
            gathered(data, spans, out)
            return Texts(lengths, out)
        case "list":
            return _loaded(data, spans)
        case "bool":
            first = data[spans[:, 0]]
            if not ((first == ord("t")) | (first == ord("f"))).all():
                raise ValueError("it is true or false")
            return first == ord("t")
        case _:
            empty = _empty(kind)
            out = np.empty((len(spans), empty.shape[1] if empty.ndim > 1 else 1))
            if not numbers(data, spans, out):
                out = np.array(_loaded(data, spans), empty.dtype)
            return out.astype(empty.dtype).reshape(len(spans), *empty.shape[1:])


def _loaded(data: Array, spans: Array) -> list[Any]:
    return [json.loads(data[start:stop].tobytes()) for start, stop in spans.tolist()]


def _empty(kind: str) -> Any:
    match kind:
        case "token":
            return np.zeros((0, 2), np.uint64)
        case "text":
            return Texts.of([])
        case "list":
            return []
        case "int":
            return np.zeros(0, np.int64)
        case "bool":
            return np.zeros(0, bool)
        case _:
            return np.zeros((0, int(kind)))


def _joined(parts: list[Any], kind: str) -> Any:
    match kind:
        case "text":
            lengths, data = np.concatenate([part.lengths for part in parts]), [part.bytes for part in parts]
            return Texts(lengths, np.concatenate(data))
        case "list":
            return [value for part in parts for value in part]
        case _:
            return np.concatenate(parts)
