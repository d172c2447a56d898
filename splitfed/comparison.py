"""Runs side by side: what each reached, and what it cost in bytes and time."""

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import rich.box
import rich.console
from rich.table import Table
from rich.text import Text

from splitfed import units
from splitfed.console import print_whole
from splitfed.errors import RunError
from splitfed.metrics import read_metrics
from splitfed.summary import NAME, Summary


@dataclass(frozen=True, slots=True)
class Comparison:
    """Finished runs in the order given, and the folders without a result, each with the reason."""

    runs: list[tuple[Path, Summary]]
    left_out: list[tuple[Path, str]]

    def table(self) -> Table:
        """Return a row per finished run. Accuracy is that of the test split; total bytes contain the waste."""
        table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, collapse_padding=True)
        table.add_column("\nscenario")
        for name in (
            "\nseed", "\nrounds", "\naccuracy", "cut\nbytes", "total\nbytes", "cut\nfactor", "total\nfactor", "\ntime",
            "\nwaste",
        ):  # fmt: skip
            table.add_column(name, justify="right")
        table.add_column("\nrun folder")
        for folder, summary in self.runs:
            table.add_row(
                Text(summary.scenario),
                str(summary.seed),
                str(summary.rounds),
                units.percent(summary.test_accuracy),
                units.size(summary.cut_bytes),
                units.size(summary.total_bytes),
                units.factor(summary.raw_bytes, summary.cut_bytes),
                units.factor(summary.total_raw_bytes, summary.total_bytes),
                units.duration(summary.seconds),
                units.size(summary.bytes_wasted),
                Text(str(folder)),
            )
        return table

    def show(self, out: rich.console.Console | None = None) -> None:
        """Print the table and, below it, each folder that is not in it with the reason."""
        out = out or rich.console.Console()
        print_whole(out, self.table())
        for folder, reason in self.left_out:
            out.print(Text(f"{folder}: {reason}"), soft_wrap=True)

    def to_csv(self) -> str:
        """Return the finished runs as CSV: the folder, then every key of `summary.json`, bytes and seconds in full."""
        text = io.StringIO()
        writer = csv.DictWriter(text, ["folder", *(field.name for field in fields(Summary))], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"folder": str(folder), **asdict(summary)} for folder, summary in self.runs)
        return text.getvalue()


def compare(folders: list[Path]) -> Comparison:
    """Read the results of run folders. Raises RunError, with every reason, where not one of them is finished."""
    result = Comparison([], [])
    for folder in folders:
        try:
            if (folder / "ledger.csv").is_file() and not (folder / NAME).exists():
                result.left_out.append((folder, f"unfinished after round {_last_round(folder)}"))
            else:
                result.runs.append((folder, Summary.read(folder)))
        except RunError as error:
            result.left_out.append((folder, str(error).removeprefix(str(folder)).lstrip(":/ ")))
    if not result.runs:
        reasons = [f"  {folder}: {reason}" for folder, reason in result.left_out]
        raise RunError("\n".join(["no finished run to compare", *reasons]))
    return result


def _last_round(folder: Path) -> int:
    path = folder / "metrics.csv"
    if not path.exists():
        return 0
    rows = read_metrics(path)
    return rows[-1].round if rows else 0
