"""A file that says of each client and round who is there: read as a whole, and refused with every mistake in it."""

import csv
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from splitfed.errors import ScenarioError
from splitfed.scenario_schema import did_you_mean

COLUMNS = ("client", "round", "away", "late", "step_seconds", "vanishes_after")
_MOST_SHOWN = 20
_LONGEST = 1e9  # seconds


@dataclass(frozen=True, slots=True)
class Presence:
    """How a client fares in a round: it begins `late` seconds after the round's start, takes `step_seconds` for each
    mini-batch, and vanishes after so many of them (None: it stays)."""

    late: float = 0.0
    step_seconds: float = 1.0
    vanishes_after: int | None = None


class Table:
    """What is listed of clients in a round, or else in every round (None); None stands for one that is away. Who is not
    listed is fully available."""

    def __init__(self, listed: Mapping[tuple[int, int | None], Presence | None]) -> None:
        self._listed = listed

    def _of(self, round: int, client: int) -> Presence | None:
        return self._listed.get((client, round), self._listed.get((client, None), Presence()))

    def away(self, round: int, client: int) -> bool:
        """Return whether a client cannot be sampled."""
        return self._of(round, client) is None

    def presence(self, round: int, client: int, steps: int) -> Presence:
        """Return how a client fares that has so many mini-batches to train."""
        return self._of(round, client) or Presence()


class _Mistake(Exception):
    """What is wrong with a line."""


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
            problems.append(f"{path}:{line}: {mistake}")
    if problems:
        more = len(problems) - _MOST_SHOWN
        raise ScenarioError(problems[:_MOST_SHOWN] + ([f"{path}: and {more} more mistakes"] if more > 0 else []))
    return listed


def _line(fields: dict[str, str], clients: int) -> tuple[tuple[int, int | None], Presence | None]:
    client = _whole(fields, "client")
    if client is None:
        raise _Mistake("client: is missing")
    if client >= clients:
        raise _Mistake(f"client: {client} is none of the scenario's, which are 0 to {clients - 1}")
    round = _whole(fields, "round")
    if round == 0:
        raise _Mistake("round: they are counted from 1")
    away = _whole(fields, "away") or 0
    if away > 1:
        raise _Mistake(f"away: must be 0 or 1, not {away}")
    late, step_seconds = _seconds(fields, "late", 0.0), _seconds(fields, "step_seconds", 1.0)
    presence = Presence(late, step_seconds, _whole(fields, "vanishes_after"))
    return (client, round), None if away else presence


def _whole(fields: dict[str, str], column: str) -> int | None:
    text = fields.get(column, "")
    if text and not re.fullmatch("[0-9]{1,9}", text):
        raise _Mistake(f"{column}: must be a whole number from 0 on, not {text[:40]!r}")
    return int(text) if text else None


def _seconds(fields: dict[str, str], column: str, empty: float) -> float:
    text = fields.get(column, "")
    try:
        value = float(text) if text else empty
    except ValueError:
        value = math.nan
    if not 0 <= value <= _LONGEST:
        raise _Mistake(f"{column}: must be a number of seconds from 0 to {_LONGEST:g}, not {text[:40]!r}")
    return value
