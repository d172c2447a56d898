"""What is frozen of the clients' part of the model crosses once for each client, beside the weights of its round, and
so does what norms of its own begin with."""

from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord
from torch import Tensor

from splitfed.run.ledger import Sizes
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.server.weights.differences import WeightDifferences
from splitfed.server.weights.exchange import Coded, Packs, WeightExchange, WholeWeights, all_alike
from splitfed.server.weights.guard import Guard
from splitfed.server.weights.settled import Kept, Settled
from splitfed.server.weights.turns import InTurns
from splitfed.split.weights.initial import HeldByPhase
from splitfed.split.weights.wire import WeightWire


class FrozenOnce(WeightExchange):
    """Adds `frozen` weights to what another exchange sends a client, until the client has them.

    All get the same frame, which is drawn from `key` alone. `has`, who has them already, is shared by all that send
    them."""

    def __init__(
        self, inner: WeightExchange, wire: WeightWire, frozen: dict[str, Tensor], key: Key, has: set[int]
    ) -> None:  # fmt: skip
        self._inner, self._wire, self._frozen, self._key, self._has = inner, wire, frozen, key, has
        self._relied = set[int]()  # who was sent a message without them
        self._coded: tuple[int, bytes, dict[str, Sizes]] | None = None

    def open(self, round: int, clients: list[int]) -> None:
        """Begin a round with these clients."""
        self._inner.open(round, clients)

    def down(self, arrays: ArrayRecord, client: int, round: int, key: Key) -> Coded:
        """Return a client's frames, and what both add to the ledger."""
        weights, sizes = self._inner.down(arrays, client, round, key)
        if client in self._has:
            self._relied.add(client)
            return weights, sizes
        self._relied.discard(client)
        if self._coded is None or self._coded[0] != round:
            packed = self._wire.pack(self._frozen, self._key, round, -1)
            self._coded = (round, packed.buffer, self._wire.sizes(packed))
        _, buffer, once = self._coded
        both = {role: sizes.get(role, Sizes()) + once.get(role, Sizes()) for role in {**sizes, **once}}
        return replace(weights, once=buffer), both

    def up(self, buffer: bytes, client: int) -> tuple[dict[str, Tensor], dict[str, Sizes]]:
        """Read a client's frame and return its weights. Raises WireError, and Diverged for absurd ones."""
        return self._inner.up(buffer, client)

    def forget(self, client: int) -> bool:
        """Hear that a client has not what it was thought to know: it is sent all. Return whether that can be."""
        self._has.discard(client)
        return self._inner.forget(client) | (client in self._relied)

    def close(self, clients: list[int]) -> None:
        """End a round in which these clients were trained: they have them now."""
        self._has |= set(clients)
        self._inner.close(clients)

    def state_dict(self) -> dict[str, Any]:
        """Return who has the frozen weights, and what the exchange of the others needs."""
        return {"has": sorted(self._has), "each_round": self._inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned."""
        self._has.clear()
        self._has.update(state["has"])
        if state["each_round"]:
            self._inner.load_state_dict(state["each_round"])


def exchanges_of(
    scenario: Scenario, held: HeldByPhase, key: Key, packs: Packs = all_alike, to_evaluate: Packs = all_alike
) -> tuple[WeightExchange, WeightExchange]:
    """Return how the weights of what clients hold cross each round, and how to be evaluated; and give the part that is
    held those that all clients will have of what is frozen. `packs` tells whose cross packed otherwise each round, and
    `to_evaluate` whose to be evaluated."""
    compression, guard = scenario.compression, Guard(scenario.federation.clip.front_weights)
    part, wire, initial = held.plain.part, held.plain.wire, held.plain.initial
    each_round: WeightExchange = WholeWeights(wire, guard=guard, initial=initial, held=held, packs=packs)
    if part.turns > 1:
        each_round = InTurns(scenario, held, guard, packs)
    elif wire.delta:
        in_turn = scenario.federation.mode == "sl"
        each_round = WeightDifferences(wire, guard, initial, held, in_turn=in_turn)
    evaluation: WeightExchange = WholeWeights(wire, purpose="evaluation", initial=initial, packs=to_evaluate)
    if any(not phase.learns for phase in scenario.phases):
        each_round = Settled(each_round, scenario)
        evaluation = Kept(evaluation, each_round)
    frozen = {} if initial else {name: tensor.cpu().clone() for name, tensor in part.frozen().items()}
    if not frozen:
        return each_round, evaluation
    has, once, key = set[int](), WeightWire.of_frozen(part, compression), key.at("once")
    part.load_frozen(once.unpack(once.pack(frozen, key, 0, -1).buffer)[0])
    return FrozenOnce(each_round, once, frozen, key, has), FrozenOnce(evaluation, once, frozen, key, has)
