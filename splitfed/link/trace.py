"""Recorded links: a file that says when a byte can pass, read as a whole, and refused with its line where it is wrong.

Two formats, told apart by how many numbers stand in a line:

- Mahimahi's packet deliveries: a whole number of milliseconds, never less than the one before, each a chance for one
  packet of 1,500 bytes, which is lost if nothing waits. The last number is how long the recording is.
- Seconds and Mbit/s: the rate that holds from the second of the line before, or from 0, to this one.

Both begin again at their end, for ever.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from splitfed.errors import ScenarioError

PACKET = 1500  # bytes that one chance carries
_MOST_LINES = 1_000_000
_MOST_MILLISECONDS = 10**12
_MOST_MBITS = 1e6


class Recording(Protocol):
    """When bytes can pass; `length` in seconds, after which it begins again."""

    length: float

    def passed(self, start: float, size: float) -> float:
        """Return when the last of so many bytes has passed that wait from `start` on, both in seconds from 0 on."""
        ...


class Deliveries:
    """Chances for a packet each, at these whole milliseconds, ascending; the last is the length."""

    def __init__(self, chances: Sequence[int]) -> None:
        self._chances = chances
        self.length = chances[-1] / 1000

    def passed(self, start: float, size: float) -> float:
        """Return when the last of these bytes has passed; a chance that is not filled is lost."""
        packets = max(1, math.ceil(size / PACKET))
        loops, inside = divmod(start * 1000, self._chances[-1])
        first = bisect_right(self._chances, inside + 1e-6)  # in this very moment another may have taken it
        more, place = divmod(first + packets - 1, len(self._chances))
        return ((loops + more) * self._chances[-1] + self._chances[place]) / 1000


class Rates:
    """Rates in bytes a second, each until its second; these ascend, and the last is the length."""

    def __init__(self, until: Sequence[float], rates: Sequence[float]) -> None:
        self._until, self._sums = until, [0.0]
        self._rates, self.length = rates, until[-1]
        before = 0.0
        for end, rate in zip(until, rates, strict=True):
            self._sums.append(self._sums[-1] + (end - before) * rate)
            before = end

    @property
    def whole(self) -> float:
        """Bytes that pass from its beginning to its end."""
        return self._sums[-1]

    def passed(self, start: float, size: float) -> float:
        """Return when the last of these bytes has passed."""
        loops, inside = divmod(start, self.length)
        place = min(bisect_right(self._until, inside), len(self._until) - 1)
        begun = self._until[place - 1] if place else 0.0
        more, rest = divmod(self._sums[place] + max(0.0, inside - begun) * self._rates[place] + size, self.whole)
        if not rest:  # as the last byte of a loop passes
            more, rest = more - 1, self.whole
        last = bisect_left(self._sums, rest)
        gap = (rest - self._sums[last - 1]) / self._rates[last - 1]
        return (loops + more) * self.length + (self._until[last - 2] if last > 1 else 0.0) + gap


def read_recording(path: Path, text: bytes | None = None) -> Recording:
    """Read a file, or what it holds (`text`). Raises ScenarioError, with its line, for whatever is no recording."""
    if text is None:
        try:
            text = path.read_bytes()
        except OSError as error:
            raise ScenarioError([f"{path}: cannot be read: {error.strerror}"]) from None
    lines = _lines(path, text)
    columns = len(lines[0][1])
    if columns == 1:
        return _deliveries(path, lines)
    if columns == 2:
        return _rates(path, lines)
    raise _wrong(path, lines[0][0], f"{columns} numbers, where a line has milliseconds, or seconds and Mbit/s")


def _wrong(path: Path, line: int, why: str) -> ScenarioError:
    return ScenarioError([f"{path}:{line}: {why}"])


def _lines(path: Path, text: bytes) -> list[tuple[int, list[str]]]:
    found: list[tuple[int, list[str]]] = []
    for number, line in enumerate(text.split(b"\n"), 1):
        if any(byte > 126 or (byte < 32 and byte not in (9, 13)) for byte in line):
            raise _wrong(path, number, "no text, but binary: a recording has numbers in lines")
        if fields := line.decode("ascii").split():
            found.append((number, fields))
        if len(found) > _MOST_LINES:
            raise _wrong(path, number, f"more than {_MOST_LINES:,} lines")
    if not found:
        raise _wrong(path, 1, "is empty: a recording has milliseconds in its lines, or seconds and Mbit/s")
    return found


def _deliveries(path: Path, lines: list[tuple[int, list[str]]]) -> Deliveries:
    chances: list[int] = []
    for line, fields in lines:
        if len(fields) != 1:
            raise _wrong(path, line, f"{len(fields)} numbers, where the lines before have one")
        if not (fields[0].isdecimal() and len(fields[0]) < 14 and int(fields[0]) <= _MOST_MILLISECONDS):
            raise _wrong(path, line, f"must be a whole number of milliseconds from 0 on, not {fields[0][:40]!r}")
        moment = int(fields[0])
        if chances and moment < chances[-1]:
            raise _wrong(path, line, f"{moment} ms comes after {chances[-1]} ms: put the lines in order")
        chances.append(moment)
    if not chances[-1]:
        raise _wrong(path, lines[-1][0], "the last line is 0, so the recording lasts no time")
    return Deliveries(chances)


def _rates(path: Path, lines: list[tuple[int, list[str]]]) -> Rates:
    until: list[float] = []
    rates: list[float] = []
    for line, fields in lines:
        if len(fields) != 2:
            raise _wrong(path, line, f"{len(fields)} numbers, where the lines before have two")
        second, rate = _number(path, line, fields[0], 1e9), _number(path, line, fields[1], _MOST_MBITS)
        if until and second <= until[-1]:
            raise _wrong(path, line, f"second {second:g} does not come after {until[-1]:g}: put the lines in order")
        until.append(second)
        rates.append(rate * 1e6 / 8)
    if not until[-1]:
        raise _wrong(path, lines[-1][0], "the last second is 0, so the recording lasts no time")
    found = Rates(until, rates)
    if found.whole < 1:
        raise _wrong(path, lines[-1][0], "in all of these seconds not one byte passes")
    return found


def _number(path: Path, line: int, field: str, most: float) -> float:
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise _wrong(path, line, f"must be a number from 0 to {most:g}, not {field[:40]!r}")
    return value
