"""The split server: whose round is open, who trains in it or evaluates after it, and what becomes of what they
trained."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from types import MappingProxyType
from typing import Any

from splitfed.errors import Refused, WireError
from splitfed.model.adaptive.alast import Numbers
from splitfed.model.forward import draws
from splitfed.run.ledger import Ledger
from splitfed.scenario.sections import Clip
from splitfed.seeds import Key
from splitfed.server.back.caches import Caches
from splitfed.server.back.evaluation_session import EvaluationRound
from splitfed.server.back.joint_steps import JointSteps
from splitfed.server.back.passes import Alter, Outcome, Passes
from splitfed.server.back.pools import BackPool
from splitfed.server.back.private_session import PrivateSession
from splitfed.server.back.round_context import OnStep, Own, RoundContext, nobody_hears
from splitfed.server.back.session import ClientSession, SplitSession, away
from splitfed.server.back.steps import SeparateSteps, Steps
from splitfed.server.memory.session import StoringSession
from splitfed.server.memory.store import Store
from splitfed.split.computing.adaptive import PassOperations
from splitfed.split.computing.operations import pass_operations
from splitfed.split.cut import Arrived, Cut
from splitfed.split.evaluation import EvaluationCut


class SplitServer:
    """Opens a session for each client of the round, and keeps it while its streams come and go; safe to call from
    threads.

    `on_step(round, client)` is called after every mini-batch, by one thread at a time. At most `at_once` mini-batches
    train at the same time, and one where they must not (see `Passes`). A pool that trains clients `together` joins
    their mini-batches, which wait for each other with `patience` (see `JointSteps`). `clock` tells seconds.
    `evaluation_cut` is what the evaluations of clients cross, where they make any. `clip` says how long may be what
    clients send. By how many mini-batches a client is `ahead` of an answer, so many more frames it may send again.
    `numbers` tell which mini-batches a front learns nothing from.
    """

    def __init__(
        self, pool: BackPool, cut: Cut, ledger: Ledger, key: Key, precision: str, on_step: OnStep = nobody_hears,
        at_once: int = 1, clock: Callable[[], float] = time.monotonic, patience: float | None = None,
        evaluation_cut: EvaluationCut | None = None, clip: Clip | None = None, ahead: int = 0, most_bytes: int = 0,
        numbers: Numbers | None = None,
    ) -> None:  # fmt: skip
        assert not (pool.together and cut.private)  # a joint step has no halves: the scenario is refused
        self.most_bytes = max(cut.most_bytes, most_bytes, evaluation_cut.most_bytes if evaluation_cut else 0)
        self._pool, self._cut, self._evaluation_cut = pool, cut, evaluation_cut
        self.caches = Caches(cut)
        self._ledger, self._key, self._clock, self._on_step, self._ahead = ledger, key, clock, on_step, ahead
        self._numbers = numbers
        self._counting: PassOperations | None = None
        drawing = draws(pool.trainer.back)
        self._passes = Passes(cut, precision, shared=pool.one_at_a_time, draws=drawing, at_once=at_once, clip=clip)
        self._steps: Steps = JointSteps(self._passes, patience) if pool.together else SeparateSteps(self._passes)
        self._reporting = Lock()
        self._round: RoundContext | None = None
        self._evaluation: EvaluationRound | None = None
        self._examples: dict[int, int] = {}
        self._most: dict[int, int] = {}
        self._sessions: dict[int, SplitSession] = {}
        self.sent: dict[str, dict[int, float]] = {}  # by role, the largest magnitude of each client's
        self._store: Store | None = None
        self._own: dict[int, Own] = {}
        self._lock = Lock()

    def _context(self, round: int, key: Key, answer_every: int = 1, cut: Cut | None = None) -> RoundContext:
        return RoundContext(
            round, cut or self._cut, self._ledger, key, self._clock, self._steps, self._passes, self._on_step,
            self._reporting, answer_every, self._ahead, self._numbers,
        )  # fmt: skip

    def start_round(
        self, round: int, lr: float, examples: dict[int, int], most: Mapping[int, int] | None = None,
        answer_every: int = 1, store: Store | None = None, own: Mapping[int, Own] | None = None,
    ) -> None:  # fmt: skip
        """Accept the streams of these clients, who weigh so many examples, for this round only, and of each at `most`
        so many mini-batches, of which one in `answer_every` is answered with its gradient (0: none) and the others with
        their loss alone. With a `store` they are kept there, and nothing is learned yet; of samples that came before
        the front settled no copies are needed any more. Who has something of its `own` goes by that."""
        with self._lock:
            self._store, self._own = store, dict(own or {})
            if store is not None:
                store.open(round)
                self.caches.clear()
            self._most = dict(most or {})
            self._pool.open_round(lr, sorted(examples))
            self._passes.open(round)
            self._round = self._context(round, self._key.at(round), answer_every, store.cut if store else None)
            self._examples, self._sessions, self.sent = dict(examples), {}, {}
            self._steps.begin(examples)

    def start_wave(self, clients: Collection[int], turns: Sequence[int] = ()) -> None:
        """Expect mini-batches of these clients of the round alone, until the next wave: they train at once, and where
        there are `turns` their mini-batches are trained in that order."""
        self._steps.begin(set(clients), turns)

    def open(self, client: int, round: int) -> ClientSession:
        """Begin a client's round, or its evaluation, or go on with it. Raises WireError for a client that has no part
        in it, or not any more."""
        if (evaluation := self._evaluation) is not None:
            return evaluation.open(client, round)
        with self._lock:
            context = self._round
            if context is None or round != context.round or client not in self._examples:
                raise WireError(f"client {client} has no part in round {round}, or not any more")
            if client not in self._sessions:
                self._sessions[client] = self._session(context, client)
            session = self._sessions[client]
            session.attach()
            return session

    def _session(self, context: RoundContext, client: int) -> SplitSession:
        trainer, most = self._pool.open(client), self._most.get(client)
        if (own := self._own.get(client)) is not None:
            context = replace(context, cut=own.cut, answer_every=own.answer_every)
        if self._store is not None:
            return StoringSession(context, client, trainer, most, self._store)
        kind = PrivateSession if self._cut.private else SplitSession
        return kind(context, client, trainer, most, self.caches.open(client))

    def begun(self) -> set[int]:
        """Return the clients who have opened a stream, and are not settled."""
        with self._lock:
            return set(self._sessions)

    def lost(self, grace: float) -> set[int]:
        """Return the clients who began, did not finish, and have had no stream for more than `grace` seconds."""
        with self._lock:
            return away(self._sessions, grace)

    def crossed(self, client: int) -> tuple[int, int] | None:
        """Return how many mini-batches and images a client has sent in this round; None for one that never came."""
        with self._lock:
            session = self._sessions.get(client)
            return (session.batches, session.images) if session else None

    def loss(self, client: int) -> float | None:
        """Return the mean loss of what a client has sent in this round; None where it alone knows it, or never came."""
        with self._lock:
            session = self._sessions.get(client)
        return session.loss if session else None

    def adapted(self) -> dict[str, Any]:
        """Return what `metrics.csv` tells of the round's mini-batches, where blocks of the back have budgets."""
        tally, geometry = self._passes.tally, self._cut.geometry
        if self._counting is None:
            self._counting = pass_operations(self._pool.trainer.back, geometry, 0)  # type: ignore[arg-type]
        return {
            "cut_tokens": tally.tokens, "unanswered": tally.unanswered,
            "server_operations": tally.operations(self._counting),
        }  # fmt: skip

    def ended(self, client: int) -> bool:
        """Tell whether a client's stream of this round has come to its end."""
        with self._lock:
            session = self._sessions.get(client)
        return session is not None and session.finished

    def settle(self, client: int, taken: bool) -> bool:
        """End a client's round: hand what it trained to the pool if its reply was `taken` and its stream was finished,
        and drop it otherwise. Return whether it was handed over.

        Waits for a mini-batch in progress; nothing is taken from the client afterwards. Harmless when called again, and
        for a client that never came.
        """
        with self._lock:
            examples, session = self._examples.pop(client, None), self._sessions.pop(client, None)
        if examples is None:
            return False
        self._steps.leave(client)  # it may wait for others: `shut` would wait with it
        if session:
            session.shut()
            for role, most in session.most.items():
                self.sent.setdefault(role, {})[client] = most
            if self._store is not None and session.refused:
                self._store.drop(client)  # who sends what no training goes on with, of that nothing is kept
        with self._lock:
            if session and taken and session.finished:
                self._pool.commit(client, session.trainer, examples)
                self.caches.commit(client, session.copies)
                return True
            self._pool.drop(client, session.trainer if session else None)
            return False

    def forget(self, client: int) -> None:
        """Hear that a client has lost what it kept: what is kept of its samples here is forgotten too."""
        self.caches.forget(client)

    def refusal(self, client: int) -> Refused | WireError | None:
        """Return why a client of the round that is not yet settled was refused, for its numbers or for what its stream
        brought; None where it was not."""
        with self._lock:
            session = self._sessions.get(client)
        return session.refused if session else None

    def end_round(self) -> None:
        """Settle who is left as not taken, and then the round, in the pool."""
        for client in sorted(self._examples):
            self.settle(client, taken=False)
        with self._lock:
            self._pool.close_round()

    def learn(
        self, round: int, lr: float, batches: Iterable[Arrived], alter: Alter | None = None
    ) -> Iterator[tuple[Arrived, Outcome]]:  # fmt: skip
        """Train the back that all rounds have made on mini-batches that no client waits for, each by itself, and yield
        what came of it."""
        with self._lock:
            self._pool.open_round(lr, ())
            self._passes.open(round)
        key = self._key.at("alone", round)
        for number, batch in enumerate(batches, 1):
            (outcome,) = self._passes.train(self._pool.trainer, [batch], key.at(number), alter)
            yield batch, outcome

    @contextmanager
    def evaluation(
        self, round: int, images: Mapping[int, int], cuts: Mapping[int, Cut] = MappingProxyType({})
    ) -> Iterator[EvaluationRound]:
        """Accept streams of these clients, who hold out so many images each, for the evaluation after a round, and no
        others while the `with` block lasts. Some have `cuts` of their own."""
        common = self._evaluation_cut
        assert common is not None
        own = {client: common.across(cut) for client, cut in cuts.items()}
        context = self._context(round, self._key.at("evaluation", round))
        self._evaluation = EvaluationRound(context, common, self._pool.trainer, images, own)
        try:
            yield self._evaluation
        finally:
            self._evaluation.close()
            self._evaluation = None
