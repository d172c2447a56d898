"""Parallel split learning at the server: one update of one back from the mini-batches of several clients together."""

import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Condition

from splitfed.engines.compute_lock import aside
from splitfed.errors import Late
from splitfed.seeds import Key
from splitfed.server.back.passes import Passes, Trained
from splitfed.server.back.pools import Trainer
from splitfed.server.back.steps import Steps
from splitfed.split.cut import Arrived


class _Waiting:
    """A mini-batch that waits for its joint step, and then what came of it."""

    def __init__(self, batch: Arrived, key: Key) -> None:
        self.batch, self.key = batch, key
        self.outcome: Trained | BaseException | None = None


class JointSteps(Steps):
    """A joint step gathers one mini-batch of each client that is expected, and trains the back on all of them at once.
    A client gets the gradient of its own mean loss, not of the joint one: else averaging the fronts would shrink their
    learning rate. Parallel split learning is due to Jeon and Kim, "Privacy-Sensitive Parallel Split Learning", ICOIN
    2020.

    `patience` is how many seconds a step waits for the rest, once it has its first mini-batch and the step before it is
    done (None: for ever); then it goes on without them. Who was missed is waited for again when it has come back with
    a mini-batch, which the next step takes, whatever its number. Batches are joined in order of client, so who came
    first makes no difference.
    """

    def __init__(self, passes: Passes, patience: float | None) -> None:
        super().__init__(passes)
        self._patience = patience
        self._expected: set[int] = set()
        self._missed: set[int] = set()
        self._gathered: dict[int, _Waiting] = {}
        self._since = 0.0
        self._training = False
        self._changed = Condition()
        # One for all steps: allocators keep the memory of a step for each thread that has trained one.
        self._thread = ThreadPoolExecutor(1, "joint-step")

    def begin(self, clients: Collection[int], turns: Sequence[int] = ()) -> None:
        """Expect these clients, also those that have yet to open their streams; a step is of all of them, in no
        turns."""
        with self._changed:
            self._expected, self._missed = set(clients), set()

    def leave(self, client: int) -> None:
        """Wait for a client no longer; whoever waits in its name gets a Late."""
        with self._changed:
            self._expected.discard(client)
            if waiting := self._gathered.pop(client, None):
                waiting.outcome = _gone(client)
            self._changed.notify_all()

    def hung_up(self, client: int) -> None:
        """Leave its coming back to patience; where that has no end, wait for it no longer until it does."""
        with self._changed:
            if self._patience is None:
                self._missed.add(client)
                self._changed.notify_all()

    def step(self, trainer: Trainer, batch: Arrived, key: Key) -> Trained:
        """Wait for the others, and train the joint step with them."""
        mine, client = _Waiting(batch, key), batch.frame.client
        with self._changed:
            if client not in self._expected:
                raise _gone(client)
            self._gathered[client] = mine
            self._missed.discard(client)
            if len(self._gathered) == 1:
                self._since = time.monotonic()
        while mine.outcome is None:
            if together := self._take():
                self._train(trainer, together)
            else:
                with aside():
                    self._wait(mine)
        if isinstance(mine.outcome, BaseException):
            raise mine.outcome
        return mine.outcome

    def _due(self) -> bool:
        """Tell whether a step is to begin; the caller has the lock."""
        if self._training or not self._gathered:
            return False
        return self._expected - self._missed <= self._gathered.keys() or self._left() == 0

    def _left(self) -> float | None:
        """Return how many seconds of patience are left; None where nothing but a change ends the waiting."""
        if self._patience is None or self._training:
            return None
        return max(0.0, self._since + self._patience - time.monotonic())

    def _wait(self, mine: _Waiting) -> None:
        with self._changed:
            while mine.outcome is None and not self._due():
                self._changed.wait(self._left())

    def _take(self) -> dict[int, _Waiting]:
        """Return what was gathered, in order of client, if a step is to begin; else nothing."""
        with self._changed:
            if not self._due():
                return {}
            together, self._gathered, self._training = dict(sorted(self._gathered.items())), {}, True
            self._missed = self._expected - together.keys()
            return together

    def _train(self, trainer: Trainer, together: dict[int, _Waiting]) -> None:
        """Train a step and leave each of its clients its outcome, or the error that ended it."""
        outcomes: Sequence[Trained | BaseException]
        try:
            batches, first = [waiting.batch for waiting in together.values()], min(together)
            step = self._thread.submit(self._passes.train, trainer, batches, together[first].key)
            try:
                outcomes = step.result()
            finally:
                wait([step])  # Ctrl-C may have come here, and what it ends must not go on
        except BaseException as error:
            outcomes = [error] * len(together)
        with self._changed:
            for waiting, outcome in zip(together.values(), outcomes, strict=True):
                waiting.outcome = outcome
            self._training, self._since = False, time.monotonic()
            self._changed.notify_all()


def _gone(client: int) -> Late:
    return Late(f"the round has gone on without client {client}")
