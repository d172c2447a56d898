"""Fronts of different depth: each client is sent the blocks that its own has, and the strategy is shown those of the
deepest front of every client."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from torch import Tensor

from splitfed.run.ledger import Sizes
from splitfed.seeds import Key
from splitfed.server.weights.exchange import Coded, WeightExchange
from splitfed.wire.messages import ARRAYS


class ByFront(WeightExchange):
    """Lets weights cross as the exchange of each client's front has it: `exchanges` by the blocks of a front, of which
    `fronts` tells how many a client's has. None of them has a state."""

    def __init__(self, exchanges: Mapping[int, WeightExchange], fronts: Callable[[int], int]) -> None:
        self._exchanges, self._fronts = dict(exchanges), fronts

    def _of(self, client: int) -> WeightExchange:
        return self._exchanges[self._fronts(client)]

    def open(self, round: int, clients: list[int]) -> None:
        """Begin a round with these clients."""
        for exchange in self._exchanges.values():
            exchange.open(round, clients)

    def down(self, arrays: ArrayRecord, client: int, round: int, key: Key) -> Coded:
        """Return the frame of those of these weights that a client's front has."""
        return self._of(client).down(arrays, client, round, key)

    def up(self, buffer: bytes, client: int) -> tuple[dict[str, Tensor], dict[str, Sizes]]:
        """Read a client's frame and return its weights. Raises WireError, and Diverged for absurd ones."""
        return self._of(client).up(buffer, client)

    def forget(self, client: int) -> bool:
        """Hear that a client has not what it was thought to know. Return whether that can be."""
        return self._of(client).forget(client)

    def close(self, clients: list[int]) -> None:
        """End a round in which these clients were trained."""
        for exchange in self._exchanges.values():
            exchange.close(clients)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""


def filled(reply: Message, server: ArrayRecord) -> Message:
    """Return a trained client's reply with all the arrays that the `server` has of the deepest front, in its order:
    what the client's own front lacks is the server's, which has trained on what that front made. So the mean of all
    replies, by images, is that of all places in which a block was trained."""
    own = reply.content.array_records[ARRAYS]
    if len(own) == len(server):
        return reply
    whole = {name: own.get(name) or Array(one.numpy().astype(np.float64)) for name, one in server.items()}
    content = RecordDict({**reply.content, ARRAYS: ArrayRecord(whole)})
    return Message(content, metadata=reply.metadata)  # type: ignore[call-overload]
