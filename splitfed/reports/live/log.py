"""What every run keeps of itself beside its CSV files: the console's lines in `log.txt`, and curves for TensorBoard."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitfed.reports.live.console import Console, in_file
from splitfed.reports.live.tensorboard import Curves
from splitfed.run.observer import Observer


@contextmanager
def recorded(folder: Path) -> Iterator[tuple[Observer, ...]]:
    """Yield the observers that write a run's log and curves into its folder, for as long as it runs.

    A line at a time, so that the server's warnings, which reach the log through another handle, stand where they
    belong."""
    with open(folder / "log.txt", "a", buffering=1, encoding="utf-8", errors="backslashreplace") as file:
        yield Console(in_file(file)), Curves()
