"""What a run prints: a heading, one line per round, and at the end where every byte went."""

import copy
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

import rich.box
import rich.console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from splitfed.reports import units
from splitfed.reports.live import target
from splitfed.reports.plain import PlainTable
from splitfed.run.ledger import ROLES, WASTED, Sizes, Totals, read_rows
from splitfed.run.log import SpareFile
from splitfed.run.metrics import Metrics
from splitfed.run.observer import Observer, Started
from splitfed.run.summary import Summary

# Two rows of headings keep a line within the 80 columns of a plain terminal, unless clients evaluate. Bytes and seconds
# are cumulative.
COLUMNS: tuple[tuple[str, str, int], ...] = (
    ("", "round", 5), ("train", "loss", 8), ("eval", "loss", 8), ("eval", "accuracy", 8), ("cut", "bytes", 9),
    ("total", "bytes", 9), ("of", "budget", 7), ("", "seconds", 8),
)  # fmt: skip
# Only where clients evaluate, behind the server's own accuracy: that of single clients on what they hold out.
CLIENTS: tuple[tuple[str, str, int], ...] = (("worst", "client", 7), ("median", "client", 7), ("best", "client", 7))
_WITH_CLIENTS = (*COLUMNS[:4], *CLIENTS, *COLUMNS[4:])


class Console(Observer):
    """Prints a run; a live bar shows the open round on a terminal, and a pipe gets plain lines, none of them cut."""

    def __init__(self, out: rich.console.Console | None = None) -> None:
        self.out = out or rich.console.Console()
        self._info: Started | None = None
        self._columns = COLUMNS
        self._bar: Progress | None = None
        self._serving = False
        self._exits = ""

    def serving(self, folder: Path, address: str, split_port: int | None, clients: int) -> None:
        """Print where clients may join."""
        self._serving = True
        where = address if split_port is None else f"{address}, mini-batches at port {split_port}"
        self._facts(("serving at", where), ("clients", f"{clients} may join"))

    def joined(self, client: int, examples: int, missing: list[int]) -> None:
        """Print who joined, and who has not."""
        names = ", ".join(map(str, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        self._print(
            f"client {client} joined with {examples:,} images; {f'still away: {names}' if missing else 'all are there'}"
        )

    def started(self, info: Started) -> None:
        """Print the heading and the names of the columns."""
        self._info = info
        if info.asks and self._has_room(_WITH_CLIENTS):
            self._columns = _WITH_CLIENTS
        self._facts(
            ("scenario", info.scenario),
            ("engine", info.engine),
            ("run folder", str(info.folder)),
            ("budget", "none" if info.budget is None else self._budget(info.budget)),
            *([("weights", _LOADED)] if info.loaded else []),
            *([("norms", _OWN_NORMS if info.asks else _OWN_NORMS + _UNASKED)] if info.own_norms else []),
            *(("note", note) for note in info.notes),
        )
        if info.resumed:
            self._print(f"resumed after round {info.resumed}", "bold")
        self._print()
        for half in (0, 1):
            self._print(self._align([(above, below)[half] for above, below, _ in self._columns]), "dim")
        self._await(info.resumed + 1)

    def _budget(self, limit: int) -> str:
        assert self._info is not None
        told = f"{units.size(limit)} of {self._info.budget_of} bytes"
        weight = self._info.figures().images_bytes if self._info.budget_of == "total" else None
        return f"{told}, {units.times(limit, weight)} what the images weigh" if weight else told

    def progress(self, round: int, share: float) -> None:
        """Move the bar of the open round; nothing in a pipe."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=share)

    def exited(self, round: int, accuracies: Mapping[int, float]) -> None:
        """Say it at the end of the round's line."""
        self._exits = "  exits " + ", ".join(map(units.percent, accuracies.values()))

    def round(self, metrics: Metrics, sent: Totals, finished: Totals) -> None:
        """Print the line of a round."""
        assert self._info is not None
        figures = self._info.figures()
        budget = self._info.budget if figures.budget is None else figures.budget
        spent = metrics.cut_bytes if self._info.budget_of == "cut" else metrics.total_bytes + figures.wasted
        clients = [*map(units.percent, (metrics.worst_client, metrics.median_client, metrics.best_client))]
        beside = self._columns is _WITH_CLIENTS
        self._print(
            self._align(
                [
                    f"{metrics.round}/{self._info.rounds}",
                    units.number(metrics.train_loss),
                    units.number(metrics.eval_loss),
                    units.percent(metrics.eval_accuracy),
                    *(clients if beside else ()),
                    units.size(metrics.cut_bytes),
                    units.size(metrics.total_bytes),
                    units.spent(spent, budget),
                    units.decimal(metrics.seconds, 1),
                ]
            )
            + (f"  {units.duration(seconds)} simulated" if (seconds := metrics.simulated_seconds) is not None else "")
            + (f"  {metrics.phase}" if metrics.phase != "gradient" else "")
            + (f"  {metrics.lost} lost" if metrics.lost else "")
            + self._exits
        )
        self._exits = ""
        if self._info.asks and not beside:
            self._print(f"{'':>7}{_spread(clients)}")
        self._await(metrics.round + 1)

    def finished(self, summary: Summary, totals: Totals) -> None:
        """Print where the bytes went and what the run came to."""
        self.close()
        assert self._info is not None
        self._breakdown(totals, summary.bytes_wasted)
        self._facts(
            ("test accuracy", units.percent(summary.test_accuracy)),
            *_clients(summary),
            ("bytes up", units.size(totals.select(direction="up").sent)),
            ("bytes down", units.size(totals.select(direction="down").sent)),
            *_total(summary.total_bytes, summary.images_bytes, summary.images_reported),
            ("cut factor", units.factor(summary.raw_bytes, summary.cut_bytes)),
            ("total factor", units.factor(summary.total_raw_bytes, summary.total_bytes)),
            ("time", units.duration(summary.seconds)),
            *_if_known(summary),
            ("rounds", f"{summary.rounds}{_STOPPED.get(summary.stopped, '')}"),
            ("run folder", str(self._info.folder)),
        )

    def interrupted(self, folder: Path, round: int, totals: Totals) -> None:
        """Print where the bytes went so far, and the command that goes on."""
        self.close()
        deployed = self._serving or (self._info is not None and self._info.engine == "deployment")
        path = folder / WASTED
        wasted = sum(row.sizes.sent for row in read_rows(path)) if path.exists() else 0
        self._breakdown(totals, wasted)
        if self._info is not None:
            for fact in _total(totals.total.sent + wasted, self._info.figures().images_bytes, deployed):
                self._facts(fact)
        # Where clients find the server, and by what it proves itself, is not part of the run.
        command, again = ("serve", ", with --host, --tls and ports as before") if deployed else ("simulate", "")
        self._print(f"interrupted after round {round}; this goes on from there{again}:", "bold")
        self._print(f"  splitfed {command} --resume {shlex.quote(str(folder))}")

    def close(self) -> None:
        """Take the bar off the screen, also after an error; nothing where there is none."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _await(self, round: int) -> None:
        """Show an empty bar for the next round, if there is one and somebody can see it."""
        assert self._info is not None
        # FORCE_COLOR makes rich call a pipe a terminal: colours may go there, a bar that redraws itself may not.
        if round > self._info.rounds or not (self.out.is_interactive and self.out.file.isatty()):
            self.close()
            return
        if self._bar is None:
            columns = TextColumn("round {task.description}"), BarColumn(), TaskProgressColumn()
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.out, transient=True)
            self._bar.add_task("", total=1.0)
            self._bar.start()
        self._bar.reset(self._bar.task_ids[0], description=f"{round}/{self._info.rounds}")

    def _has_room(self, columns: tuple[tuple[str, str, int], ...]) -> bool:
        """Tell whether so many columns fit into a line. A file has room for all."""
        return not self.out.file.isatty() or sum(width + 2 for _, _, width in columns) <= self.out.width

    def _align(self, texts: list[str]) -> str:
        assert self._info is not None
        widths = [2 * len(str(self._info.rounds)) + 1, *(0 for _ in self._columns[1:])]
        return "  ".join(
            text.rjust(max(least, column[2])) for text, least, column in zip(texts, widths, self._columns, strict=True)
        )

    def _print(self, text: str = "", style: str = "") -> None:
        # Text, not str: a folder may hold brackets or colons, which rich would read as markup or emoji.
        self.out.print(Text(text, style), soft_wrap=True)

    def _facts(self, *facts: tuple[str, str]) -> None:
        width = max(len(name) for name, _ in facts)
        for name, value in facts:
            self._print(f"{name.ljust(width)}  {value}")

    def _breakdown(self, totals: Totals, wasted: int) -> None:
        self._print()
        print_whole(self.out, breakdown(totals, wasted))
        self._print()


_LOADED = "clients have what the run begins with from the model's own file: it is not sent"
_OWN_NORMS = "each client has its own; the model that is tested has those that the run began with"
_UNASKED = ": set evaluation.held_out to see how clients do with theirs"
_STOPPED = {"budget": ", then the budget was spent", "memory": ", then memory had been gone over as often as asked"}


def _total(sent: int, images_bytes: int | None, reported: bool) -> list[tuple[str, str]]:
    """Return what was sent in all, as a multiple of what the images weigh, if anything tells what they do."""
    if not images_bytes:
        return []
    source = ", as clients report it" if reported else ""
    return [("total", f"{units.size(sent)}, {units.times(sent, images_bytes)} what the images weigh{source}")]


def _clients(summary: Summary) -> list[tuple[str, str]]:
    """Return what clients found on the images that they hold out, if they were asked."""
    if summary.clients_accuracy is None:
        return []
    single = summary.worst_client, summary.median_client, summary.best_client
    head = f"{units.percent(summary.clients_accuracy)} of held-out images"
    return [("clients", head), ("each client", _spread([*map(units.percent, single)]))]


def _spread(clients: list[str]) -> str:
    return "worst {}, median {}, best {}".format(*clients)


def in_file(file: IO[str] | SpareFile) -> rich.console.Console:
    """Return a console that writes plain text to a file, in a notebook too, where rich would show it in the cell."""
    return rich.console.Console(file=cast(IO[str], file), color_system=None, force_jupyter=False)


def print_whole(out: rich.console.Console, table: Table) -> None:
    """Print a table at its own width: in a pipe rich takes 80 columns for granted and would cut what does not fit. On a
    terminal that is narrower, columns that have no room stand below, beside the first one again."""
    rest = table.columns[1:]
    while True:
        count = len(rest)
        while count > 1 and out.file.isatty() and _width(out, _part(table, rest[:count])) > out.width:
            count -= 1
        part = _part(table, rest[:count])
        part.width = min(_width(out, part), out.width) if out.file.isatty() else _width(out, part)
        out.print(part, crop=False)
        rest = rest[count:]
        if not rest:
            return
        out.print()


def _width(out: rich.console.Console, table: Table) -> int:
    return Measurement.get(out, out.options.update(max_width=10_000), table).maximum


def _part(table: Table, columns: list[Column]) -> Table:
    """Return a table with the first of its columns and these others."""
    part = copy.copy(table)
    part.columns = [replace(column, _index=n) for n, column in enumerate([*table.columns[:1], *columns])]
    return part


def _if_known(summary: Summary) -> Iterator[tuple[str, str]]:
    if summary.simulated_seconds is not None:
        yield "simulated", units.duration(summary.simulated_seconds)
    if summary.symbols is not None:
        yield "symbols", f"{summary.symbols:,} of the channel went up"
    if (told := target.came_to(summary)) is not None:
        yield "target", told
    if summary.lost:
        yield "lost", f"{summary.lost} clients in all rounds; what they had sent is counted"


def breakdown(totals: Totals, wasted: int) -> Table:
    """Return the table of bytes by direction and role, from raw to sent: the data plane and its sum, the control plane
    and its sum, then both with the `wasted` bytes."""
    table = PlainTable(box=rich.box.SIMPLE_HEAD, show_edge=False, collapse_padding=True)
    table.add_column("bytes")
    table.add_column("role")
    for name in ("raw", "reduced", "coded", "sent", "factor"):
        table.add_column(name, justify="right")

    def add(name: str, role: str, sizes: Sizes, style: str = "") -> None:
        stages = (units.size(count) for count in (sizes.raw, sizes.reduced, sizes.coded, sizes.sent))
        table.add_row(name, role, *stages, units.factor(sizes.raw, sizes.sent), style=style)

    def order(role: str) -> tuple[int, str]:
        return (ROLES.index(role) if role in ROLES else len(ROLES)), role

    for plane, name in (("data", "cut"), ("control", "control")):
        for direction in ("up", "down"):
            for role in sorted((r for p, d, r in totals.sums if (p, d) == (plane, direction)), key=order):
                add(direction, role, totals.sums[plane, direction, role])
        add(name, "", totals.select(plane=plane), "bold")
        table.add_section()
    if wasted:
        table.add_row("wasted", "", "", "", "", units.size(wasted), "")
    add("total", "", totals.total + Sizes(sent=wasted), "bold")
    return table
