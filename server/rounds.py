"""The rounds of a run: sample clients, let them train, aggregate, evaluate, write down, and stop in time.

The same loop serves every engine: which grid carries the messages, and what listens for mini-batches, is decided
outside.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict
from logging import getLogger

import torch
from flwr.app import ArrayRecord

from splitfed.compression.expect import MOST_NUMBER, most_weight
from splitfed.engines.runtime import Runtime
from splitfed.errors import Diverged, RunError, StrategyError
from splitfed.run.client_scores import Standing
from splitfed.run.metrics import RECALL, Metrics
from splitfed.scenario import Scenario
from splitfed.scenario.budget import Basis
from splitfed.server.cohort.attendance import Attendance, RoundPlan
from splitfed.server.cohort.claims import Claims
from splitfed.server.cohort.roster import Roster
from splitfed.server.cohort.suspects import Suspects
from splitfed.server.cohort.train import Cohort, Replies, absurd, failures, trained
from splitfed.server.memory.memory import Memory
from splitfed.server.model import Model
from splitfed.server.outcome import Calls, Outcome
from splitfed.server.records import RunRecords
from splitfed.server.weights.grid import WireGrid
from splitfed.split.bounds import check_number, out_of_bounds
from splitfed.wire.messages import DONE, TrainMetrics

log = getLogger("splitfed")

_LONGEST_PAUSE = 60.0  # seconds


class Rounds:
    """A run in progress. `roster` and `attendance` say who is there and who is drawn, `calls` what they are asked, and
    `records` writes it all down."""

    def __init__(
        self, scenario: Scenario, model: Model, grid: WireGrid, roster: Roster, attendance: Attendance, calls: Calls,
        records: RunRecords, lent: Runtime, claims: Claims,
    ) -> None:  # fmt: skip
        self.scenario, self.model, self.grid, self.lent = scenario, model, grid, lent
        self.roster, self.attendance, self.calls, self.records = roster, attendance, calls, records
        self._pause = 1.0  # seconds, until a round that nobody finished starts again
        self.claims = claims
        self._passing = 0  # the last round that was a pass over memory
        self._dismissed = False  # whether clients were told that they may leave
        self._failed: dict[int, str] = {}  # who failed since a client last finished a round, and why
        self._dropped: Diverged | None = None  # why the last round was dropped, if it was
        self._suspects = Suspects(calls.train.refusals)
        # How it began: what a strategy of the user's own has infinite is its own affair.
        self._largest, self._unsound = model.largest(), records.unsound()

    def run(self) -> None:
        """Run to the end, or until the user interrupts: then the open round is dropped and KeyboardInterrupt raised."""
        try:
            self._prepare()
            self.records.started(self._limit)
            while self._goes_on(self.records.finished):
                self._round(self.records.finished + 1)
            self._finish()
        except BaseException as error:
            self.calls.train.stop()
            self.records.give_up()
            if isinstance(error, KeyboardInterrupt):
                self.records.interrupted()
            raise
        finally:
            self.records.observer.close()

    def _limit(self) -> int | None:
        budget, weight = self.scenario.budget, self.records.yardstick.bytes
        if budget.kind == "images" and not weight:
            raise RunError("budget.kind: images, but no client has told what its images weigh: set another budget")
        # What clients claim alone must not lengthen a run.
        examples, private = sum(self.claims.believed(self.roster.examples).values()), self.scenario.federation.private
        return budget.limit(Basis(examples, self.model.geometry, private, weight or 0))

    def _goes_on(self, round: int) -> bool:
        """Decide whether another round starts after this one, by what it and those before it have sent."""
        if round >= self.scenario.federation.rounds or self._recalled(round):
            return False
        memory = self._memory(round + 1)
        return not self._spent() or (memory is not None and memory.store.samples > 0)  # a pass sends nothing

    def _memory(self, round: int) -> Memory | None:
        """Return what a round fills or goes over, if anything."""
        return self.calls.memory if self.scenario.remembers(round) else None

    def _spent(self) -> bool:
        limit = self._limit()
        return limit is not None and self.records.sent(self.scenario.budget.of) >= limit

    def _recalled(self, round: int) -> bool:
        """Tell whether the passes over memory that were asked for are done, with this round where it is one."""
        if self.scenario.memory is None or self.scenario.memory.passes is None:
            return False
        passes = sum(row.phase == RECALL for row, _ in self.records.history)
        return passes + (self._passing == round > self.records.finished) >= self.scenario.memory.passes

    def _prepare(self) -> None:
        """Learn who is there; a new run then writes the checkpoint that round 1 starts from."""
        self.grid.begin(0)
        if not self._needs_nobody():
            self.roster.gather(self.lent.enough or self.scenario.federation.clients)
        self.records.start_clock()
        if self.records.finished >= 0:
            self.records.drop_round()  # round 0 was counted by the attempt that wrote the checkpoint
            return
        self.records.ledger.commit()
        self.records.checkpoint(0)

    def _needs_nobody(self) -> bool:
        """Tell whether all clients of a deployment have sent what memory takes, so that rounds go on without them."""
        memory, known = self.calls.memory, self.roster.known()
        if memory is None or memory.settings.keep != "all" or not self.lent.waits:
            return False
        remembers = self.scenario.remembers(self.records.finished + 1) and not self.scenario.evaluation.held_out
        return remembers and len(known) == self.scenario.federation.clients and not memory.missing(known)

    def _asked(self, round: int) -> set[int]:
        """Return the clients who are there, or, where memory is filled, who of them has something left to send; nobody
        in a round that is a pass over it."""
        memory = self._memory(round)
        if memory is None:
            return self._there(round)
        if self._needs_nobody() or (memory.store.samples and self._spent()):
            return set()
        there = self.roster.online()
        memory.forget_all_but(self.attendance.present(round, there), round)
        asked = memory.asked({client: self.roster.examples[client] for client in there})
        if self.attendance.present(round, asked) or memory.store.samples:
            return asked
        return memory.asked({client: self.roster.examples[client] for client in self._there(round)})

    def _there(self, round: int) -> set[int]:
        if not (there := self.roster.online()):
            log.warning("round %d waits: no client is there", round)
            self.roster.gather(1)
            there = self.roster.online()
        return there

    def _drawn(self, round: int, there: set[int]) -> Cohort:
        """Sample the round's clients among those, in the order in which they train."""
        clients = self.attendance.sample(round, there)
        # Some may leave before they are messaged: their nodes are kept here.
        examples = {client: self.roster.examples[client] for client in clients}
        every = self.scenario.phase(round).upload_every
        return Cohort(examples, dict(self.roster.nodes), self.claims.weights(examples, every))

    def _round(self, round: int) -> None:
        self.grid.begin(round)
        asked = self._asked(round) - self._suspects.out
        memory = self._memory(round)
        if memory is not None and not self.attendance.present(round, asked) and memory.store.samples:
            self._recall(round, memory)
            return
        drawn = self._drawn(round, asked)
        clock, before_round = self.attendance.clock, self.records.simulated_seconds
        clock.forget()
        unfit = self.calls.align.run(round, drawn)
        aligned = clock.asked(round, "align", before_round, {})
        computed = self.calls.train.computed
        steps = {c: computed(round, c, number) for c, number in drawn.examples.items() if c not in unfit}
        begins = before_round + aligned
        self.calls.steering.choose(
            round, {client: drawn.examples[client] for client in steps},
            lambda client, images, terms: clock.foretold(round, steps[client], images, terms),
            lambda client, sent: self.attendance.alone(
                round, client, steps[client], drawn.examples[client], sent, begins
            ),
        )  # fmt: skip
        plan = self.attendance.plan(round, steps, drawn.examples, begins)
        cohort = drawn.only(plan.vanish)
        before = self.model.arrays(round)
        replies = self._train(round, cohort, before, plan) if cohort.examples else unfit
        taken = list(finished := trained(replies))
        seconds = aligned + self.attendance.lasted(round, plan, steps, drawn.examples, taken, begins)
        refused = absurd(round, replies) | (self.calls.train.refused if cohort.examples else {})
        failed = failures(replies)
        if self.lent.waits and refused and not taken:
            self._suspects.leave_out(refused)
            self._try_again(round, refused[min(refused)])
            return
        self._failed = {} if taken else self._failed | failed
        outcome = Outcome(len(drawn.examples), seconds, phase=self.scenario.phase(round).settings.kind)
        outcome.losses = {client: TrainMetrics.read(one.content).loss for client, one in finished.items()}
        if refused and not self.lent.waits and replies.keys() <= refused.keys():
            self._drop(round, refused[min(refused)], outcome)
            return
        sent = memory is not None and memory.store.growing
        if not taken and not sent and self._starts_again(round, failed):
            return
        self.calls.train.close(round, taken)
        if memory is not None:
            memory.close(drawn.examples)
        if taken:
            outcome.taken, outcome.seen = len(taken), sum(cohort.weights[client] for client in taken)
            outcome.adapted = self.calls.train.adapted(cohort, taken)
        try:
            if taken and memory is None:
                arrays, outcome.loss = self.calls.train.aggregate(round, cohort, replies, before, self.model.arrays)
                if arrays is not None:
                    self.model.load_part(
                        round, {name: torch.from_numpy(a.numpy()).float() for name, a in arrays.items()}
                    )
            self._examine(round, outcome)
        except (Diverged, StrategyError) as error:
            if self.lent.waits:
                standing = self.calls.train.standing(cohort, replies, before)
                self._suspects.blame(round, standing or dict.fromkeys(drawn.examples, 0.0))
                self._try_again(round, error)
            elif isinstance(error, StrategyError):
                raise
            else:
                self._drop(round, error, Outcome(len(drawn.examples), outcome.seconds, phase=outcome.phase))
            return
        if taken:
            self._dropped = None
        self._pause = 1.0
        self._suspects.found(round)
        self._close(round, outcome)

    def _try_again(self, round: int, error: Diverged | StrategyError) -> None:
        """Have a round of a deployment start again, with whose outcome no training goes on: without those who are
        suspected of that, and the strategy without what it keeps, which may be theirs too. Where nobody else is there,
        all have a part in it again, after a pause that grows, and it begins one checkpoint earlier, if there is one:
        what was taken before may be why. A strategy that raises then too is at fault itself: raises StrategyError."""
        alone = not self.roster.online() - self._suspects.out
        if alone and isinstance(error, StrategyError):
            raise error
        log.warning("round %d is dropped: %s", round, error.problem if isinstance(error, Diverged) else error)
        self.records.drop_round()
        if alone:
            self._suspects.acquit(round)
            self.records.step_back()
        start = self.records.rewind()
        self.calls.train.strategy.restart()
        if not alone:
            log.warning("round %d starts again without: %s", round, ", ".join(map(str, sorted(self._suspects.out))))
            return
        log.warning(
            "round %d came to nothing with all clients that are there: it starts again in %g s, with the model of "
            "round %d; if it is the training that diverges, end the run and lower the learning rates",
            round, self._pause, start,
        )  # fmt: skip
        self._wait()

    def _recall(self, round: int, memory: Memory) -> None:
        """Have a round that is a pass over memory: no client is asked, and none is waited for."""
        self._passing = round
        if not self._dismissed and self._needs_nobody():
            self.roster.goodbye(DONE)
            self._dismissed = True
        self.calls.progress.begin(memory.steps())
        outcome = Outcome(0, 0.0, phase=RECALL)
        try:
            found = memory.recall(round, self._lr(round)[1], lambda: self.calls.progress.step(round, -1))
            outcome.seen, outcome.loss = found.samples, found.loss
            outcome.seconds = self.attendance.clock.recalled(found.samples)
            self._examine(round, outcome)
        except Diverged as error:
            self._drop(round, error, Outcome(0, 0.0, phase=RECALL))
            return
        self._dropped = None
        self._close(round, outcome)

    def _train(self, round: int, cohort: Cohort, before: ArrayRecord, plan: RoundPlan) -> Replies:
        self.calls.progress.begin(self._steps(round, cohort))
        return self.calls.train.run(round, self._lr(round)[1], cohort, before, plan)

    def _steps(self, round: int, cohort: Cohort) -> int:
        """Return how often clients are heard of in a round, once at least."""
        if not (self.scenario.phase(round).local or self.scenario.remembers(round)):
            return self.model.steps(list(cohort.examples.values()))
        return max(1, sum(self.calls.train.planned(round, *one).steps for one in cohort.examples.items()))

    def _examine(self, round: int, outcome: Outcome) -> None:
        """Try what the round has made while it is still open, so that whoever interrupts here drops the whole round.
        Raises Diverged for what no training goes on with: of that there must be no checkpoint."""
        # Clients come first, as what they send may spend the budget.
        outcome.asked = self.scenario.evaluation.due(round, last=not self._goes_on(round))
        outcome.scores = self.calls.evaluate.run(round, self.model.arrays()) if outcome.asked else []
        now, held_out = self.records.simulated_seconds + outcome.seconds, self.roster.held_out
        outcome.seconds += self.attendance.clock.asked(round, "evaluate", now, held_out)
        refused = list(self.calls.evaluate.refused.values()) if outcome.asked else []
        validated = self._validates(round)
        if validated or refused:
            seen = self.model.validate()
            if not seen.loss <= MOST_NUMBER:  # then those whose loss was refused were right
                told = Diverged(f"round {round}", out_of_bounds("the loss on the validation images", seen.loss))
                raise refused[0] if refused else told
            if validated:
                outcome.validated = seen
        self.model.look(f"round {round}")
        most = most_weight(self._largest)
        check_number("the largest of the model's weights", self.model.largest(), f"round {round}", most)
        if unsound := sorted(self.records.unsound() - self._unsound):
            raise Diverged(f"round {round}", f"{unsound[0]} is NaN or infinite")

    def _validates(self, round: int) -> bool:
        return round % self.scenario.training.evaluate_every == 0 or not self._goes_on(round)

    def _drop(self, round: int, error: Diverged, outcome: Outcome) -> None:
        """Have the model as it was before a round with whose outcome no training goes on; the round counts, with nobody
        taken. Raises the Diverged of the first where two in a row are dropped, or the last round is and none before it
        was taken; but in a deployment, where it may be a client's doing, passes over memory go on to their end."""
        alone = not (self._goes_on(round) or any(row.examples for row, _ in self.records.history))
        if (self._dropped or alone) and not self.lent.waits:
            raise self._dropped or error
        log.warning("round %d is dropped, the model stays as it was before: %s", round, error)
        self._dropped = error
        self.records.rewind()
        if self.lent.waits and self.calls.memory is not None:
            self._suspects.forget(round, self.calls.memory)
        if self._validates(round):
            outcome.validated = self.model.validate()
        self._close(round, outcome)

    def _close(self, round: int, outcome: Outcome) -> None:
        """Write a round down."""
        standing = Standing.of(outcome.scores)
        simulated = self.records.simulated_seconds + outcome.seconds if self.attendance.timed else None
        train, clock, seen = self.calls.train, self.attendance.clock, outcome.validated
        paces = {client: pace for client, pace in train.paces.items() if pace}
        seconds, now = (train.took, self.records.seconds) if self.lent.waits else (clock.took, simulated or 0.0)
        chosen = self.calls.steering.close(round, outcome.losses, seconds, now, paces if self.lent.waits else {})
        client_lr, server_lr = self._lr(round)
        self.records.close_round(
            lambda finished: Metrics(
                round, outcome.loss, seen and seen.loss, seen and seen.accuracy,
                finished.cut.sent, finished.total.sent, self.records.seconds, finished.cut.raw, finished.total.raw,
                outcome.seen, outcome.taken, client_lr, server_lr, lost=outcome.drawn - outcome.taken,
                simulated_seconds=simulated, phase=outcome.phase,
                **((asdict(standing) if standing else {}) | outcome.adapted),
            ), outcome.scores, asked=outcome.asked, chosen=chosen, exits=seen.exits if seen else {},
        )  # fmt: skip

    def _lr(self, round: int) -> tuple[float, float]:
        """Return the learning rates of client and server in a round."""
        training, rounds = self.scenario.training, self.scenario.federation.rounds
        return training.client.lr(round, rounds), training.server.lr(round, rounds)

    def _starts_again(self, round: int, failed: Mapping[int, str]) -> bool:
        """Return whether a round that nobody finished is dropped, as it starts again where clients may come back, after
        a pause that grows, or where what they lacked is sent to them then. It counts where clients are known to vanish
        or may be late, and where others are there than those who failed; else, or if some failed, the run ends here
        where it waits for nobody. `failed` says why clients did that."""
        reasons = sorted(set(failed.values()))
        if not reasons and self.attendance.may_end_empty:
            log.warning("round %d: no client finished it; the front stays as it was", round)
            return False
        if reasons and self.lent.waits and self.roster.online() - self._failed.keys():
            log.warning("round %d: the front stays as it was: all who were drawn failed, others go on", round)
            return False
        if not self.lent.waits and (reasons or not self.calls.train.forgetful):
            raise RunError(f"round {round}: no client finished: {'; '.join(reasons) or 'all were lost'}")
        self.records.drop_round()
        if self.calls.train.forgetful and not reasons:
            log.warning("round %d: no client finished it; it starts again", round)
            return True
        log.warning("round %d: no client finished it; it starts again in %g s", round, self._pause)
        self._wait()
        return True

    def _wait(self) -> None:
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _finish(self) -> None:
        """Read the test split, once, and write the summary."""
        if self.lent.waits:
            self.roster.goodbye()
            self.records.ledger.commit()  # to the last round
            self.records.ledger.forget_open()
        self.model.keep_exits(self.records.folder, self.records.finished)
        test = self.model.test()
        self.records.finish(test.loss, test.accuracy, self.calls.steering.came_to())
        if self.calls.memory is not None:
            self.calls.memory.store.delete()
