"""What is written down of a run, round by round, and told to those who watch it."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from splitfed.errors import WriteError
from splitfed.federation.control import choices
from splitfed.federation.control.choices import Choice
from splitfed.run import client_scores, ledger, metrics
from splitfed.run.checkpoint import Checkpoints, Progress
from splitfed.run.client_scores import Score
from splitfed.run.journal import Journal, Mark
from splitfed.run.ledger import Totals
from splitfed.run.metrics import Metrics
from splitfed.run.observer import Figures, Observer, Started
from splitfed.run.recovery import Recovered, fixed, wasted_bytes
from splitfed.run.summary import Summary
from splitfed.scenario import Scenario
from splitfed.scenario.budget import Counted
from splitfed.server.cohort.yardstick import Yardstick

# What a round changes that may be dropped whole.
_TRAINED = (
    "model",
    "optimiser",
    "strategy",
    "alignment",
    "weights",
    "training",
    "memory",
    "auxiliary",
    "cache",
    "budgets",
)


class RunRecords:
    """The files of a run folder as the rounds write them: ledger, metrics, clients' scores, checkpoints, summary.

    `finished` is the last round that is on disk, -1 before there is any; `history` has the rows of `metrics.csv`, each
    with the bytes of its round. `notes` on the data are told when the rounds begin, and by the `yardstick` what the
    clients' images weigh."""

    def __init__(
        self, scenario: Scenario, folder: Path, recovered: Recovered, checkpoints: Checkpoints, observer: Observer,
        yardstick: Yardstick, notes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.scenario, self.folder, self.observer, self._notes = scenario, folder, observer, tuple(notes)
        self.yardstick = yardstick
        self.ledger, self.history = recovered.ledger, recovered.history
        self._checkpoints, self._fixed = checkpoints, fixed(folder)
        self._metrics = Journal(folder / metrics.NAME, metrics.HEADER)
        self._scores = Journal(folder / client_scores.NAME, client_scores.HEADER)
        self._choices = Journal(folder / choices.NAME, choices.HEADER)
        self._exits = Journal(folder / metrics.EXITS, metrics.EXITS_HEADER)
        progress = recovered.checkpoint.progress if recovered.checkpoint else None
        self.finished = progress.round if progress else -1
        self._start = self.finished  # the round at whose outcome the open one begins
        self._before = progress.seconds if progress else 0.0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the run has taken, over all attempts."""
        return self._before + time.monotonic() - self._began

    def sent(self, of: Counted) -> int:
        """Return the bytes that were sent in finished rounds and in the open one: across the cut, or on both planes
        with what was wasted."""
        parts = self.ledger.finished, self.ledger.open
        if of == "cut":
            return sum(part.cut.sent for part in parts)
        return sum(part.total.sent for part in parts) + self.ledger.wasted

    @property
    def simulated_seconds(self) -> float:
        """What simulated time has passed in finished rounds; 0 where nothing tells it."""
        return (self.history[-1][0].simulated_seconds if self.history else None) or 0.0

    def start_clock(self) -> None:
        """Begin to count seconds: waiting for clients is not the run's time."""
        self._began = time.monotonic()

    def started(self, budget: Callable[[], int | None]) -> None:
        """Tell that the rounds begin, or go on, under what is then the budget."""
        scenario = self.scenario
        info = Started(
            scenario.name, self.folder, scenario.federation.rounds, scenario.engine.kind, self.finished, self.history,
            budget(), scenario.evaluation.held_out > 0, self._notes, scenario.budget.of,
            lambda: Figures(budget(), self.ledger.wasted, self.yardstick.bytes),
            loaded=scenario.compression.front_weights.initial == "load", own_norms=scenario.federation.local_norms,
        )  # fmt: skip
        self.observer.started(info)

    def close_round(
        self, row: Callable[[Totals], Metrics], scores: list[Score], asked: bool, chosen: Sequence[Choice] = (),
        exits: Mapping[int, float] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Write a round down: its rows of the ledger, what `row` makes of the bytes of all finished rounds, the scores
        of clients, if they were `asked`, what a controller has `chosen`, the accuracy of `exits` by block, and the
        checkpoint; then tell of it."""
        sent = self.ledger.commit()
        told = row(self.ledger.finished)
        if scores:  # the first ones make the file
            self._scores.append("".join(score.line() for score in scores))
        if chosen:
            self._choices.append("".join(choice.line() for choice in chosen))
        if exits:
            self._exits.append(metrics.exit_lines(told.round, exits))
        self._metrics.append(told.line())
        self.history.append((told, sent))
        self.checkpoint(told.round)
        if asked:
            self.observer.evaluated(told.round, scores)
        if chosen:
            self.observer.steered(told.round, chosen)
        if exits:
            self.observer.exited(told.round, exits)
        self.observer.round(told, sent, self.ledger.finished)

    def checkpoint(self, round: int) -> None:
        """Write a checkpoint; the round is finished once it is on disk."""
        grown = {
            ledger.NAME: self.ledger.mark, metrics.NAME: self._metrics.mark, client_scores.NAME: self._scores.mark,
            choices.NAME: self._choices.mark, metrics.EXITS: self._exits.mark,
            ledger.WASTED: Mark.of(self.folder / ledger.WASTED),
        }  # fmt: skip
        self._checkpoints.save(
            Progress(
                round, self.ledger.attempt, self.seconds, grown[ledger.NAME].length, grown[metrics.NAME].length,
                grown[client_scores.NAME].length, grown[ledger.WASTED].length, grown[choices.NAME].length,
                grown[metrics.EXITS].length,
                {name: mark.sha256 for name, mark in grown.items() if mark.length} | self._fixed,
            )
        )  # fmt: skip
        self.finished = self._start = round
        self.ledger.forget_open()

    def unsound(self) -> set[str]:
        """Return where in what a checkpoint would hold there are arrays that are not finite."""
        return self._checkpoints.unsound()

    def rewind(self) -> int:
        """Bring back what the open round has changed of what is trained, as the last finished round left it, or an
        earlier one after `step_back`. Return which round that is."""
        self._checkpoints.rewind(self._start, *_TRAINED)
        return self._start

    def step_back(self) -> None:
        """Have the open round begin at what the round before left, where its checkpoint is still there."""
        self._start = max([round for round in self._checkpoints.rounds() if round < self._start], default=self._start)

    def drop_round(self) -> None:
        """Move what the open round has sent to the waste."""
        self.ledger.waste()

    def give_up(self) -> None:
        """Drop the open round as the run ends; where the disk takes no more, whoever resumes it does so."""
        with suppress(WriteError):
            self.drop_round()

    def interrupted(self) -> None:
        """Tell that the user stopped the run."""
        self.observer.interrupted(self.folder, max(0, self.finished), self.ledger.finished)

    def finish(self, test_loss: float, test_accuracy: float, spent: float | None = None) -> None:
        """Write the summary, last of all, and tell it; `spent` is what a controller's target came to."""
        totals, rows = self.ledger.finished, [row for row, _ in self.history]
        summary = Summary.of(
            self.scenario, rows, totals, wasted_bytes(self.folder), self.seconds, test_loss=test_loss,
            test_accuracy=test_accuracy, images_bytes=self.yardstick.bytes, images_reported=self.yardstick.reported,
            spent=spent,
        )  # fmt: skip
        summary.write(self.folder)
        self.observer.finished(summary, totals)


class StepProgress:
    """Tells an observer which share of a round's mini-batches has been trained."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._done, self._due = 0, 1

    def begin(self, due: int) -> None:
        """Begin a round of so many mini-batches, one at least."""
        self._done, self._due = 0, due

    def step(self, round: int, client: int) -> None:
        """Hear of one."""
        self._done += 1
        self._observer.progress(round, min(1.0, self._done / self._due))
