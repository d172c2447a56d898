"""How mini-batches reach the back: each by itself, or those of several clients together (`server/joint.py`)."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from threading import Lock
from typing import TYPE_CHECKING

from torch import Tensor, nn

from splitfed.model.forward import keyed_rng
from splitfed.seeds import Key
from splitfed.split.cut import Arrived

if TYPE_CHECKING:
    from splitfed.compression.reducers.base import Reducer
    from splitfed.server.back.pools import Trainer


class Turns:
    """A context manager that lets `at_once` threads in, in the order in which they came.

    A plain lock would let a thread that leaves and returns pass those who wait.
    """

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: deque[Lock] = deque()
        self._lock = Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:  # then nobody waits
                self._free -= 1
                return
            gate = Lock()
            gate.acquire()
            self._waiting.append(gate)
        gate.acquire()  # until one who leaves opens it

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


class Training(ABC):
    """Trains backs on what clients send; safe to call from threads.

    `draws` says that the back draws random numbers, which each step keys by its own place.
    """

    def __init__(self, reducer: "Reducer", autocast: Callable[[], AbstractContextManager], draws: bool) -> None:
        self.reducer, self.autocast, self.draws = reducer, autocast, draws

    @abstractmethod
    def step(self, trainer: "Trainer", batch: Arrived, key: Key) -> tuple[Tensor, float]:
        """Train a mini-batch and return the gradient of its mean loss with respect to what was sent, and that loss.

        Raises WireError where the round goes on without its client.
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

    def _restored(self, trainer: "Trainer", batch: Arrived) -> Tensor:
        """Turn what a client sent into the input of the back, differentiably."""
        return self.reducer.restore(
            batch.smashed.requires_grad_(), batch.side, batch.frame.meta, trainer.back.get_submodule("decoder")
        )


class Alone(Training):
    """Every mini-batch is a step of its own; at most `turns` of them train at the same time."""

    def __init__(
        self, reducer: "Reducer", autocast: Callable[[], AbstractContextManager], draws: bool, turns: Turns
    ) -> None:
        super().__init__(reducer, autocast, draws)
        self.turns = turns

    def step(self, trainer: "Trainer", batch: Arrived, key: Key) -> tuple[Tensor, float]:
        """Train the back on this mini-batch, when its turn has come."""
        with self.turns:
            with keyed_rng(key.at("dropout"), batch.smashed.device, self.draws), self.autocast():
                restored = self._restored(trainer, batch)
                loss = nn.functional.cross_entropy(trainer.back(restored), batch.targets)
            loss.backward()
            trainer.update()
        assert batch.smashed.grad is not None
        return batch.smashed.grad, float(loss.detach())

    def forward(self, trainer: "Trainer", batch: Arrived, key: Key) -> Tensor:
        """Run the back on a mini-batch whose loss is the client's to tell, and return what it makes of it."""
        with self.turns, keyed_rng(key.at("dropout"), batch.smashed.device, self.draws), self.autocast():
            return trainer.back(self._restored(trainer, batch))

    def backward(self, trainer: "Trainer", batch: Arrived, features: Tensor, gradient: Tensor) -> Tensor:
        """Train the back on the gradient of what `forward` returned; return that of what was sent."""
        with self.turns:
            features.backward(gradient.to(features.dtype))
            trainer.update()
        assert batch.smashed.grad is not None
        return batch.smashed.grad

    def begin(self, clients: Collection[int]) -> None:
        """Nothing to expect: nobody waits for another."""

    def leave(self, client: int) -> None:
        """Nobody waits for it."""

    def hung_up(self, client: int) -> None:
        """Nobody waits for it."""
