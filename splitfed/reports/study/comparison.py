"""Runs side by side: what each reached, and what it cost in bytes and time."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import rich.console
from rich.table import Table
from rich.text import Text

from splitfed.errors import RunError
from splitfed.reports import units
from splitfed.reports.study.groups import Axis, Group, Run, group, spent
from splitfed.reports.tables import at_heads, new_table, show, to_csv
from splitfed.run.client_scores import CLIENTS
from splitfed.run.metrics import read_metrics
from splitfed.run.summary import NAME, Summary
from splitfed.scenario.budget import Counted

By = Literal["bytes", "total", "ratio", "time", "simulated_time"]

_KEYS: dict[By, Callable[[Group], float]] = {
    "bytes": lambda one: one.sent("cut"),
    "total": lambda one: one.sent("total"),
    "ratio": lambda one: float("inf") if one.ratio is None else one.ratio,
    "time": lambda one: one.spread(lambda run: run.summary.seconds).mean,
    "simulated_time": lambda one: one.simulated or 0.0,
}


@dataclass(frozen=True, slots=True)
class Grouped:
    """Finished runs, those together that differ in their seed alone, and by what they are sorted; and the folders left
    out, each with the reason."""

    groups: list[Group]
    left_out: list[tuple[Path, str]]
    by: By | None = None

    @property
    def of(self) -> Counted:
        """Which bytes this is about: those of both planes where they are what groups are sorted by, or the cut's."""
        return "total" if self.by == "total" else "cut"

    @property
    def axis(self) -> Axis:
        """What is meant by an amount at which runs are compared: such bytes, or simulated seconds where groups are
        sorted by these."""
        return "simulated" if self.by == "simulated_time" else self.of

    def table(self, at: float | None = None) -> Table:
        """Return a row per group: means over its runs, and of accuracy the lowest and the highest where there are
        several. `ratio` is `Run.ratio`; everything else as in a table of runs. Sorted by `total`, it has bytes and
        factor of both planes alone, with what was wasted, and `at` means both planes, without it; sorted by simulated
        time, `at` is in seconds."""
        several = any(len(one.runs) > 1 for one in self.groups)
        simulated = any(one.simulated is not None for one in self.groups)
        asked = any(one.clients["worst_client"] is not None for one in self.groups)
        columns: tuple[Counted, ...] = ("total",) if self.of == "total" else ("cut", "total")
        table = new_table("\nscenario", [
            "\nseeds", "\nrounds", "\naccuracy", *(["lowest to\nhighest"] if several else []),
            *_at_heads(at, self.axis), *([_CLIENTS] if asked else []),
            *(f"{of}\nbytes" for of in columns), "\nratio", *(f"{of}\nfactor" for of in columns), "images\nfactor",
            "\ntime",
            *(["simulated\ntime"] if simulated else []),
        ])  # fmt: skip
        for one in self.groups:
            accuracy, rounds = one.accuracy, sorted({run.summary.rounds for run in one.runs})
            reached = one.at(at, self.axis) if at is not None else None
            table.add_row(
                Text(one.label),
                ", ".join(str(run.summary.seed) for run in one.runs),
                str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}",
                units.percent(accuracy.mean),
                *([_range(one)] if several else []),
                *([] if at is None else [units.percent(reached.mean) if reached else units.NONE]),
                *([_clients(one.clients)] if asked else []),
                *(units.size(one.sent(of)) for of in columns),
                units.NONE if one.ratio is None else units.decimal(one.ratio, 3),
                *(units.factor(one.raw(of), one.sent(of)) for of in columns),
                units.contained(one.images_factor),
                units.duration(one.spread(lambda run: run.summary.seconds).mean),
                *([units.NONE if one.simulated is None else units.duration(one.simulated)] if simulated else []),
            )
        return table

    def show(self, out: rich.console.Console | None = None, *, at: float | None = None) -> None:
        """Print the table and, below it, each folder that is not in it with the reason."""
        reported = [one.label for one in self.groups if any(run.summary.images_reported for run in one.runs)]
        notes = [*map(_as_reported, reported), *(f"{folder}: {reason}" for folder, reason in self.left_out)]
        if at is not None:
            dashes = [(one.label, one.why_not_at(at, self.axis)) for one in self.groups if not one.at(at, self.axis)]
            notes = [*_why_dashes(dashes, at, self.axis), *notes]
        show(self.table(at), notes, out)

    def to_csv(self, *, at: float | None = None) -> str:
        """Return the groups as CSV, figures in full. What was reached `at` so many cut bytes is in columns `at_*`, at
        so many of both planes in columns `at_total_*`, at so many simulated seconds in `at_simulated_*`."""
        rows, prefix = [], _prefix(self.axis)
        amount = "seconds" if self.axis == "simulated" else "bytes"
        for one in self.groups:
            accuracy, reached = one.accuracy, one.at(at, self.axis) if at is not None else None
            rows.append({
                "scenario": one.label,
                "seeds": " ".join(str(run.summary.seed) for run in one.runs),
                "test_accuracy": accuracy.mean, "test_accuracy_low": accuracy.low, "test_accuracy_high": accuracy.high,
                f"{prefix}{amount}": at,
                f"{prefix}eval_accuracy": reached and reached.mean,
                f"{prefix}eval_accuracy_low": reached and reached.low,
                f"{prefix}eval_accuracy_high": reached and reached.high,
                **one.clients,
                "cut_bytes": one.sent("cut"), "total_bytes": one.sent("total"),
                "images_bytes": one.images_bytes, "images_factor": one.images_factor,
                "raw_bytes": one.raw("cut"), "total_raw_bytes": one.raw("total"),
                "ratio": one.ratio,
                "seconds": one.spread(lambda run: run.summary.seconds).mean,
                "simulated_seconds": one.simulated,
            })  # fmt: skip
        names = [name for name in rows[0] if at is not None or not name.startswith("at_")]
        return to_csv(names, [{name: row[name] for name in names} for row in rows])


def _range(one: Group) -> str:
    low, high = one.accuracy.low, one.accuracy.high
    return units.NONE if len(one.runs) == 1 else f"{units.percent(low).removesuffix(' %')} to {units.percent(high)}"


def _at_heads(at: float | None, of: Axis) -> list[str]:
    return [] if at is None else at_heads(spent(at, of), " total" if of == "total" else "")


def _why_dashes(reasons: list[tuple[str, str]], at: float, of: Axis) -> list[str]:
    """Return the reason for each dash in the column of what was reached, below a line that says what they are."""
    head = f"no validation accuracy at {spent(at, of)} of {'simulated time' if of == 'simulated' else f'{of} bytes'}:"
    return [head, *(f"  {name}: {why}" for name, why in reasons)] if reasons else []


_CLIENTS = "worst, median,\nbest client"


def _clients(each: dict[str, float | None]) -> str:
    if None in each.values():
        return units.NONE
    return f"{', '.join(units.percent(one).removesuffix(' %') for one in each.values())} %"


def _as_reported(name: str) -> str:
    return f"{name}: what its images weigh is as its clients report it"


def _prefix(of: Axis) -> str:
    return "at_" if of == "cut" else f"at_{of}_"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Finished runs in the order given, and the folders without a result, each with the reason."""

    runs: list[tuple[Path, Summary]]
    left_out: list[tuple[Path, str]]

    def table(self, at: int | None = None, of: Counted = "cut") -> Table:
        """Return a row per finished run. Accuracy is that of the test split; total bytes contain the waste. `at` adds
        the accuracy on the validation split after so many bytes: of the cut, or of both planes (`total`), which are
        those of finished rounds and so without the waste."""
        asked = any(summary.worst_client is not None for _, summary in self.runs)
        table = new_table("\nscenario", [
            "\nseed", "\nrounds", "\naccuracy", *_at_heads(at, of), *([_CLIENTS] if asked else []), "cut\nbytes",
            "total\nbytes", "cut\nfactor", "total\nfactor", "images\nfactor", "\ntime", "\nwaste",
        ])  # fmt: skip
        table.add_column("\nrun folder")
        for folder, summary in self.runs:
            table.add_row(
                Text(summary.scenario),
                str(summary.seed),
                str(summary.rounds),
                units.percent(summary.test_accuracy),
                *([] if at is None else [units.percent(_reached(folder, summary, at, of)[0])]),
                *([_clients({name: getattr(summary, name) for name in CLIENTS})] if asked else []),
                units.size(summary.cut_bytes),
                units.size(summary.total_bytes),
                units.factor(summary.raw_bytes, summary.cut_bytes),
                units.factor(summary.total_raw_bytes, summary.total_bytes),
                units.contained(summary.images_factor),
                units.duration(summary.seconds),
                units.size(summary.bytes_wasted),
                Text(str(folder)),
            )
        return table

    def show(self, out: rich.console.Console | None = None, *, at: int | None = None, of: Counted = "cut") -> None:
        """Print the table and, below it, each folder that is not in it with the reason."""
        reported = [str(folder) for folder, summary in self.runs if summary.images_reported]
        notes = [*map(_as_reported, reported), *(f"{folder}: {reason}" for folder, reason in self.left_out)]
        if at is not None:
            found = [(str(folder), _reached(folder, summary, at, of)[1]) for folder, summary in self.runs]
            notes = [*_why_dashes([(name, why) for name, why in found if why], at, of), *notes]
        show(self.table(at, of), notes, out)

    def to_csv(self, *, at: int | None = None, of: Counted = "cut") -> str:
        """Return the finished runs as CSV: the folder, then every key of `summary.json`, bytes and seconds in full;
        with `at` also `at_bytes` and `at_eval_accuracy`, `of` both planes `at_total_bytes` and
        `at_total_eval_accuracy`."""
        rows, more = [], [f"{_prefix(of)}{name}" for name in ("bytes", "eval_accuracy")] if at is not None else []
        for folder, summary in self.runs:
            reached = [] if at is None else [at, _reached(folder, summary, at, of)[0]]
            rows.append({"folder": str(folder), **asdict(summary), **dict(zip(more, reached, strict=True))})
        return to_csv(["folder", *(field.name for field in fields(Summary)), *more], rows)

    def grouped(self, by: By | None = None) -> Grouped:
        """Return the runs with those together that differ in their seed alone, sorted by mean bytes of the cut
        (`bytes`), by mean bytes of both planes and what was wasted (`total`), by ratio, by mean time or by mean
        simulated time, all from the least up; or in the order given. A run whose metrics or ledger cannot be read is
        left out with the reason. Raises RunError where none remains, for another order, and for simulated time where a
        run has none."""
        if by is not None and by not in get_args(By):
            raise RunError(f"--by {by}: runs can be sorted by {', '.join(get_args(By))}")
        runs, left_out = [], list(self.left_out)
        for folder, summary in self.runs:
            run = Run(folder, summary)
            try:
                run.check()
                runs.append(run)
            except RunError as error:
                left_out.append((folder, _reason(folder, error)))
        if not runs:
            raise _nothing(left_out)
        if by == "simulated_time" and (none := [run for run in runs if run.summary.simulated_seconds is None]):
            raise RunError(
                f"--by simulated_time: {none[0].folder} has none, for want of a link or of federation.availability"
            )
        groups = group(runs)
        if by is not None:
            groups.sort(key=_KEYS[by])
        return Grouped(groups, left_out, by)


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Read the results of run folders. Raises RunError, with every reason, where not one of them is finished."""
    result = Comparison([], [])
    for folder in map(Path, folders):
        try:
            if why := _no_run(folder):
                result.left_out.append((folder, why))
            elif (folder / "ledger.csv").is_file() and not (folder / NAME).exists():
                result.left_out.append((folder, f"unfinished after round {_last_round(folder)}"))
            else:
                result.runs.append((folder, Summary.read(folder)))
        except RunError as error:
            result.left_out.append((folder, _reason(folder, error)))
    if not result.runs:
        raise _nothing(result.left_out)
    return result


def _no_run(folder: Path) -> str | None:
    """Return why there is no run at a path, or None where there may be one."""
    if not os.path.isdir(folder):
        return "is a file, not the folder of a run" if os.path.lexists(folder) else "there is no such folder"
    try:
        below = sorted(one for one in folder.iterdir() if (one / "scenario.yaml").is_file())
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if below and not (folder / "scenario.yaml").exists():
        return f"is not the folder of a run, but holds such folders: name them, for instance {below[0]}"
    return None


def _reached(folder: Path, summary: Summary, at: int, of: Counted) -> tuple[float | None, str]:
    """Return the accuracy of a run after so many bytes, or why there is none."""
    run = Run(folder, summary)
    try:
        found = run.at(at, of)
        return found, "" if found is not None else run.why_not_at(at, of)
    except RunError as error:
        return None, _reason(folder, error)


def _reason(folder: Path, error: RunError) -> str:
    return str(error).removeprefix(str(folder)).lstrip(":/ ")


def _nothing(left_out: list[tuple[Path, str]]) -> RunError:
    return RunError("\n".join(["no finished run to compare", *(f"  {folder}: {why}" for folder, why in left_out)]))


def _last_round(folder: Path) -> int:
    path = folder / "metrics.csv"
    if not path.exists():
        return 0
    rows = read_metrics(path)
    return rows[-1].round if rows else 0
