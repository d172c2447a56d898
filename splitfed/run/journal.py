"""CSV files that only grow: how far one has come, whether so much of it is still what was written, and its rows."""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from splitfed.errors import RunError
from splitfed.files import append, reason, write

T = TypeVar("T")
_BLOCK = 1 << 20


class Damaged(RunError):
    """A file that is not what a checkpoint says of it; an older checkpoint may still fit."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a file has come: its length in bytes, and the SHA-256 of so much of it in hex; none in runs of earlier
    versions. A file of no length is not there."""

    length: int = 0
    sha256: str = ""

    @classmethod
    def of(cls, path: Path) -> "Mark":
        """Return the mark of a whole file. Raises OSError where it cannot be read."""
        return Journal(path, "").mark

    def check(self, path: Path, header: str = "") -> None:
        """Raise Damaged unless a file begins with what was marked, and RunError where this is below another header."""
        if not self.length:
            return
        try:
            found, there = _hashed(path, self.length), path.stat().st_size
            with open(path, "rb") as file:
                first = file.readline()
                file.seek(self.length - 1)
                last = file.read(1)
        except OSError as error:
            raise Damaged(f"{path}: cannot be read ({reason(error)})") from None
        if there < self.length:
            raise Damaged(f"{path}: is too short: {there} of {self.length} bytes are there")
        if last != b"\n" or (self.sha256 and found.hexdigest() != self.sha256):
            raise Damaged(f"{path}: is not what was written: its first {self.length} bytes have another SHA-256")
        if header and first != header.encode():
            raise RunError(
                f"{path}: has other columns, so an earlier version of splitfed began this run, go on with that one or "
                "start it anew"
            )

    def cut(self, path: Path, header: str) -> None:
        """Leave what was marked of a file that was checked. Where that is nothing, leave the `header`, or no file."""
        if not self.length:
            if header:
                write(path, header)
            else:
                path.unlink(missing_ok=True)
        elif path.stat().st_size > self.length:
            with open(path, "r+b") as file:
                file.truncate(self.length)
                os.fsync(file.fileno())


class Journal:
    """A file that only grows, below a header. Its mark is known at any time without reading it again."""

    def __init__(self, path: Path, header: str) -> None:
        """Go on with a file that is there; the first rows make one that is not."""
        self.path, self._header = path, header
        self._length = path.stat().st_size if path.exists() else 0
        self._hash = _hashed(path, self._length) if self._length else hashlib.sha256()

    @property
    def mark(self) -> Mark:
        """How far the file has come."""
        return Mark(self._length, self._hash.hexdigest()) if self._length else Mark()

    def start(self) -> None:
        """Make the file, if it is not there. Raises WriteError."""
        self.append("")

    def append(self, rows: str) -> None:
        """Add rows; they are on disk when this returns. Raises WriteError, and the file is as it was."""
        text = rows if self._length else self._header + rows
        if not text:
            return
        append(self.path, text)
        self._length += len(text.encode())
        self._hash.update(text.encode())


def check_finished(folder: Path, name: str, *, more: bool = False) -> None:
    """Raise RunError where a file of a finished run is not what its last checkpoint says, or its last line is cut;
    `more` may follow. Without checkpoints, and in runs of earlier versions, the last line alone tells."""
    path, rounds = folder / name, sorted(one for one in folder.glob("checkpoints/round-*") if one.is_dir())
    try:
        said = json.loads((rounds[-1] / "state.json").read_bytes()) if rounds else {}
        length = said.get(f"{path.stem}_bytes", 0)
        mark = Mark(length, said.get("sha256", {}).get(name, "")) if type(length) is int else Mark()
    except (OSError, ValueError, TypeError, AttributeError):
        mark = Mark()  # a checkpoint that is broken tells nothing
    mark.check(path)
    try:
        size = path.stat().st_size
        cut = not path.read_bytes().endswith(b"\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({reason(error)})") from error
    if cut or (mark.sha256 and size > mark.length and not more):
        raise Damaged(f"{path}: broken ({'its last line is cut' if cut else 'it has more rows than were written'})")


def _hashed(path: Path, length: int) -> "hashlib._Hash":
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while length > 0 and (block := file.read(min(length, _BLOCK))):
            found.update(block)
            length -= len(block)
    return found


def read_table(
    path: Path, make: Callable[[dict[str, str]], T], columns: tuple[str, ...], *, header: bool = True
) -> Iterator[T]:  # fmt: skip
    """Yield what `make` makes of each row, without a last line that is still being written.

    The `header`, where a file has one, must name these `columns`, and may name more. Raises RunError for a file that
    cannot be read, that has another header, and for a row that is too short or too long, or of which `make` raises
    ValueError.
    """
    number = 1
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(_whole(file), None if header else columns, strict=True)
            if missing := [name for name in columns if name not in (rows.fieldnames or ())]:
                raise ValueError(f"no column {missing[0]!r}")
            for row in rows:
                number = rows.line_num
                if None in row or None in row.values():
                    raise ValueError(f"it has not {len(rows.fieldnames or ())} fields")
                yield make(row)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({reason(error)})") from error
    except (csv.Error, ValueError) as error:  # what is no UTF-8 too
        raise RunError(f"{path}: broken (line {number}: {error})") from error


def count(text: str) -> int:
    """Read a number from 0 on. Raises ValueError for anything else."""
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{text[:40]!r} is no count")
    return int(text)


def _whole(file: IO[str]) -> Iterator[str]:
    return (line for line in file if line.endswith("\n"))
