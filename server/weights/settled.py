"""Weights of a phase in which clients learn nothing: they cross once more to each client, which keeps them."""

from typing import Any

from flwr.app import ArrayRecord
from torch import Tensor

from splitfed.errors import WireError
from splitfed.run.ledger import Sizes
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.server.weights.exchange import Coded, WeightExchange
from splitfed.wire.messages import Weights


class Settled(WeightExchange):
    """Lets another exchange carry weights while they change, and in a frozen phase to those who have them not yet.

    `has` is who keeps the weights of the phase that began in round `since`; what evaluates shares it."""

    def __init__(self, inner: WeightExchange, scenario: Scenario) -> None:
        self._inner, self._scenario = inner, scenario
        self.has, self._since = set[int](), 0
        self._frozen = False
        self._relied = set[int]()  # who was sent a message without weights

    def open(self, round: int, clients: list[int]) -> None:
        """Begin a round with these clients."""
        phase = self._scenario.phase(round)
        self._frozen = phase.frozen
        if self._frozen and self._since != phase.first:
            self._since = phase.first
            self.has.clear()
        self._relied = self.has & set(clients) if self._frozen else set()
        self._inner.open(round, [client for client in clients if client not in self._relied])

    def keeps(self, client: int, round: int) -> bool:
        """Tell whether a client has what is needed in a round."""
        phase = self._scenario.phase(round)
        return phase.frozen and self._since == phase.first and client in self.has

    def down(self, arrays: ArrayRecord, client: int, round: int, key: Key) -> Coded:
        """Return a client's frame, or nothing where it has these weights."""
        return (Weights(b""), {}) if client in self._relied else self._inner.down(arrays, client, round, key)

    def up(self, buffer: bytes, client: int) -> tuple[dict[str, Tensor], dict[str, Sizes]]:
        """Read a client's frame and return its weights. Raises WireError, also where none can have changed, and
        Diverged for absurd ones."""
        if self._frozen:
            raise WireError("it has weights in a phase in which none change")
        return self._inner.up(buffer, client)

    def forget(self, client: int) -> bool:
        """Hear that a client has not what it was thought to know: it is sent all. Return whether that can be."""
        self.has.discard(client)
        return self._inner.forget(client) | (client in self._relied)

    def close(self, clients: list[int]) -> None:
        """End a round in which these clients were trained: in a frozen phase they have the weights now."""
        self._inner.close([client for client in clients if client not in self._relied])
        if self._frozen:
            self.has |= set(clients)

    def state_dict(self) -> dict[str, Any]:
        """Return who has the weights of which phase, and what the exchange of the others needs."""
        return {"since": self._since, "has": sorted(self.has), "each_round": self._inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned."""
        self._since = state["since"]
        self.has.clear()
        self.has.update(state["has"])
        if state["each_round"]:
            self._inner.load_state_dict(state["each_round"])


class Kept(WeightExchange):
    """Weights to be evaluated: nothing for a client that keeps them, by what `settled` knows."""

    def __init__(self, inner: WeightExchange, settled: Settled) -> None:
        self._inner, self._settled = inner, settled
        self._relied = set[int]()

    def open(self, round: int, clients: list[int]) -> None:
        """Begin a round with these clients."""
        self._inner.open(round, clients)

    def down(self, arrays: ArrayRecord, client: int, round: int, key: Key) -> Coded:
        """Return a client's frame, or nothing where it has these weights."""
        if self._settled.keeps(client, round):
            self._relied.add(client)
            return Weights(b""), {}
        self._relied.discard(client)
        return self._inner.down(arrays, client, round, key)

    def up(self, buffer: bytes, client: int) -> tuple[dict[str, Tensor], dict[str, Sizes]]:
        """Read a client's frame. Raises WireError: to an evaluation nobody answers with weights."""
        return self._inner.up(buffer, client)

    def forget(self, client: int) -> bool:
        """Hear that a client has not what it was thought to know: it is sent all. Return whether that can be."""
        self._settled.has.discard(client)
        return self._inner.forget(client) | (client in self._relied)

    def close(self, clients: list[int]) -> None:
        """End a round of these clients."""
        self._inner.close(clients)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it is the other's state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""
