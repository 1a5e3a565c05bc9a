"""JSON tables as arrays: lists of records that name each other by tokens, read in slices.

The nuScenes tables of the full data set take several gigabytes once parsed. Here some thousands of
records are parsed at a time and only the wanted columns are kept: a 32-digit token as two 64-bit
numbers, a list of numbers as a row, strings as one run of bytes.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_SLICE = 1 << 22
_LONGEST_RECORD = 1 << 26
_NO_TOKEN = "0" * 32


def records(path: Path) -> Iterator[list[dict[str, Any]]]:
    """The records of a JSON list, some thousands at a time."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; fetch the metadata again")
    rest = b""
    with path.open("rb") as file:
        while block := file.read(_SLICE):
            rest += block
            end = rest.rfind(b"}") + 1
            parsed = _parsed(rest[:end])
            if parsed is None and len(rest) > _LONGEST_RECORD:
                break
            if parsed is not None:
                yield parsed
                rest = rest[end:]
    if rest.strip(b" \t\r\n[") != b"]":
        raise ValueError(f"{path} is no complete JSON list of records; fetch the metadata again")


class Table:
    """Some columns of a table, by name.

    Args:
        kinds: what each column is: `token` or `tokens` (the first of a list, if any) -> [n 2] of 64 bits,
            `int`, `bool`, a number of floats -> [n k], `text` -> `Texts`, `list` -> whatever JSON says.
    """

    def __init__(self, folder: Path, name: str, kinds: dict[str, str]) -> None:
        self.path = folder / f"{name}.json"
        slices: dict[str, list[Any]] = {column: [_empty(kind)] for column, kind in kinds.items()}
        for rows in records(self.path):
            for column, kind in kinds.items():
                slices[column].append(self._column(rows, column, kind))
        self.columns: dict[str, Any] = {}
        for column, kind in kinds.items():
            self.columns[column] = _joined(slices.pop(column), kind)

    def __getitem__(self, column: str) -> Any:
        return self.columns[column]

    def pop(self, column: str) -> Any:
        """A column that is not needed here any more."""
        return self.columns.pop(column)

    def rows_of(self, column: str, target: "Table", may_be_empty: bool = False) -> np.ndarray:
        """For each record the row in another table that `column` names, -1 for none."""
        tokens, known = self[column], target["token"]
        keys, wanted = _mixed(known), _mixed(tokens)
        if len(keys):
            order = np.argsort(keys)
            found = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(order) - 1)]
            found[(known[found] != tokens).any(1)] = -1
        else:
            found = np.full(len(wanted), -1)
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
        return found.astype(np.int32)

    def _column(self, rows: list[dict[str, Any]], column: str, kind: str) -> Any:
        try:
            return _converted([row[column] for row in rows], kind)
        except KeyError as problem:
            raise ValueError(f"{self.path}: a record has no {column!r}; this is no nuScenes table") from problem
        except (TypeError, ValueError) as problem:
            raise ValueError(f"{self.path}: {column!r} is not what it should be ({problem})") from problem


class Texts:
    """Strings as one run of bytes and where each begins."""

    def __init__(self, texts: list[str]) -> None:
        encoded = [text.encode() for text in texts]
        self.lengths = np.array([len(text) for text in encoded], np.int64)
        self.bytes = np.frombuffer(b"".join(encoded), np.uint8)

    @classmethod
    def joined(cls, parts: list["Texts"]) -> "Texts":
        """All strings of all parts."""
        texts = cls([])
        texts.lengths = np.concatenate([part.lengths for part in parts])
        texts.bytes = np.concatenate([part.bytes for part in parts])
        return texts

    def columns(self, name: str) -> dict[str, np.ndarray]:
        """As `Columns.text` reads them."""
        return {f"{name}.bytes": self.bytes, f"{name}.offset": np.concatenate([[0], self.lengths.cumsum()])}


def token_pairs(texts: list[str]) -> np.ndarray:
    """Tokens [n 2] as pairs of 64-bit numbers, zero for an empty one; what is no 32-digit number is hashed."""
    try:
        raw = bytes.fromhex("".join([text or _NO_TOKEN for text in texts]))
    except ValueError:
        raw = b""
    if len(raw) != 16 * len(texts) or any(len(text) not in (0, 32) for text in texts):
        raw = b"".join(_token_bytes(text) for text in texts)
    return np.frombuffer(raw, np.uint64).reshape(-1, 2)


def _token_bytes(text: str) -> bytes:
    if not text:
        return bytes(16)
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    return raw if len(raw) == 16 else hashlib.blake2b(text.encode(), digest_size=16).digest()


def _mixed(tokens: np.ndarray) -> np.ndarray:
    """One number per token; two tokens of the full data set share one with a chance of 1 in 10⁶."""
    return tokens[:, 0] ^ (tokens[:, 1] * np.uint64(0x9E3779B97F4A7C15))


def _parsed(part: bytes) -> list[dict[str, Any]] | None:
    """The records of a part of a list; None if it ends inside one."""
    inner = part.lstrip(b" \t\r\n[,")
    try:
        return json.loads(b"[" + inner + b"]") if inner else []
    except ValueError:
        return None


def _converted(values: list[Any], kind: str) -> Any:
    match kind:
        case "token":
            return token_pairs(values)
        case "tokens":
            return token_pairs([tokens[0] if tokens else "" for tokens in values])
        case "text":
            return Texts(values)
        case "list":
            return values
        case _:
            empty = _empty(kind)
            return np.array(values, empty.dtype).reshape(len(values), *empty.shape[1:])


def _empty(kind: str) -> Any:
    match kind:
        case "token" | "tokens":
            return np.zeros((0, 2), np.uint64)
        case "text":
            return Texts([])
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
            return Texts.joined(parts)
        case "list":
            return [value for part in parts for value in part]
        case _:
            return np.concatenate(parts)
