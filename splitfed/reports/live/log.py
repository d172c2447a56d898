"""What every run keeps of itself beside its CSV files: the console's lines in `log.txt`, and curves for TensorBoard."""

from splitfed.reports.live.console import Console, in_file
from splitfed.reports.live.tensorboard import Curves
from splitfed.run.log import SpareFile
from splitfed.run.observer import Observer


def recorders(log: SpareFile) -> tuple[Observer, ...]:
    """Return the observers that write a run's log and curves into its folder."""
    return Console(in_file(log)), Curves()
