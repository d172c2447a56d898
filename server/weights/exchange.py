"""How weights cross with a round: as they are (`WholeWeights`), or as differences to what clients know already, or with
what is never trained beside them (the other files of this folder)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from splitfed.run.ledger import Sizes
from splitfed.seeds import Key
from splitfed.server.weights.guard import Given, Guard
from splitfed.split.weights.initial import HeldByPhase, Initial
from splitfed.split.weights.wire import WeightWire
from splitfed.wire.messages import Weights

if TYPE_CHECKING:
    from splitfed.scenario.compression import Compression
    from splitfed.scenario.sections import Terms

# Tells what makes a client's bytes fewer, and under which terms; None where it has none of its own.
Packs = Callable[[int], "tuple[Terms, Compression] | None"]


def all_alike(client: int) -> None:
    """Say that a client has nothing of its own."""


# What goes to a client, and what it adds to the ledger by role.
Coded = tuple[Weights, dict[str, Sizes]]


class WeightExchange(Protocol):
    """How weights cross, as frames and with what these add to the ledger. Its state is the run's."""

    def open(self, round: int, clients: list[int]) -> None:
        """Begin a round with these clients; it may have been begun before."""

    def down(self, arrays: ArrayRecord, client: int, round: int, key: Key) -> Coded:
        """Return what a client is sent: the frame of these weights, and what else it needs."""

    def up(self, buffer: bytes, client: int) -> tuple[dict[str, Tensor], dict[str, Sizes]]:
        """Read a client's frame and return its weights. Raises WireError, and Diverged for absurd ones."""

    def forget(self, client: int) -> bool:
        """Hear that a client has not what it was thought to know. Return whether that can be."""

    def close(self, clients: list[int]) -> None:
        """End a round in which these clients were trained."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round needs; nothing where that is nothing."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned."""


class WholeWeights(WeightExchange):
    """Weights that cross as they are, whoever knows what; `up` is the way up's wire where that is another. What is
    handed out in the same round for another `purpose` is rounded anew. `guard` judges what comes back. What clients
    load themselves, the `initial` weights, is not sent as long as they are these. `held` has the wire and these of each
    round, where they change. `packs` tells who is sent them packed otherwise."""

    def __init__(
        self, wire: WeightWire, up: WeightWire | None = None, purpose: str = "", guard: Guard | None = None,
        initial: Initial | None = None, held: HeldByPhase | None = None, packs: Packs = all_alike,
    ) -> None:  # fmt: skip
        self._packs = packs
        self._down, self._up, self._purpose, self._guard = wire, up or wire, purpose, guard or Guard()
        self._initial, self._held = initial, held
        self._coded: dict[Terms | None, tuple[ArrayRecord, int, Coded, Given]] = {}
        self._given: dict[int, Given] = {}

    def open(self, round: int, clients: list[int]) -> None:
        """Begin a round."""
        self._given = {}
        if self._held is not None:
            now = self._held.at(round)
            self._down, self._up, self._initial = now.wire, now.wire, now.initial

    def down(self, arrays: ArrayRecord, client: int, round: int, key: Key) -> Coded:
        """Return the frame of these weights, the same for all clients whose terms are the same."""
        terms, compression = self._packs(client) or (None, None)
        known = self._coded.get(terms)
        # A strategy hands the same weights to all clients of a round, so the last ones are most often the next.
        if known is None or known[0] is not arrays or known[1] != round:
            weights = plain(arrays)
            mine = {name: weights[name] for name in self._down.shapes}  # of a front of fewer blocks these are not all
            known = arrays, round, *self._made(mine, compression, round, key)
            self._coded[terms] = known
        _, _, coded, self._given[client] = known
        return coded

    def _made(
        self, weights: dict[str, Tensor], compression: "Compression | None", round: int, key: Key
    ) -> tuple[Coded, Given]:
        if self._initial is not None and self._initial.same(weights):
            return (Weights(b"", loaded=self._initial.sha256), {}), self._guard.given(weights)
        wire = self._down if compression is None else self._down.under(compression)
        packed = wire.pack(weights, key.at(self._purpose) if self._purpose else key, round, -1)
        # An update begins at what the client made of the frame.
        came = weights if self._guard.clip is None else wire.unpack(packed.buffer)[0]
        return (Weights(packed.buffer), wire.sizes(packed)), self._guard.given(came)

    def up(self, buffer: bytes, client: int) -> tuple[dict[str, Tensor], dict[str, Sizes]]:
        """Read a client's frame and return its weights. Raises WireError, and Diverged for absurd ones."""
        weights, frame = self._up.unpack(buffer)
        weights = self._guard.taken(weights, self._given.get(client), where(frame.round, client))
        return weights, self._up.sizes(frame)

    def forget(self, client: int) -> bool:
        """Return False: nothing is asked of a client."""
        return False

    def close(self, clients: list[int]) -> None:
        """End a round."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""


def plain(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Return a record's arrays as tensors, by copy."""
    return {name: torch.tensor(array.numpy()) for name, array in arrays.items()}


def where(round: int, client: int) -> str:
    """Say whose weights of which round are meant."""
    return f"round {round}, client {client}"
