"""The ledger: one row for every role of every frame that crosses, and the sums that budgets and tables read."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Literal, get_args

from splitfed.errors import WriteError
from splitfed.files import add, append, told, write
from splitfed.run.journal import Journal, Mark, count, read_table

Direction = Literal["up", "down"]
Plane = Literal["data", "control"]

# In the order in which tables show them.
ROLES = (
    "smashed", "targets", "side", "ids", "tail_smashed", "tail_gradient", "cut_gradient", "evaluation", "parts",
    "front_weights", "aux_weights", "back_weights", "tail_weights", "exit_weights", "generator_weights",
    "metrics", "envelope",
)  # fmt: skip
COLUMNS = (
    "round", "step", "client", "direction", "plane", "role", "raw_bytes", "reduced_bytes", "coded_bytes", "sent_bytes",
)  # fmt: skip
# Rows of a round that are nobody's: of more, which strangers may cause, the sums are written when the round ends.
_MOST_OF_NOBODY = 4096
NAME, WASTED = "ledger.csv", "wasted.csv"
HEADER = ",".join(COLUMNS) + "\n"
WASTED_HEADER = f"attempt,{HEADER}"


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
    """A line of `ledger.csv`; `client` is -1 for a node that has not said who it is; `step` counts a client's
    mini-batches of a round from 1, its end as one more, and is 0 on the control plane."""

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
        """The data plane, both ways: what papers compare."""
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
    `wasted` is the sum of all that, in bytes, with what earlier attempts had wasted. `hears` is told the rows of each
    frame or message.
    Safe to call from threads. What cannot be written is a WriteError, there and at the end of the round: the caller may
    be a thread that serves one client.
    """

    def __init__(self, folder: Path, attempt: int, totals: Totals | None = None, wasted: int = 0) -> None:
        self.folder, self.attempt = folder, attempt
        self.finished = totals or Totals()
        self.open = Totals()
        self.wasted = wasted
        self.hears: Callable[[list[Row]], None] | None = None
        self._file: FileIO | None = None
        self._of_nobody = 0  # rows of the open round
        self._summed: dict[tuple[Direction, str], Row] = {}  # the rows that are more
        self._failed: WriteError | None = None
        self._lock = Lock()
        self._journal = Journal(folder / NAME, HEADER)
        self._journal.start()
        if not (folder / WASTED).exists():
            write(folder / WASTED, WASTED_HEADER)

    @property
    def _open_path(self) -> Path:
        return self.folder / f"open-{self.attempt}.csv"

    @property
    def mark(self) -> Mark:
        """How far `ledger.csv` has come."""
        return self._journal.mark

    def add(self, rows: list[Row]) -> None:
        """Count the rows of one frame or message; they reach the file in one write. Raises WriteError."""
        with self._lock, self._remembered(), told(self._open_path):
            if self._file is None:
                self._file = open(self._open_path, "ab", buffering=0)  # noqa: SIM115 - open until the round ends
            add(self._file, "".join(row.line() for row in rows if not self._sums(row)))
            for row in rows:
                self.open.add(row)
            if self.hears is not None:
                self.hears(rows)

    def _sums(self, row: Row) -> bool:
        """Tell whether a row is one of those of which only the sum is written, and add it to that."""
        if row.client != -1:
            return False
        self._of_nobody += 1
        if self._of_nobody <= _MOST_OF_NOBODY:
            return False
        key = row.direction, row.role
        before = self._summed.get(key)
        self._summed[key] = row if before is None else replace(before, sizes=before.sizes + row.sizes)
        return True

    def retried(self, rows: list[Row]) -> None:
        """Count rows that were sent once more, after a stream had broken: as wasted. Raises WriteError."""
        with self._lock, self._remembered():
            append(self.folder / WASTED, "".join(f"{self.attempt},{row.line()}" for row in rows))
            self.wasted += sum(row.sizes.sent for row in rows)

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except WriteError as error:
            self._failed = error
            raise

    def _close(self) -> None:
        file, self._file = self._file, None
        summed, self._of_nobody, self._summed = self._summed, 0, {}
        if file is not None:
            with told(self._open_path), file:
                add(file, "".join(row.line() for row in summed.values()))

    def commit(self) -> Totals:
        """End the open round: append its rows to `ledger.csv`, on disk when this returns, and return its sums. Raises
        WriteError."""
        self._close()
        if self._failed:
            raise self._failed
        if self._open_path.exists():
            lines = self._open_path.read_text(encoding="utf-8").splitlines(keepends=True)
            self._journal.append("".join(sorted(lines, key=_place)))
        ended, self.open = self.open, Totals()
        self.finished = self.finished + ended
        return ended

    def forget_open(self) -> None:
        """Delete the open round's own file, once a checkpoint holds that the round has ended."""
        self._open_path.unlink(missing_ok=True)

    def waste(self) -> None:
        """End the open round without counting it: its rows go to `wasted.csv`. What follows is another attempt, so that
        two tries of a round can be told apart. Raises WriteError; the rows then wait for whoever resumes the run."""
        self._close()
        move_to_wasted(self.folder, self._open_path, self.attempt)
        self.wasted += self.open.total.sent
        self.open = Totals()
        self.attempt += 1


def _place(line: str) -> tuple[str, int, int]:
    _, step, client, _, plane, *_ = line.split(",")
    return plane, int(client), int(step)


def move_to_wasted(folder: Path, open_file: Path, attempt: int) -> None:
    """Append the whole rows of an attempt's open round to `wasted.csv` and delete the file. Raises WriteError."""
    if open_file.exists():
        add_to_wasted(folder, open_file.read_text(encoding="utf-8"), attempt)
        open_file.unlink()


def add_to_wasted(folder: Path, rows: str, attempt: int) -> None:
    """Append the whole ones of some lines to `wasted.csv`, as an attempt's, unless they are there: whoever moved them
    may have died before they were deleted elsewhere. It is replaced atomically. Raises WriteError."""
    moved = "".join(f"{attempt},{line}" for line in rows.splitlines(keepends=True) if line.endswith("\n"))
    before = (folder / WASTED).read_text(encoding="utf-8")
    if moved and f"\n{moved}" not in before:
        write(folder / WASTED, before + moved)


def read_rows(path: Path) -> Iterator[Row]:
    """Read `ledger.csv`, or `wasted.csv` without its attempts. Raises RunError where it is broken."""
    return read_table(path, _row, COLUMNS)


def read_open(path: Path) -> list[Row]:
    """Read the rows of an open round, which have no header. Raises RunError where it is broken."""
    return list(read_table(path, _row, COLUMNS, header=False))


def read_attempts(path: Path) -> list[int]:
    """Return the attempt of each row of `wasted.csv`. Raises RunError where it is broken."""
    return list(read_table(path, lambda line: (_row(line), count(line["attempt"]))[1], ("attempt", *COLUMNS)))


def is_row(line: str) -> bool:
    """Return whether a line of text is a whole row."""
    try:
        _row(dict(zip(COLUMNS, line.removesuffix("\n").split(","), strict=True)))
    except ValueError:
        return False
    return line.endswith("\n")


def _row(line: dict[str, str]) -> Row:
    sizes = Sizes(*(count(line[f"{stage}_bytes"]) for stage in ("raw", "reduced", "coded", "sent")))
    number, step = count(line["round"]), count(line["step"])
    client = -1 if line["client"] == "-1" else count(line["client"])
    direction, plane, role = line["direction"], line["plane"], line["role"]
    if direction not in get_args(Direction) or plane not in get_args(Plane) or not role.isidentifier():
        raise ValueError(f"no row of a ledger has {direction!r}, {plane!r}, {role!r}")
    return Row(number, step, client, direction, plane, role, sizes)  # type: ignore[arg-type]


def totals_by_round(path: Path) -> dict[int, Totals]:
    """Sum a ledger file by round. Raises RunError where it is broken."""
    rounds: dict[int, Totals] = defaultdict(Totals)
    for row in read_rows(path):
        rounds[row.round].add(row)
    return dict(rounds)
