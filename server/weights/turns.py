"""An adapter whose parts take turns: each client is sent those that it lacks, and returns the round's."""

from typing import Any

from flwr.app import ArrayRecord
from torch import Tensor

from splitfed.run.ledger import Sizes
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.server.weights.exchange import Coded, Packs, WeightExchange, all_alike, plain, where
from splitfed.server.weights.guard import Given, Guard
from splitfed.split.weights.initial import HeldByPhase
from splitfed.split.weights.turns import Turns
from splitfed.wire.messages import Weights


class InTurns(WeightExchange):
    """Sends clients the parts that they lack, and one frame to all who lack the same. `packs` tells who is sent them
    packed otherwise; `guard` judges what comes back."""

    def __init__(self, scenario: Scenario, held: HeldByPhase, guard: Guard, packs: Packs = all_alike) -> None:
        self._held, self._turns = held, Turns(scenario, held.plain.part)
        self._guard, self._packs = guard, packs
        self._since: dict[int, int] = {}  # the round in which a client was last trained
        self._round, self._up = 0, held.at(1).wire
        self._arrays: ArrayRecord | None = None
        self._weights: dict[str, Tensor] = {}
        self._coded: dict[Any, Coded] = {}
        self._given: dict[int, Given] = {}

    def open(self, round: int, clients: list[int]) -> None:
        """Begin a round; it may have been begun before."""
        self._round = round
        self._up, self._arrays, self._coded, self._given = self._held.at(round).wire, None, {}, {}

    def down(self, arrays: ArrayRecord, client: int, round: int, key: Key) -> Coded:
        """Return the frame of what a client lacks; the round's part is one of these `arrays`."""
        if self._arrays is not arrays:
            self._arrays, self._coded = arrays, {}
            others = {name: tensor.cpu() for name, tensor in self._turns.part.travelling().items()}
            self._weights = {**others, **plain(arrays)}
        # An update begins at the weights that a client has, which may be older than this frame.
        self._given[client] = self._guard.given({name: self._weights[name] for name in self._up.shapes})
        terms, compression = self._packs(client) or (None, None)
        lacking = self._turns.lacking(self._since.get(client), round)
        if (lacking, terms) not in self._coded:
            wire = self._turns.wire(lacking)
            wire = wire if compression is None else wire.under(compression)
            packed = wire.pack(self._weights, key.at(*sorted(lacking)), round, -1)
            self._coded[lacking, terms] = Weights(packed.buffer), wire.sizes(packed)
        return self._coded[lacking, terms]

    def up(self, buffer: bytes, client: int) -> tuple[dict[str, Tensor], dict[str, Sizes]]:
        """Read a client's frame and return the round's part. Raises WireError, and Diverged for absurd ones."""
        weights, frame = self._up.unpack(buffer)
        weights = self._guard.taken(weights, self._given.get(client), where(frame.round, client))
        return weights, self._up.sizes(frame)

    def forget(self, client: int) -> bool:
        """Hear that a client has not what it was thought to have: it is sent all. Return whether that can be."""
        return self._since.pop(client, None) is not None

    def close(self, clients: list[int]) -> None:
        """End a round in which these clients were trained."""
        self._since |= dict.fromkeys(clients, self._round)

    def state_dict(self) -> dict[str, Any]:
        """Return in which round each client was last trained."""
        return {"since": sorted(map(list, self._since.items()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned."""
        self._since = dict(state["since"])
