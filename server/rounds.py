"""The rounds of a run: sample clients, let them train, aggregate, evaluate, write down, and stop in time.

The same loop serves every engine: which grid carries the messages, and what listens for mini-batches, is decided
outside.
"""

import math
import time
from dataclasses import asdict
from logging import getLogger
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Message

from splitfed.engines.runtime import Runtime
from splitfed.errors import RunError
from splitfed.run.checkpoint import Checkpoints, Progress
from splitfed.run.client_scores import Standing, append_scores, length
from splitfed.run.metrics import Metrics, append
from splitfed.run.observer import Observer, Observers, Started
from splitfed.run.recovery import Recovered, wasted_bytes
from splitfed.run.summary import Summary
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.server.back.server import SplitServer
from splitfed.server.back.whole_model import Unsplit
from splitfed.server.cohort.align import Alignment
from splitfed.server.cohort.attendance import Attendance, Plan
from splitfed.server.cohort.dispatch import Dispatch
from splitfed.server.cohort.evaluate import Survey
from splitfed.server.cohort.roster import Roster
from splitfed.server.cohort.train import Cohort, failures
from splitfed.server.model import Model
from splitfed.server.weights.grid import WireGrid
from splitfed.server.weights.strategy import Aggregation
from splitfed.wire.channel import Listener
from splitfed.wire.messages import METRICS

log = getLogger("splitfed")


class Rounds:
    """A run in progress: the model, the bytes so far, and where it all is written."""

    def __init__(
        self, scenario: Scenario, folder: Path, recovered: Recovered, model: Model, grid: WireGrid,
        split: SplitServer | Unsplit, strategy: Aggregation, listener: Listener, lent: Runtime, question: dict,
        observers: tuple[Observer, ...],
    ) -> None:  # fmt: skip
        self.scenario, self.folder, self.model, self.grid, self.split = scenario, folder, model, grid, split
        self.strategy, self.lent, self.observer = strategy, lent, Observers(observers)
        self.ledger, self.key = recovered.ledger, Key(scenario.seed)
        self.checkpoints = Checkpoints(folder, scenario.checkpoints.keep)
        self.history = recovered.history
        progress = recovered.checkpoint.progress if recovered.checkpoint else None
        self.finished = progress.round if progress else -1
        known = {client: number for client, number in enumerate(progress.examples) if number} if progress else {}
        self.dispatch = Dispatch(grid)
        self.roster = Roster(
            self.dispatch, scenario.federation.clients, question, known,
            waits=lent.waits, keys=lent.roster, joined=self.observer.joined, share=scenario.evaluation.held_out,
        )  # fmt: skip
        self.attendance = Attendance(scenario, folder)
        self.cohort = Cohort(scenario, self.dispatch, split, strategy, listener)
        self.alignment = Alignment(scenario, self.dispatch, grid, model, progress.aligned if progress else [])
        self.survey = Survey(scenario, self.dispatch, split, listener, self.roster, self.alignment, self.attendance)
        self.before = progress.seconds if progress else 0.0
        self.began = time.monotonic()
        split.on_step = self._on_step

    def run(self) -> None:
        """Run to the end, or until the user interrupts: then the open round is dropped and KeyboardInterrupt raised."""
        try:
            self._run()
        except BaseException as error:
            self.split.end_round()  # streams that are still open count nothing more
            self.ledger.waste()
            if isinstance(error, KeyboardInterrupt):
                self.observer.interrupted(self.folder, max(0, self.finished), self.ledger.finished)
            raise
        finally:
            self.observer.close()

    def _run(self) -> None:
        self._prepare()
        info = Started(
            self.scenario.name, self.folder, self.scenario.federation.rounds, self.scenario.engine.kind,
            self.finished, self.history, self._limit(), self.scenario.evaluation.held_out > 0,
        )  # fmt: skip
        self.observer.started(info)
        while self._goes_on(self.finished):
            self._round(self.finished + 1)
        self._finish()

    def _limit(self) -> int | None:
        examples, private = sum(self.roster.examples.values()), self.scenario.federation.private
        return self.scenario.budget.limit(examples, self.model.geometry, private)

    def _goes_on(self, round: int) -> bool:
        """Decide whether another round starts after this one, by what it and those before it have sent."""
        spent, limit = self.ledger.finished.cut.sent + self.ledger.open.cut.sent, self._limit()
        return round < self.scenario.federation.rounds and (limit is None or spent < limit)

    def _prepare(self) -> None:
        """Learn who is there; a new run then writes the checkpoint that round 1 starts from."""
        self.grid.open_round = 0
        self.roster.gather(self.lent.enough or self.scenario.federation.clients)
        self.began = time.monotonic()  # waiting for clients is not the run's time
        if self.finished >= 0:
            self.ledger.waste()  # round 0 was counted by the attempt that wrote the checkpoint
            return
        self.ledger.commit()
        self._checkpoint(0)

    def _cohort(self, round: int) -> list[int]:
        """Sample the round's clients among those who are there, in the order in which they train."""
        there = self.roster.online()
        if not there:
            log.warning("round %d waits: no client is there", round)
            self.roster.gather(1)
            there = self.roster.online()
        return self.attendance.sample(round, there)

    def _round(self, round: int) -> None:
        self.grid.open_round = round
        cohort = self._cohort(round)
        examples = {client: self.roster.examples[client] for client in cohort}
        nodes = {client: self.roster.nodes[client] for client in cohort}  # some may leave before they are messaged
        unfit = self.alignment.align(round, examples, nodes)
        plan = self.attendance.plan(round, {client: examples[client] for client in cohort if client not in unfit})
        examples = {client: examples[client] for client in plan.vanish}
        before = self.model.arrays()
        replies = self._train(round, examples, nodes, before, plan) if examples else unfit
        trained = {client: reply for client, reply in replies.items() if reply and not reply.has_error()}
        if not trained and self._nobody(round, replies):
            return
        self.grid.crossing.close(list(trained))
        loss = self._take(round, examples, replies, trained, before) if trained else None
        seen = sum(examples[client] for client in trained)
        self._close(round, loss, seen, len(trained), len(cohort) - len(trained), plan.seconds)

    def _train(
        self, round: int, examples: dict[int, int], nodes: dict[int, int], weights: ArrayRecord, plan: Plan
    ) -> dict[int, Message | None]:
        """Let clients, who hold so many `examples`, train from these weights, and return their replies."""
        self._steps_done, self._steps_due = 0, self.model.steps(list(examples.values()))
        self.split.start_round(round, self._lr(round)[1], examples)
        self.grid.crossing.open(round, sorted(examples))
        replies = self.cohort.train(round, examples, nodes, weights, plan)
        self.split.end_round()
        return replies

    def _take(
        self, round: int, examples: dict[int, int], replies: dict[int, Message | None], trained: dict[int, Message],
        before: ArrayRecord,
    ) -> float:  # fmt: skip
        """Put the cohort's front in the model's place, and return the mean loss, by examples, of all who trained,
        whichever of them the strategy selects."""
        if self.cohort.hands_on:
            arrays = self.cohort.handed_on(examples, replies)
        else:
            arrays = self.strategy.aggregate(round, list(trained.values()), before)
        if arrays is not None:
            self.model.load_part({name: torch.from_numpy(array.numpy()).float() for name, array in arrays.items()})
        seen = sum(examples[client] for client in trained)
        losses = {client: reply.content.metric_records[METRICS]["train-loss"] for client, reply in trained.items()}
        return math.fsum(examples[client] / seen * losses[client] for client in trained)  # type: ignore[operator]

    def _close(self, round: int, loss: float | None, seen: int, trained: int, lost: int, seconds: float) -> None:
        """Evaluate while the round is still open, so that whoever interrupts here drops the whole round; then write it
        down."""
        # Clients come first, as what they send may spend the budget.
        due = self.scenario.evaluation.due(round, last=not self._goes_on(round))
        scores = self.survey.ask(round, self.model.arrays()) if due else []
        standing = Standing.of(scores)
        looked = round % self.scenario.training.evaluate_every == 0 or not self._goes_on(round)
        eval_loss, eval_accuracy = self.model.validate() if looked else (None, None)
        sent = self.ledger.commit()
        finished = self.ledger.finished
        row = Metrics(
            round, loss, eval_loss, eval_accuracy,
            finished.cut.sent, finished.total.sent, self._seconds(), finished.cut.raw, finished.total.raw,
            seen, trained, *self._lr(round), lost=lost, simulated_seconds=self._simulated(seconds),
            **(asdict(standing) if standing else {}),
        )  # fmt: skip
        append_scores(self.folder, scores)
        append(self.folder / "metrics.csv", row)
        self.history.append((row, sent))
        self._checkpoint(round)
        if due:
            self.observer.evaluated(round, scores)
        self.observer.round(row, sent, finished)

    def _lr(self, round: int) -> tuple[float, float]:
        """Return the learning rates of client and server in a round."""
        training, rounds = self.scenario.training, self.scenario.federation.rounds
        return training.client.lr(round, rounds), training.server.lr(round, rounds)

    def _nobody(self, round: int, replies: dict[int, Message | None]) -> bool:
        """Return whether a round that nobody finished is dropped, as it starts again where clients may come back, or
        where what they lacked is sent to them then. It counts where clients are known to vanish or may be late; else,
        or if some failed, the run ends here."""
        reasons = failures(replies)
        if not reasons and self.attendance.may_end_empty:
            log.warning("round %d: no client finished it; the front stays as it was", round)
            return False
        if reasons or not (self.lent.waits or self.cohort.forgetful):
            raise RunError(f"round {round}: no client finished: {'; '.join(sorted(reasons)) or 'all were lost'}")
        log.warning("round %d: no client finished it; it starts again", round)
        self.ledger.waste()
        return True

    def _simulated(self, seconds: float) -> float | None:
        """Return the simulated seconds of all rounds, where this one took so many."""
        before = self.history[-1][0].simulated_seconds if self.history else None
        return (before or 0.0) + seconds if self.attendance.timed else None

    def _on_step(self, round: int, client: int) -> None:
        self._steps_done += 1
        self.observer.progress(round, min(1.0, self._steps_done / self._steps_due))

    def _seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def _checkpoint(self, round: int) -> None:
        ledger, metrics = ((self.folder / name).stat().st_size for name in ("ledger.csv", "metrics.csv"))
        examples = [self.roster.examples.get(client, 0) for client in range(self.scenario.federation.clients)]
        aligned = sorted(self.alignment.aligned)
        clients = length(self.folder)
        progress = Progress(round, self.ledger.attempt, self._seconds(), ledger, metrics, examples, aligned, clients)
        held = self.grid.crossing.state()
        self.checkpoints.save(self.model.state(), self.split.optimiser(), progress, self.strategy.state(), held)
        self.finished = round
        self.ledger.forget_open()

    def _finish(self) -> None:
        """Read the test split, once, and write the summary."""
        if self.lent.waits:
            self.roster.goodbye()
            self.ledger.commit()  # to the last round
            self.ledger.forget_open()
        loss, accuracy = self.model.test()
        totals, rows = self.ledger.finished, [row for row, _ in self.history]
        summary = Summary.of(
            self.scenario, rows, totals, wasted_bytes(self.folder), self._seconds(), test_loss=loss,
            test_accuracy=accuracy,
        )  # fmt: skip
        summary.write(self.folder)
        self.observer.finished(summary, totals)
