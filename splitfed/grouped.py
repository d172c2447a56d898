"""A comparison of groups of runs: a row for each experiment, whatever the number of its seeds."""

from dataclasses import dataclass
from pathlib import Path

import rich.console
from rich.table import Table
from rich.text import Text

from splitfed import units
from splitfed.groups import Group
from splitfed.tables import at_heads, new_table, show, to_csv


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
