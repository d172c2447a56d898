"""What users name (classes, runs, clients, paths) is shown as it is written: no markup to rich, matplotlib, Markdown.

Whoever draws or prints goes by these, so that nobody has to think of it.
"""

import re
from typing import Any

from rich.table import Table
from rich.text import Text

# For `matplotlib.rc_context`: `$` begins no formula, and no TeX is run.
PLAIN_STYLE: dict[str, Any] = {"text.parse_math": False, "text.usetex": False}

# What Markdown, and what the Hub and GitHub add to it, may take for a sign inside a line; not the `|` of tables.
_SIGNS = re.compile(r"[\\`*\[\]<>~$&]|(?<!\w)_|_(?!\w)")


class PlainTable(Table):
    """A table of rich whose headings and cells, where they are `str`, are text as it is: `[bold]` is no style."""

    def add_column(self, header: Any = "", *args: Any, **options: Any) -> None:
        """Add a column."""
        super().add_column(_text(header), *args, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row."""
        super().add_row(*map(_text, cells), **options)


def _text(cell: Any) -> Any:
    return Text(cell) if isinstance(cell, str) else cell


def legend_label(text: str) -> str:
    """Return a label for a legend of matplotlib, which leaves out those that begin with `_`."""
    return f" {text}" if text.startswith("_") else text


def markdown(text: str) -> str:
    """Return text as Markdown that is shown as the text, in one line."""
    return _SIGNS.sub(r"\\\g<0>", " ".join(text.split()))


def code(text: str) -> str:
    """Return text as a piece of code in a line of Markdown, whatever backticks are in it."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def code_block(text: str, language: str = "") -> str:
    """Return lines of text as a block of code in Markdown, whatever backticks are in them."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip(chr(10))}\n{fence}"
