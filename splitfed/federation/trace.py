"""A file that says of each client and round who is there: read as a whole, and refused with every mistake in it."""

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from splitfed.config import did_you_mean
from splitfed.errors import ScenarioError

COLUMNS = ("client", "round", "away", "late", "step_seconds", "vanishes_after")
_MOST_SHOWN = 20
_MOST = 10**9

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Presence:
    """How a client fares in a round: it begins `late` seconds after the round's start, takes `step_seconds` for each
    mini-batch (None: nothing tells), and vanishes after so many of them (None: it stays)."""

    late: float = 0.0
    step_seconds: float | None = None
    vanishes_after: int | None = None


class Table:
    """What is listed of clients in a round, or else in every round (None); None stands for one that is away. Who is not
    listed is fully available."""

    def __init__(self, listed: Mapping[tuple[int, int | None], Presence | None]) -> None:
        self._listed = listed

    def _of(self, round: int, client: int) -> Presence | None:
        return self._listed.get((client, round), self._listed.get((client, None), Presence()))

    @property
    def tells_seconds(self) -> bool:
        """Whether any line tells what a mini-batch takes."""
        return any(one is not None and one.step_seconds is not None for one in self._listed.values())

    def away(self, round: int, client: int) -> bool:
        """Return whether a client cannot be sampled."""
        return self._of(round, client) is None

    def presence(self, round: int, client: int, steps: int) -> Presence:
        """Return how a client fares that has so many mini-batches to train."""
        return self._of(round, client) or Presence()


class _Mistake(Exception):
    """What is wrong with a line, one argument for each mistake."""


def read_trace(path: Path, clients: int) -> Table:
    """Read a CSV with a header and `COLUMNS`, for clients from 0 to one less than `clients`; all columns but the first
    may be left out, and all fields but the client be empty. Raises ScenarioError with every problem and its line."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines(keepends=True)
    except OSError as error:
        raise ScenarioError([f"federation.availability.file: {path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ScenarioError([f"{path}:{line}: not UTF-8 text"]) from None
    rows = csv.reader(lines)
    try:
        header = [name.strip() for name in next(rows, [])]
        if problem := _wrong(header):
            raise ScenarioError([f"{path}:1: {problem}"])
        return Table(_read(path, rows, header, clients))
    except csv.Error as error:
        raise ScenarioError([f"{path}:{rows.line_num}: no CSV: {error}"]) from None


def _wrong(header: list[str]) -> str | None:
    if "client" not in header:
        return f"the first line must name the columns, and 'client' among them; known: {', '.join(COLUMNS)}"
    for place, name in enumerate(header):
        if name not in COLUMNS:
            return f"unknown column {name[:40]!r}{did_you_mean(name, list(COLUMNS))}; known: {', '.join(COLUMNS)}"
        if name in header[:place]:
            return f"the column {name!r} is there twice"
    return None


def _read(
    path: Path, rows: Iterator[list[str]], header: list[str], clients: int
) -> dict[tuple[int, int | None], Presence | None]:
    listed: dict[tuple[int, int | None], Presence | None] = {}
    first: dict[tuple[int, int | None], int] = {}
    problems: list[str] = []
    for row in rows:
        line = rows.line_num  # type: ignore[attr-defined]
        if not any(field.strip() for field in row):
            continue
        try:
            if len(row) != len(header):
                raise _Mistake(f"{len(row)} fields, where the header names {len(header)}")
            pair, presence = _line(dict(zip(header, map(str.strip, row), strict=True)), clients)
            if pair in listed:
                where = "every round" if pair[1] is None else f"round {pair[1]}"
                raise _Mistake(f"client {pair[0]} is listed for {where} already, in line {first[pair]}")
            listed[pair], first[pair] = presence, line
        except _Mistake as mistake:
            problems += [f"{path}:{line}: {one}" for one in mistake.args]
    if problems:
        more = len(problems) - _MOST_SHOWN
        raise ScenarioError(problems[:_MOST_SHOWN] + ([f"{path}: and {more} more mistakes"] if more > 0 else []))
    return listed


def _line(fields: dict[str, str], clients: int) -> tuple[tuple[int, int | None], Presence | None]:
    wrong: list[str] = []

    def read(column: str, parse: Callable[[str], T], empty: T) -> T:
        try:
            return parse(text) if (text := fields.get(column, "")) else empty
        except ValueError as error:
            wrong.append(f"{column}: {error}, not {text[:40]!r}")
            return empty

    numbers = f"must be one of the scenario's clients, 0 to {clients - 1}"
    client = read("client", lambda text: _whole(text, 0, clients - 1, numbers), -1)
    round = read("round", lambda text: _whole(text, 1, _MOST, "must be a whole number from 1 on"), None)
    away = read("away", lambda text: _whole(text, 0, 1, "must be 0 or 1"), 0)
    late, step_seconds = read("late", _seconds, 0.0), read("step_seconds", _seconds, None)
    after = read("vanishes_after", lambda text: _whole(text, 0, _MOST, "must be a whole number from 0 on"), None)
    if not fields["client"]:
        wrong.append("client: is missing")
    if wrong:
        raise _Mistake(*wrong)
    return (client, round), None if away else Presence(late, step_seconds, after)


def _whole(text: str, low: int, high: int, must_be: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or not low <= int(text) <= high:
        raise ValueError(must_be)
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _MOST:
        raise ValueError(f"must be a number of seconds from 0 to {_MOST:g}")
    return value
