"""The ledger: one row for every role of every frame that crosses, and the sums that budgets and tables read."""

import csv
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Literal

Direction = Literal["up", "down"]
Plane = Literal["data", "control"]

# In the order in which tables show them.
ROLES = (
    "smashed", "targets", "side", "tail_smashed", "tail_gradient", "cut_gradient", "evaluation", "parts",
    "front_weights", "back_weights", "tail_weights", "metrics", "envelope",
)  # fmt: skip
COLUMNS = (
    "round", "step", "client", "direction", "plane", "role", "raw_bytes", "reduced_bytes", "coded_bytes", "sent_bytes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of one thing at four stages: float32 without reduction, after the reducer in float32, after the codec, and
    as it crossed."""

    raw: int = 0
    reduced: int = 0
    coded: int = 0
    sent: int = 0

    def __add__(self, other: "Sizes") -> "Sizes":
        return Sizes(
            self.raw + other.raw, self.reduced + other.reduced, self.coded + other.coded, self.sent + other.sent
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A line of `ledger.csv`; `step` counts a client's mini-batches of a round from 1, its end as one more, and is 0 on
    the control plane."""

    round: int
    step: int
    client: int
    direction: Direction
    plane: Plane
    role: str
    sizes: Sizes

    def line(self) -> str:
        """Return the row as a line of CSV."""
        s = self.sizes
        return (
            f"{self.round},{self.step},{self.client},{self.direction},{self.plane},{self.role},"
            f"{s.raw},{s.reduced},{s.coded},{s.sent}\n"
        )


class Totals:
    """Sums of rows by (plane, direction, role); adds like a number."""

    def __init__(self, sums: Mapping[tuple[str, str, str], Sizes] | None = None) -> None:
        self.sums: dict[tuple[str, str, str], Sizes] = defaultdict(Sizes, sums or {})

    def add(self, row: Row) -> None:
        """Add one row."""
        self.sums[row.plane, row.direction, row.role] += row.sizes

    def __add__(self, other: "Totals") -> "Totals":
        total = Totals(self.sums)
        for key, sizes in other.sums.items():
            total.sums[key] += sizes
        return total

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Totals) and dict(self.sums) == dict(other.sums)

    def __hash__(self) -> int:
        raise TypeError("Totals change, so they have no hash")

    def select(self, *, plane: str | None = None, direction: str | None = None, role: str | None = None) -> Sizes:
        """Return the sum over what matches."""
        total = Sizes()
        for (p, d, r), sizes in self.sums.items():
            if plane in (None, p) and direction in (None, d) and role in (None, r):
                total += sizes
        return total

    @property
    def cut(self) -> Sizes:
        """The data plane, both ways: what papers compare and what budgets count."""
        return self.select(plane="data")

    @property
    def total(self) -> Sizes:
        """Both planes."""
        return self.select()


class Ledger:
    """Counts what crosses, round by round.

    Rows of the open round go at once to `open-<attempt>.csv`, so that a killed process loses none. `commit` appends a
    finished round to `ledger.csv`, by plane, client and step, whoever came first. `waste` moves an unfinished one to
    `wasted.csv`, where each row begins with the attempt that sent it; `retried` counts there what was sent once more.
    Safe to call from threads.
    """

    def __init__(self, folder: Path, attempt: int, totals: Totals | None = None) -> None:
        self.folder, self.attempt = folder, attempt
        self.finished = totals or Totals()
        self.open = Totals()
        self._file: IO[bytes] | None = None
        self._lock = Lock()
        for name, header in (("ledger.csv", COLUMNS), ("wasted.csv", ("attempt", *COLUMNS))):
            if not (folder / name).exists():
                (folder / name).write_text(",".join(header) + "\n")

    @property
    def _open_path(self) -> Path:
        return self.folder / f"open-{self.attempt}.csv"

    def add(self, rows: list[Row]) -> None:
        """Count the rows of one frame or message; they reach the file in one write."""
        with self._lock:
            if self._file is None:
                self._file = open(self._open_path, "ab", buffering=0)  # noqa: SIM115 - open until the round ends
            for row in rows:
                self.open.add(row)
            self._file.write("".join(row.line() for row in rows).encode())

    def retried(self, rows: list[Row]) -> None:
        """Count rows that were sent once more, after a stream had broken: as wasted."""
        with self._lock, open(self.folder / "wasted.csv", "ab", buffering=0) as wasted:
            wasted.write("".join(f"{self.attempt},{row.line()}" for row in rows).encode())

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def commit(self) -> Totals:
        """End the open round: append its rows to `ledger.csv`, on disk when this returns, and return its sums."""
        self._close()
        if self._open_path.exists():
            lines = sorted(self._open_path.read_text().splitlines(keepends=True), key=_place)
            with open(self.folder / "ledger.csv", "ab") as ledger:
                ledger.write("".join(lines).encode())
                ledger.flush()
                os.fsync(ledger.fileno())
        ended, self.open = self.open, Totals()
        self.finished = self.finished + ended
        return ended

    def forget_open(self) -> None:
        """Delete the open round's own file, once a checkpoint holds that the round has ended."""
        self._open_path.unlink(missing_ok=True)

    def waste(self) -> None:
        """End the open round without counting it: its rows go to `wasted.csv`. What follows is another attempt, so that
        two tries of a round can be told apart."""
        self._close()
        move_to_wasted(self.folder, self._open_path, self.attempt)
        self.open = Totals()
        self.attempt += 1


def _place(line: str) -> tuple[str, int, int]:
    _, step, client, _, plane, *_ = line.split(",")
    return plane, int(client), int(step)


def move_to_wasted(folder: Path, open_file: Path, attempt: int) -> None:
    """Append the whole rows of an attempt's open round to `wasted.csv`, replaced atomically, and delete the file."""
    if not open_file.exists():
        return
    lines = [line for line in open_file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    wasted = folder / "wasted.csv"
    before = wasted.read_text()
    mark = f"{attempt},"
    moved = "".join(mark + line for line in lines)
    # A crash between the two steps below leaves both files; the rows are then there already.
    if lines and f"\n{moved}" not in before:
        scratch = folder / "wasted.csv.new"
        scratch.write_text(before + moved)
        os.replace(scratch, wasted)
    open_file.unlink()


def read_rows(path: Path) -> Iterator[Row]:
    """Read `ledger.csv`, or `wasted.csv` without its attempts."""
    with open(path, newline="") as file:
        for line in csv.DictReader(file):
            sizes = Sizes(*(int(line[f"{stage}_bytes"]) for stage in ("raw", "reduced", "coded", "sent")))
            yield Row(
                int(line["round"]), int(line["step"]), int(line["client"]),
                "up" if line["direction"] == "up" else "down",
                "data" if line["plane"] == "data" else "control", line["role"], sizes,
            )  # fmt: skip


def totals_by_round(path: Path) -> dict[int, Totals]:
    """Sum a ledger file by round."""
    rounds: dict[int, Totals] = defaultdict(Totals)
    for row in read_rows(path):
        rounds[row.round].add(row)
    return dict(rounds)
