"""What a run shows in a notebook: the lines of the console in one output that is renewed, with a bar below them."""

import io
import time
from dataclasses import replace
from pathlib import Path

import rich.console

from splitfed.reports.live.console import Console, in_file
from splitfed.run.ledger import Totals
from splitfed.run.metrics import Metrics
from splitfed.run.observer import Started
from splitfed.run.summary import Summary

OFTEN = 0.25  # seconds between two states of the bar
_WIDE = 32  # characters of the bar


def in_notebook() -> bool:
    """Return whether this process is a notebook's, which shows what is displayed."""
    return rich.console.Console().is_jupyter


class Notebook(Console):
    """Shows a run in the cell that started it, as plain text; folders below the current one by their short names."""

    def __init__(self) -> None:
        self._text = io.StringIO()
        super().__init__(in_file(self._text))
        self._handle = None
        self._shown = 0.0

    def started(self, info: Started) -> None:
        """Show the heading and the names of the columns."""
        super().started(replace(info, folder=_short(info.folder)))
        self._show(self._open(info.resumed + 1, 0.0))

    def progress(self, round: int, share: float) -> None:
        """Move the bar, a few times a second at most."""
        if time.monotonic() - self._shown >= OFTEN:
            self._show(self._open(round, share))

    def round(self, metrics: Metrics, sent: Totals, finished: Totals) -> None:
        """Add the line of a round."""
        super().round(metrics, sent, finished)
        self._show(self._open(metrics.round + 1, 0.0))

    def finished(self, summary: Summary, totals: Totals) -> None:
        """Add where the bytes went, and what the run came to."""
        super().finished(summary, totals)
        self._show()

    def interrupted(self, folder: Path, round: int, totals: Totals) -> None:
        """Add where the bytes went so far, and how to go on."""
        super().interrupted(_short(folder), round, totals)
        self._show()

    def close(self) -> None:
        """Take the bar away, also after an error."""
        super().close()
        if self._handle is not None:
            self._show()

    def _open(self, round: int, share: float) -> str:
        """Return the bar of the open round, or nothing after the last one."""
        assert self._info is not None
        if round > self._info.rounds:
            return ""
        done = int(share * _WIDE)
        return f"round {round}/{self._info.rounds} [{'#' * done}{'.' * (_WIDE - done)}] {share:4.0%}\n"

    def _show(self, below: str = "") -> None:
        from IPython.display import display

        self._shown = time.monotonic()
        content = {"text/plain": self._text.getvalue() + below}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


def _short(folder: Path) -> Path:
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
