"""Tables of runs: how they look, and the same as CSV."""

import csv
import io

import rich.box
import rich.console
from rich.table import Table
from rich.text import Text

from splitfed.reports.live.console import print_whole
from splitfed.reports.plain import PlainTable


def new_table(first: str, others: list[str]) -> Table:
    """Return an empty table: one column of text, the others aligned to the right."""
    table = PlainTable(box=rich.box.SIMPLE_HEAD, show_edge=False, collapse_padding=True)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def to_csv(names: list[str], rows: list[dict]) -> str:
    """Return rows as CSV with a heading; None is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def at_heads(at: str, more: str = "") -> list[str]:
    """Return the heading of what was reached after so much, `more` telling of what."""
    return [f"validation\nat {at}{more}"]


def show(table: Table, notes: list[str], out: rich.console.Console | None) -> None:
    """Print a table, never cut, and the notes below it."""
    out = out or rich.console.Console()
    print_whole(out, table)
    for note in notes:
        out.print(Text(note), soft_wrap=True)
