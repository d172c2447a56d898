"""The rounds of a run: sample clients, let them train, aggregate, evaluate, write down, and stop in time.

The same loop serves every engine: which grid carries the messages, and what listens for mini-batches, is decided
outside.
"""

import math
import time
from dataclasses import asdict, dataclass
from logging import getLogger

import torch
from flwr.app import ArrayRecord

from splitfed.engines.runtime import Runtime
from splitfed.errors import Diverged, RunError
from splitfed.run.client_scores import Standing
from splitfed.run.metrics import Metrics
from splitfed.scenario import Scenario
from splitfed.server.cohort.align import AlignPhase
from splitfed.server.cohort.attendance import Attendance, RoundPlan
from splitfed.server.cohort.claims import Claims
from splitfed.server.cohort.evaluate import EvaluatePhase
from splitfed.server.cohort.roster import Roster
from splitfed.server.cohort.train import Cohort, Replies, TrainPhase, failures, trained
from splitfed.server.model import Model
from splitfed.server.records import RunRecords, StepProgress
from splitfed.server.weights.grid import WireGrid

log = getLogger("splitfed")

_LONGEST_PAUSE = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Phases:
    """What clients are asked for in a round, one after another; `progress` hears of each mini-batch."""

    align: AlignPhase
    train: TrainPhase
    evaluate: EvaluatePhase
    progress: StepProgress


class Rounds:
    """A run in progress. `roster` and `attendance` say who is there and who is drawn, `phases` what they do, and
    `records` writes it all down."""

    def __init__(
        self, scenario: Scenario, model: Model, grid: WireGrid, roster: Roster, attendance: Attendance, phases: Phases,
        records: RunRecords, lent: Runtime, claims: Claims,
    ) -> None:  # fmt: skip
        self.scenario, self.model, self.grid, self.lent = scenario, model, grid, lent
        self.roster, self.attendance, self.phases, self.records = roster, attendance, phases, records
        self._pause = 1.0  # seconds, until a round that nobody finished starts again
        self.claims = claims
        self._failed: dict[int, str] = {}  # who failed since a client last finished a round, and why

    def run(self) -> None:
        """Run to the end, or until the user interrupts: then the open round is dropped and KeyboardInterrupt raised."""
        try:
            self._prepare()
            self.records.started(self._limit())
            while self._goes_on(self.records.finished):
                self._round(self.records.finished + 1)
            self._finish()
        except BaseException as error:
            self.phases.train.stop()
            self.records.give_up()
            if isinstance(error, KeyboardInterrupt):
                self.records.interrupted()
            raise
        finally:
            self.records.observer.close()

    def _limit(self) -> int | None:
        # What clients claim alone must not lengthen a run.
        examples, private = sum(self.claims.believed(self.roster.examples).values()), self.scenario.federation.private
        return self.scenario.budget.limit(examples, self.model.geometry, private)

    def _goes_on(self, round: int) -> bool:
        """Decide whether another round starts after this one, by what it and those before it have sent."""
        limit = self._limit()
        return round < self.scenario.federation.rounds and (limit is None or self.records.cut_bytes < limit)

    def _prepare(self) -> None:
        """Learn who is there; a new run then writes the checkpoint that round 1 starts from."""
        self.grid.begin(0)
        self.roster.gather(self.lent.enough or self.scenario.federation.clients)
        self.records.start_clock()
        if self.records.finished >= 0:
            self.records.drop_round()  # round 0 was counted by the attempt that wrote the checkpoint
            return
        self.records.ledger.commit()
        self.records.checkpoint(0)

    def _drawn(self, round: int) -> Cohort:
        """Sample the round's clients among those who are there, in the order in which they train."""
        there = self.roster.online()
        if not there:
            log.warning("round %d waits: no client is there", round)
            self.roster.gather(1)
            there = self.roster.online()
        clients = self.attendance.sample(round, there)
        # Some may leave before they are messaged: their nodes are kept here.
        examples = {client: self.roster.examples[client] for client in clients}
        return Cohort(examples, dict(self.roster.nodes), self.claims.weights(examples))

    def _round(self, round: int) -> None:
        self.grid.begin(round)
        drawn = self._drawn(round)
        unfit = self.phases.align.run(round, drawn)
        plan = self.attendance.plan(round, {c: number for c, number in drawn.examples.items() if c not in unfit})
        cohort = drawn.only(plan.vanish)
        before = self.model.arrays()
        replies = self._train(round, cohort, before, plan) if cohort.examples else unfit
        taken = list(trained(replies))
        self._failed = {} if taken else self._failed | failures(replies)
        if not taken and self._starts_again(round, replies):
            return
        self._pause = 1.0
        self.phases.train.close(round, taken)
        loss = None
        if taken:
            arrays, loss = self.phases.train.aggregate(round, cohort, replies, before)
            if arrays is not None:
                self.model.load_part({name: torch.from_numpy(a.numpy()).float() for name, a in arrays.items()})
        seen = sum(cohort.weights[client] for client in taken)
        self._close(round, loss, seen, len(taken), len(drawn.examples) - len(taken), plan.seconds)

    def _train(self, round: int, cohort: Cohort, before: ArrayRecord, plan: RoundPlan) -> Replies:
        self.phases.progress.begin(self.model.steps(list(cohort.examples.values())))
        return self.phases.train.run(round, self._lr(round)[1], cohort, before, plan)

    def _close(self, round: int, loss: float | None, seen: int, taken: int, lost: int, seconds: float) -> None:
        """Evaluate while the round is still open, so that whoever interrupts here drops the whole round; then write it
        down."""
        # Clients come first, as what they send may spend the budget.
        due = self.scenario.evaluation.due(round, last=not self._goes_on(round))
        scores = self.phases.evaluate.run(round, self.model.arrays()) if due else []
        standing = Standing.of(scores)
        validated = round % self.scenario.training.evaluate_every == 0 or not self._goes_on(round)
        eval_loss, eval_accuracy = self.model.validate() if validated else (None, None)
        if eval_loss is not None and not math.isfinite(eval_loss):
            raise Diverged(f"round {round}", "the loss on the validation images")
        simulated = self.records.simulated_seconds + seconds if self.attendance.timed else None
        self.records.close_round(
            lambda finished: Metrics(
                round, loss, eval_loss, eval_accuracy,
                finished.cut.sent, finished.total.sent, self.records.seconds, finished.cut.raw, finished.total.raw,
                seen, taken, *self._lr(round), lost=lost, simulated_seconds=simulated,
                **(asdict(standing) if standing else {}),
            ), scores, asked=due,
        )  # fmt: skip

    def _lr(self, round: int) -> tuple[float, float]:
        """Return the learning rates of client and server in a round."""
        training, rounds = self.scenario.training, self.scenario.federation.rounds
        return training.client.lr(round, rounds), training.server.lr(round, rounds)

    def _starts_again(self, round: int, replies: Replies) -> bool:
        """Return whether a round that nobody finished is dropped, as it starts again where clients may come back, after
        a pause that grows, or where what they lacked is sent to them then. It counts where clients are known to vanish
        or may be late, and where others are there than those who failed; else, or if some failed, the run ends here
        where it waits for nobody."""
        reasons = sorted(set(failures(replies).values()))
        if not reasons and self.attendance.may_end_empty:
            log.warning("round %d: no client finished it; the front stays as it was", round)
            return False
        if reasons and self.lent.waits and self.roster.online() - self._failed.keys():
            log.warning("round %d: the front stays as it was: all who were drawn failed, others go on", round)
            return False
        if not self.lent.waits and (reasons or not self.phases.train.forgetful):
            raise RunError(f"round {round}: no client finished: {'; '.join(reasons) or 'all were lost'}")
        self.records.drop_round()
        if self.phases.train.forgetful and not reasons:
            log.warning("round %d: no client finished it; it starts again", round)
            return True
        log.warning("round %d: no client finished it; it starts again in %g s", round, self._pause)
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True

    def _finish(self) -> None:
        """Read the test split, once, and write the summary."""
        if self.lent.waits:
            self.roster.goodbye()
            self.records.ledger.commit()  # to the last round
            self.records.ledger.forget_open()
        self.records.finish(*self.model.test())
