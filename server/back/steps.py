"""How mini-batches become updates of a back: here each by itself, in `joint_steps` several clients' together."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Sequence
from threading import Condition

from splitfed.engines.compute_lock import aside
from splitfed.errors import Diverged
from splitfed.seeds import Key
from splitfed.server.back.passes import Passes, Trained
from splitfed.server.back.pools import Trainer
from splitfed.split.cut import Arrived


class Steps(ABC):
    """Has backs trained on the mini-batches of clients, which come with their labels; safe to call from threads."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes

    @abstractmethod
    def step(self, trainer: Trainer, batch: Arrived, key: Key) -> Trained:
        """Train a mini-batch and return the gradient of its mean loss with respect to what was sent, if that is asked
        for, and that loss.

        Raises WireError where the round goes on without its client, and Diverged, having learned nothing, for a loss or
        a gradient that is not finite, or absurd.
        """

    @abstractmethod
    def begin(self, clients: Collection[int], turns: Sequence[int] = ()) -> None:
        """Expect the mini-batches of these clients from now on, and of no others; in what order, the `turns` say, where
        there are any."""

    @abstractmethod
    def leave(self, client: int) -> None:
        """Expect nothing more of a client: it has finished, or the round goes on without it. Harmless when called
        again."""

    @abstractmethod
    def hung_up(self, client: int) -> None:
        """Hear that a client has no stream any more, though it has not finished; it may come back."""


class SeparateSteps(Steps):
    """Every mini-batch is a step of its own, in the order of their turns, or as they come where there is none, or none
    any more of its client."""

    def __init__(self, passes: Passes) -> None:
        super().__init__(passes)
        self._turns = deque[int]()
        self._changed = Condition()

    def step(self, trainer: Trainer, batch: Arrived, key: Key) -> Trained:
        """Train the back on this mini-batch, when it is its turn."""
        client = batch.frame.client
        if self._turns:
            with aside(), self._changed:
                self._changed.wait_for(lambda: client not in self._turns or self._turns[0] == client)
        try:
            (outcome,) = self._passes.train(trainer, [batch], key)
        finally:
            with self._changed:
                if self._turns and self._turns[0] == client:
                    self._turns.popleft()
                self._changed.notify_all()
        if isinstance(outcome, Diverged):
            raise outcome
        return outcome

    def begin(self, clients: Collection[int], turns: Sequence[int] = ()) -> None:
        """Have mini-batches trained in this order, as far as it is of these clients."""
        with self._changed:
            self._turns = deque(one for one in turns if one in clients) if turns else deque()

    def leave(self, client: int) -> None:
        """Its turns are over."""
        with self._changed:
            if client in self._turns:
                self._turns = deque(one for one in self._turns if one != client)
                self._changed.notify_all()

    def hung_up(self, client: int) -> None:
        """Its turns are over; what it brings when it comes back is trained at once."""
        self.leave(client)
