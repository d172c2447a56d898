"""Runs side by side: what each reached, and what it cost in bytes and time."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import rich.console
from rich.table import Table
from rich.text import Text

from splitfed.errors import RunError
from splitfed.reports import units
from splitfed.reports.study.groups import Group, Run, group
from splitfed.reports.tables import at_heads, new_table, show, to_csv
from splitfed.run.metrics import read_metrics
from splitfed.run.summary import NAME, Summary


@dataclass(frozen=True, slots=True)
class Grouped:
    """Finished runs, those together that differ in their seed alone; and the folders left out, each with the reason."""

    groups: list[Group]
    left_out: list[tuple[Path, str]]

    def table(self, at: int | None = None) -> Table:
        """Return a row per group: means over its runs, and of accuracy the lowest and the highest where there are
        several. `ratio` is `Run.ratio`; everything else as in a table of runs."""
        several = any(len(one.runs) > 1 for one in self.groups)
        simulated = any(one.simulated is not None for one in self.groups)
        table = new_table("\nscenario", [
            "\nseeds", "\nrounds", "\naccuracy", *(["lowest to\nhighest"] if several else []), *at_heads(at),
            "cut\nbytes", "total\nbytes", "\nratio", "cut\nfactor", "total\nfactor", "\ntime",
            *(["simulated\ntime"] if simulated else []),
        ])  # fmt: skip
        for one in self.groups:
            accuracy, rounds = one.accuracy, sorted({run.summary.rounds for run in one.runs})
            reached = one.at(at) if at is not None else None
            cut, total = one.mean(lambda s: s.cut_bytes), one.mean(lambda s: s.total_bytes)
            table.add_row(
                Text(one.label),
                ", ".join(str(run.summary.seed) for run in one.runs),
                str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}",
                units.percent(accuracy.mean),
                *([_range(one)] if several else []),
                *([] if at is None else [units.percent(reached.mean) if reached else units.NONE]),
                units.size(cut),
                units.size(total),
                units.NONE if one.ratio is None else f"{one.ratio:.3f}",
                units.factor(one.mean(lambda s: s.raw_bytes), cut),
                units.factor(one.mean(lambda s: s.total_raw_bytes), total),
                units.duration(one.spread(lambda run: run.summary.seconds).mean),
                *([units.NONE if one.simulated is None else units.duration(one.simulated)] if simulated else []),
            )
        return table

    def show(self, out: rich.console.Console | None = None, *, at: int | None = None) -> None:
        """Print the table and, below it, each folder that is not in it with the reason."""
        show(self.table(at), [f"{folder}: {reason}" for folder, reason in self.left_out], out)

    def to_csv(self, *, at: int | None = None) -> str:
        """Return the groups as CSV, figures in full."""
        rows = []
        for one in self.groups:
            accuracy, reached = one.accuracy, one.at(at) if at is not None else None
            rows.append({
                "scenario": one.label,
                "seeds": " ".join(str(run.summary.seed) for run in one.runs),
                "test_accuracy": accuracy.mean, "test_accuracy_low": accuracy.low, "test_accuracy_high": accuracy.high,
                "at_bytes": at,
                "at_eval_accuracy": reached and reached.mean,
                "at_eval_accuracy_low": reached and reached.low,
                "at_eval_accuracy_high": reached and reached.high,
                "cut_bytes": one.mean(lambda s: s.cut_bytes), "total_bytes": one.mean(lambda s: s.total_bytes),
                "raw_bytes": one.mean(lambda s: s.raw_bytes), "total_raw_bytes": one.mean(lambda s: s.total_raw_bytes),
                "ratio": one.ratio,
                "seconds": one.spread(lambda run: run.summary.seconds).mean,
                "simulated_seconds": one.simulated,
            })  # fmt: skip
        names = [name for name in rows[0] if at is not None or not name.startswith("at_")]
        return to_csv(names, [{name: row[name] for name in names} for row in rows])


def _range(one: Group) -> str:
    low, high = one.accuracy.low, one.accuracy.high
    return units.NONE if len(one.runs) == 1 else f"{units.percent(low).removesuffix(' %')} to {units.percent(high)}"


By = Literal["bytes", "ratio", "time", "simulated_time"]

_KEYS: dict[By, Callable[[Group], float]] = {
    "bytes": lambda one: one.mean(lambda summary: summary.cut_bytes),
    "ratio": lambda one: float("inf") if one.ratio is None else one.ratio,
    "time": lambda one: one.spread(lambda run: run.summary.seconds).mean,
    "simulated_time": lambda one: one.simulated or 0.0,
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Finished runs in the order given, and the folders without a result, each with the reason."""

    runs: list[tuple[Path, Summary]]
    left_out: list[tuple[Path, str]]

    def table(self, at: int | None = None) -> Table:
        """Return a row per finished run. Accuracy is that of the test split; total bytes contain the waste. `at` adds
        the accuracy on the validation split after so many cut bytes."""
        table = new_table("\nscenario", [
            "\nseed", "\nrounds", "\naccuracy", *at_heads(at), "cut\nbytes", "total\nbytes", "cut\nfactor",
            "total\nfactor", "\ntime", "\nwaste",
        ])  # fmt: skip
        table.add_column("\nrun folder")
        for folder, summary in self.runs:
            table.add_row(
                Text(summary.scenario),
                str(summary.seed),
                str(summary.rounds),
                units.percent(summary.test_accuracy),
                *([] if at is None else [units.percent(Run(folder, summary).at(at))]),
                units.size(summary.cut_bytes),
                units.size(summary.total_bytes),
                units.factor(summary.raw_bytes, summary.cut_bytes),
                units.factor(summary.total_raw_bytes, summary.total_bytes),
                units.duration(summary.seconds),
                units.size(summary.bytes_wasted),
                Text(str(folder)),
            )
        return table

    def show(self, out: rich.console.Console | None = None, *, at: int | None = None) -> None:
        """Print the table and, below it, each folder that is not in it with the reason."""
        show(self.table(at), [f"{folder}: {reason}" for folder, reason in self.left_out], out)

    def to_csv(self, *, at: int | None = None) -> str:
        """Return the finished runs as CSV: the folder, then every key of `summary.json`, bytes and seconds in full;
        with `at` also `at_bytes` and `at_eval_accuracy`."""
        rows = []
        for folder, summary in self.runs:
            more = {} if at is None else {"at_bytes": at, "at_eval_accuracy": Run(folder, summary).at(at)}
            rows.append({"folder": str(folder), **asdict(summary), **more})
        names = ["folder", *(field.name for field in fields(Summary))]
        return to_csv([*names, *(["at_bytes", "at_eval_accuracy"] if at is not None else [])], rows)

    def grouped(self, by: By | None = None) -> Grouped:
        """Return the runs with those together that differ in their seed alone, sorted by mean cut bytes, by ratio, by
        mean time or by mean simulated time, all from the least up; or in the order given. A run whose metrics or ledger
        cannot be read is left out with the reason. Raises RunError where none remains, for another order, and for
        simulated time where a run has none."""
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
            raise RunError(f"--by simulated_time: {none[0].folder} has none, for want of federation.availability")
        groups = group(runs)
        if by is not None:
            groups.sort(key=_KEYS[by])
        return Grouped(groups, left_out)


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Read the results of run folders. Raises RunError, with every reason, where not one of them is finished."""
    result = Comparison([], [])
    for folder in map(Path, folders):
        try:
            if (folder / "ledger.csv").is_file() and not (folder / NAME).exists():
                result.left_out.append((folder, f"unfinished after round {_last_round(folder)}"))
            else:
                result.runs.append((folder, Summary.read(folder)))
        except RunError as error:
            result.left_out.append((folder, _reason(folder, error)))
    if not result.runs:
        raise _nothing(result.left_out)
    return result


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
