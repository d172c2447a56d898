"""The curves of a run in TensorBoard: by round, and accuracy and loss by the bytes that they cost as well."""

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from splitfed.federation.control import choices
from splitfed.federation.control.choices import Choice
from splitfed.reports.live.tags import IMAGES, MEGABYTE, by, description, layout
from splitfed.run.client_scores import Score, read_scores
from splitfed.run.journal import read_table
from splitfed.run.ledger import Totals, read_rows
from splitfed.run.log import SpareFile
from splitfed.run.metrics import Metrics, read_exits
from splitfed.run.observer import Figures, Observer, Started
from splitfed.run.summary import Summary

# Of accuracies, a hundredth each.
_BINS = np.linspace(0.0, 1.0, 101)


class Curves(Observer):
    """Writes `<run folder>/tensorboard/<its name>`: TensorBoard names a run by its folder, however far up it is told to
    look. Steps are rounds, or in `by_cut_bytes` and `by_total_bytes` the bytes so far, exact, and in `by_images` those
    of both planes in thousandths of what the images weigh; values have the 24 bits of float32. To compute with, read
    the CSV files."""

    def __init__(self) -> None:
        self._events: _Events | None = None
        self._began = 0.0
        self._clients = self._laid_out = self._exits = False
        self._figures: Callable[[], Figures] = Figures
        self._points: dict[str, None] = {}  # those that were ever chosen, in that order

    def started(self, info: Started) -> None:
        """Open the folder; a resumed run writes its history anew, so that nothing after its checkpoint is left."""
        folder = curves_of(info.folder)
        for place in (folder, folder.parent):  # beside it is where earlier versions wrote
            for old in place.glob("events.out.tfevents.*"):
                with suppress(OSError):
                    old.unlink()
        self._events = _Events(folder)
        self._clients, self._laid_out, self._figures = info.asks, False, info.figures
        # Rounds are dated back, so that TensorBoard's relative time is the run's own, without the pause.
        self._began = time.time() - (info.history[-1][0].seconds if info.history else 0.0)
        finished = _before_round_one(info.folder) if info.history else Totals()
        scores = read_scores(info.folder) if info.asks else {}
        of_exits = read_exits(info.folder) if info.history else {}
        path = info.folder / choices.NAME
        chosen = list(read_table(path, Choice.of, choices.COLUMNS)) if path.exists() else []
        for metrics, sent in info.history:
            finished = finished + sent
            self.evaluated(metrics.round, scores.get(metrics.round, []))
            self.exited(metrics.round, of_exits.get(metrics.round, {}))
            self.steered(metrics.round, [one for one in chosen if one.round == metrics.round])
            self._write(metrics, sent, finished)
        self._events.flush()

    def evaluated(self, round: int, scores: list[Score]) -> None:
        """Write how the clients' accuracies are spread."""
        from torch.utils.tensorboard.summary import histogram

        assert self._events is not None
        if scores:
            found = np.array([score.accuracy for score in scores])
            self._events.add(histogram("clients/accuracies", found, _BINS), round, time.time())

    def steered(self, round: int, chosen: Sequence[Choice]) -> None:
        """Write the mean queue, what came through a second, and how many clients are at each point, none where others
        are for once."""
        if not chosen:
            return
        now = time.time()
        self._points |= dict.fromkeys(one.point for one in chosen)
        self._add("control/queue", sum(one.queue for one in chosen) / len(chosen), round, now)
        if seconds := sum(one.seconds or 0.0 for one in chosen):
            self._add("control/rate", 8e-6 * sum(one.bytes for one in chosen if one.seconds) / seconds, round, now)
        for name in self._points:
            self._add(f"control/points/{name}", sum(one.point == name for one in chosen), round, now)

    def exited(self, round: int, accuracies: Mapping[int, float]) -> None:
        """Write how many images each exit answers rightly."""
        self._exits |= bool(accuracies)
        for block, accuracy in accuracies.items():
            self._add(f"exits/block_{block}", accuracy, round, time.time())

    def round(self, metrics: Metrics, sent: Totals, finished: Totals) -> None:
        """Write the points of a round; they are in the file when this returns."""
        assert self._events is not None
        self._write(metrics, sent, finished)
        self._events.flush()

    def finished(self, summary: Summary, totals: Totals) -> None:
        """Write the figures of the test split, what was wasted, and the line of TensorBoard's table of runs."""
        from torch.utils.tensorboard.summary import hparams

        assert self._events is not None
        for name, value in (
            ("test_accuracy", summary.test_accuracy),
            ("test_loss", summary.test_loss),
            ("wasted_MB", summary.bytes_wasted / MEGABYTE),
            ("images_factor", summary.images_factor),
        ):
            if value is None:
                continue
            # From end to end: a single point is lost among curves.
            for step, at in ((0, self._began), (summary.rounds, self._began + summary.seconds)):
                self._add(f"final/{name}", value, step, at)
        names = ("scenario", "seed", "engine", "mode", "reducer")
        shown = ["final/test_accuracy", "sum_MB/total", "factor/total", "time/seconds"]
        shown[1:1] = ["sum_MB/cut", "factor/cut"] if summary.cut_bytes else []
        # Written by hand: `add_hparams` would open a run of its own beside this one.
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
        from torch.utils.tensorboard.summary import custom_scalars

        assert self._events is not None
        weight = self._figures().images_bytes
        if not self._laid_out:  # known with the first round: whether there is a cut
            timed = metrics.simulated_seconds is not None
            charts = layout(cut=metrics.cut_bytes > 0, clients=self._clients, images=bool(weight), timed=timed,
                            exits=self._exits)  # fmt: skip
            self._events.add(custom_scalars(charts), 0, time.time())
            self._laid_out = True
        at, step = self._began + metrics.seconds, metrics.round
        for name, value in (
            ("loss/train", metrics.train_loss),
            ("loss/eval", metrics.eval_loss),
            ("accuracy/eval", metrics.eval_accuracy),
            ("clients/accuracy", metrics.clients_accuracy),
            ("clients/worst", metrics.worst_client),
            ("clients/median", metrics.median_client),
            ("clients/best", metrics.best_client),
        ):
            if value is not None:
                self._add(name, value, step, at)
                if metrics.cut_bytes:  # else there is no cut
                    self._add(by("by_cut_bytes", name), value, metrics.cut_bytes, at)
                self._add(by("by_total_bytes", name), value, metrics.total_bytes, at)
                if metrics.simulated_seconds is not None:
                    self._add(by("by_simulated_time", name), value, round(metrics.simulated_seconds), at)
                if weight:
                    self._add(by("by_images", name), value, IMAGES * metrics.total_bytes // weight, at)
        # Of all roles seen so far: one that pauses for a round has a point at zero there, not a line drawn over it.
        for direction, role in sorted({(direction, role) for _, direction, role in finished.sums}):
            of_round = sent.select(direction=direction, role=role).sent
            self._add(f"round_MB/{direction}/{role}", of_round / MEGABYTE, step, at)
            sizes = finished.select(direction=direction, role=role)
            for stage in ("raw", "reduced", "coded", "sent"):
                self._add(f"stages_MB/{direction}/{role}/{stage}", getattr(sizes, stage) / MEGABYTE, step, at)
        for name, sizes in (("cut", finished.cut), ("total", finished.total)):
            if sizes.sent:
                self._add(f"sum_MB/{name}", sizes.sent / MEGABYTE, step, at)
                self._add(f"factor/{name}", sizes.raw / sizes.sent, step, at)
        self._add("lr/client", metrics.client_lr, step, at)
        self._add("lr/server", metrics.server_lr, step, at)
        self._add("clients/lost", metrics.lost, step, at)
        self._add("time/seconds", metrics.seconds, step, at)
        if metrics.simulated_seconds is not None:
            self._add("time/simulated", metrics.simulated_seconds, step, at)

    def _add(self, tag: str, value: float, step: int, at: float) -> None:
        assert self._events is not None
        from torch.utils.tensorboard.summary import scalar

        # Not in double precision: TensorBoard's fast loader, which it uses unless told otherwise, leaves doubles out.
        point = scalar(tag, value, new_style=True)
        point.value[0].metadata.summary_description = description(tag)
        self._events.add(point, step, at)


def curves_of(run: Path) -> Path:
    """Return the folder of a run's curves."""
    return run / "tensorboard" / run.resolve().name


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
