"""Runs side by side: what each reached, and what it cost in bytes and time."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import rich.console
from rich.table import Table
from rich.text import Text

from splitfed import units
from splitfed.errors import RunError
from splitfed.grouped import Grouped
from splitfed.groups import Group, Run, group
from splitfed.metrics import read_metrics
from splitfed.summary import NAME, Summary
from splitfed.tables import at_heads, new_table, show, to_csv

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
