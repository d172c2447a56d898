"""CSV files of a run folder, read row by row: whatever is wrong with one is told in a line that names it."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from splitfed.errors import RunError
from splitfed.files import reason

T = TypeVar("T")


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
