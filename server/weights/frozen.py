"""What is frozen of the clients' part of the model crosses once for each client, beside the weights of its round."""

import json

from flwr.app import ArrayRecord

from splitfed.errors import RunError
from splitfed.run.ledger import Sizes
from splitfed.run.tree import Flat
from splitfed.scenario.compression import Compression
from splitfed.seeds import Key
from splitfed.server.weights.differences import Differences
from splitfed.server.weights.grid import Coded, Crossing, Whole
from splitfed.split.client_part import ClientPart
from splitfed.split.weight_differences import Weights
from splitfed.split.weights import WeightWire
from splitfed.wire.messages import ONCE


class Once(Crossing):
    """Adds `frozen` weights to what another crossing sends a client, until the client has them.

    All get the same frame, which is drawn from `key` alone. `has`, who has them already, is shared by all that send
    them."""

    def __init__(self, inner: Crossing, wire: WeightWire, frozen: Weights, key: Key, has: set[int]) -> None:
        self._inner, self._wire, self._frozen, self._key, self._has = inner, wire, frozen, key, has
        self._relied = set[int]()  # who was sent a message without them
        self._coded: tuple[int, bytes, dict[str, Sizes]] | None = None

    def open(self, round: int, clients: list[int]) -> None:
        """Begin a round with these clients."""
        self._inner.open(round, clients)

    def down(self, arrays: ArrayRecord, client: int, round: int, key: Key) -> Coded:
        """Return a client's frames, and what both add to the ledger."""
        frames, sizes = self._inner.down(arrays, client, round, key)
        if client in self._has:
            self._relied.add(client)
            return frames, sizes
        self._relied.discard(client)
        if self._coded is None or self._coded[0] != round:
            packed = self._wire.pack(self._frozen, self._key, round, -1)
            self._coded = (round, packed.buffer, self._wire.sizes(packed))
        _, buffer, once = self._coded
        both = {role: sizes.get(role, Sizes()) + once.get(role, Sizes()) for role in {**sizes, **once}}
        return {**frames, ONCE: buffer}, both

    def up(self, buffer: bytes, client: int) -> tuple[Weights, dict[str, Sizes]]:
        """Read a client's frame and return its weights. Raises WireError."""
        return self._inner.up(buffer, client)

    def forget(self, client: int) -> bool:
        """Hear that a client has not what it was thought to hold: it is sent all. Return whether that can be."""
        self._has.discard(client)
        return self._inner.forget(client) | (client in self._relied)

    def close(self, clients: list[int]) -> None:
        """End a round in which these clients were trained: they have them now."""
        self._has |= set(clients)
        self._inner.close(clients)

    def state(self) -> Flat:
        """Return what the next round needs."""
        tensors, text = self._inner.state() or ({}, None)
        return tensors, json.dumps({"has": sorted(self._has), "each_round": text})


def crossings_of(
    held: ClientPart, compression: Compression, key: Key, state: Flat | None
) -> tuple[Crossing, Crossing]:  # fmt: skip
    """Return how the weights of what clients hold cross each round, and to be evaluated; and give `held` those that all
    clients will have of what is frozen. `state` is that of an earlier attempt. Raises RunError where it cannot be
    read."""
    frozen, has = held.frozen(), set[int]()
    wire = WeightWire.of(held, compression)
    if frozen and state is not None:
        try:
            said = json.loads(state[1])
            has = {int(client) for client in said["has"]}
            state = None if said["each_round"] is None else (state[0], str(said["each_round"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"the checkpoint does not say which clients have the frozen weights ({error!r})") from None
    each_round: Crossing = Differences(wire, state) if wire.delta else Whole(wire)
    evaluation = Whole(wire, purpose="evaluation")
    if not frozen:
        return each_round, evaluation
    frozen, once, key = {n: t.cpu().clone() for n, t in frozen.items()}, WeightWire(frozen, compression), key.at("once")
    held.load_frozen(once.unpack(once.pack(frozen, key, 0, -1).buffer)[0])
    return Once(each_round, once, frozen, key, has), Once(evaluation, once, frozen, key, has)
