"""How mini-batches become updates of a back: here each by itself, in `joint_steps` several clients' together."""

from abc import ABC, abstractmethod
from collections.abc import Collection

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
    def begin(self, clients: Collection[int]) -> None:
        """Expect the mini-batches of these clients from now on, and of no others."""

    @abstractmethod
    def leave(self, client: int) -> None:
        """Expect nothing more of a client: it has finished, or the round goes on without it. Harmless when called
        again."""

    @abstractmethod
    def hung_up(self, client: int) -> None:
        """Hear that a client has no stream any more, though it has not finished; it may come back."""


class SeparateSteps(Steps):
    """Every mini-batch is a step of its own, when its turn has come."""

    def step(self, trainer: Trainer, batch: Arrived, key: Key) -> Trained:
        """Train the back on this mini-batch."""
        (outcome,) = self._passes.train(trainer, [batch], key)
        if isinstance(outcome, Diverged):
            raise outcome
        return outcome

    def begin(self, clients: Collection[int]) -> None:
        """Nothing to expect: nobody waits for another."""

    def leave(self, client: int) -> None:
        """Nobody waits for it."""

    def hung_up(self, client: int) -> None:
        """Nobody waits for it."""
