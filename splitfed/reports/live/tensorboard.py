"""The curves of a run in TensorBoard: by round, and accuracy and loss by the bytes that they cost as well."""

import os
import socket
import time
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from splitfed.run.client_scores import Score, read_scores
from splitfed.run.ledger import Totals, read_rows
from splitfed.run.log import SpareFile
from splitfed.run.metrics import Metrics
from splitfed.run.observer import Observer, Started
from splitfed.run.summary import Summary

# Charts of several curves, under TensorBoard's "custom scalars": what belongs together is read together.
LAYOUT = {
    "clients": {
        "accuracy on what they hold out": ["Multiline", ["clients/(accuracy|worst|median|best)"]],
    },
    "bytes per round": {
        "up, by role": ["Multiline", ["bytes/up/.*"]],
        "down, by role": ["Multiline", ["bytes/down/.*"]],
    },
    "bytes so far": {
        "cut and total": ["Multiline", ["bytes/cut_total", "bytes/total"]],
        "smashed, raw to sent": ["Multiline", ["stages/up/smashed/.*"]],
        "cut_gradient, raw to sent": ["Multiline", ["stages/down/cut_gradient/.*"]],
    },
}


# Of accuracies, a hundredth each.
_BINS = np.linspace(0.0, 1.0, 101)


class Curves(Observer):
    """Writes `<run folder>/tensorboard`. Steps are rounds, or under `by_cut_bytes/` and `by_total_bytes/` the bytes
    so far, exact; values have the 24 bits of float32, also those in bytes. To compute with, read the CSV files."""

    def __init__(self) -> None:
        self._events: _Events | None = None
        self._began = 0.0

    def started(self, info: Started) -> None:
        """Open the folder; a resumed run writes its history anew, so that nothing after its checkpoint is left."""
        from torch.utils.tensorboard.summary import custom_scalars

        folder = info.folder / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            with suppress(OSError):
                old.unlink()
        self._events = _Events(folder)
        self._events.add(custom_scalars(LAYOUT), 0, time.time())
        # Rounds are dated back, so that TensorBoard's relative time is the run's own, without the pause.
        self._began = time.time() - (info.history[-1][0].seconds if info.history else 0.0)
        finished = _before_round_one(info.folder) if info.history else Totals()
        scores = read_scores(info.folder) if info.asks else {}
        for metrics, sent in info.history:
            finished = finished + sent
            self.evaluated(metrics.round, scores.get(metrics.round, []))
            self._write(metrics, sent, finished)
        self._events.flush()

    def evaluated(self, round: int, scores: list[Score]) -> None:
        """Write how the clients' accuracies are spread."""
        from torch.utils.tensorboard.summary import histogram

        assert self._events is not None
        if scores:
            found = np.array([score.accuracy for score in scores])
            self._events.add(histogram("clients/accuracies", found, _BINS), round, time.time())

    def round(self, metrics: Metrics, sent: Totals, finished: Totals) -> None:
        """Write the points of a round; they are in the file when this returns."""
        assert self._events is not None
        self._write(metrics, sent, finished)
        self._events.flush()

    def finished(self, summary: Summary, totals: Totals) -> None:
        """Write the figures of the test split, what was wasted, and the line of TensorBoard's table of runs."""
        from torch.utils.tensorboard.summary import hparams

        assert self._events is not None
        at = self._began + summary.seconds
        for name, value in (("test/accuracy", summary.test_accuracy), ("test/loss", summary.test_loss)):
            self._add(name, value, summary.rounds, at)
            if summary.cut_bytes:
                self._add(f"by_cut_bytes/{name}", value, summary.cut_bytes, at)
            self._add(f"by_total_bytes/{name}", value, summary.total_bytes, at)
        self._add("bytes/wasted", summary.bytes_wasted, summary.rounds, at)
        names = ("scenario", "seed", "engine", "mode", "reducer")
        shown = ("test/accuracy", "bytes/cut_total", "bytes/total", "factor/cut", "factor/total", "time/seconds")
        for part in hparams({name: str(getattr(summary, name)) for name in names}, dict.fromkeys(shown, 0)):
            self._events.add(part, 0, time.time())
        self.close()

    def interrupted(self, folder: Path, round: int, totals: Totals) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file, also after an error; nothing where none is open."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def _write(self, metrics: Metrics, sent: Totals, finished: Totals) -> None:
        at, step = self._began + metrics.seconds, metrics.round
        for name, value in (
            ("train/loss", metrics.train_loss),
            ("eval/loss", metrics.eval_loss),
            ("eval/accuracy", metrics.eval_accuracy),
            ("clients/accuracy", metrics.clients_accuracy),
            ("clients/worst", metrics.worst_client),
            ("clients/median", metrics.median_client),
            ("clients/best", metrics.best_client),
        ):
            if value is not None:
                self._add(name, value, step, at)
                if metrics.cut_bytes:  # else there is no cut
                    self._add(f"by_cut_bytes/{name}", value, metrics.cut_bytes, at)
                self._add(f"by_total_bytes/{name}", value, metrics.total_bytes, at)
        # Of all roles seen so far: one that pauses for a round has a point at zero there, not a line drawn over it.
        for direction, role in sorted({(direction, role) for _, direction, role in finished.sums}):
            self._add(f"bytes/{direction}/{role}", sent.select(direction=direction, role=role).sent, step, at)
            sizes = finished.select(direction=direction, role=role)
            for stage in ("raw", "reduced", "coded", "sent"):
                self._add(f"stages/{direction}/{role}/{stage}", getattr(sizes, stage), step, at)
        for name, tag, sizes in (("cut", "bytes/cut_total", finished.cut), ("total", "bytes/total", finished.total)):
            self._add(tag, sizes.sent, step, at)
            if sizes.sent:
                self._add(f"factor/{name}", sizes.raw / sizes.sent, step, at)
        self._add("lr/client", metrics.client_lr, step, at)
        self._add("lr/server", metrics.server_lr, step, at)
        self._add("clients/lost", metrics.lost, step, at)
        self._add("time/seconds", metrics.seconds, step, at)
        if metrics.simulated_seconds is not None:
            self._add("time/simulated", metrics.simulated_seconds, step, at)

    def _add(self, tag: str, value: float, step: int, at: float) -> None:
        from torch.utils.tensorboard.summary import scalar

        assert self._events is not None
        # Not `double_precision`: TensorBoard's fast loader, which it uses unless told otherwise, leaves doubles out.
        self._events.add(scalar(tag, value, new_style=True), step, at)


class _Events:
    """An event file. TensorBoard's own writer leaves it to a thread, which has nobody to tell when the disk is full."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(SpareFile(folder / name, "wb"))
        self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # This mark tells a TensorBoard that is open meanwhile to drop what it read from files that were deleted.
        self._put(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))

    def add(self, summary: Any, step: int, at: float) -> None:
        """Add a summary, dated in seconds since the epoch."""
        from tensorboard.compat.proto.event_pb2 import Event

        self._put(Event(wall_time=at, step=step, summary=summary))

    def flush(self) -> None:
        """Hand what was added to the system."""
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _put(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


def _before_round_one(folder: Path) -> Totals:
    """Sum what was sent before the first round: it is in the ledger, but belongs to no round of the history."""
    before = Totals()
    for row in takewhile(lambda row: row.round == 0, read_rows(folder / "ledger.csv")):
        before.add(row)
    return before
