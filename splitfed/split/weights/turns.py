"""Parts of an adapter that take turns: which of them a client lacks, and what carries these to it.

A round trains one part, the same at all clients, and all that comes back is that. So a client that was last trained in
some round lacks what later rounds made of parts, and what its own round made of one: these are sent, and no others. Who
was never there is sent all.
"""

from collections.abc import Mapping

from torch import Tensor

from splitfed.scenario import Scenario
from splitfed.split.client_part import ClientPart, part_of
from splitfed.split.weights.wire import WeightWire


class Turns:
    """Which parts of what an adapter adds to a `part` of the model go to a client, and how. With `sl` each client goes
    on with what the one before it made of the round's part, so that goes too."""

    def __init__(self, scenario: Scenario, part: ClientPart) -> None:
        self.part, self._compression = part, scenario.compression
        self._handed_on = scenario.federation.mode == "sl"
        self._wires: dict[frozenset[int], WeightWire] = {}

    def lacking(self, since: int | None, round: int) -> frozenset[int]:
        """Return the parts that a client lacks as a round begins, if it was last trained in that of `since` (None: in
        none)."""
        if since is None:
            return frozenset(range(self.part.turns))
        rounds = range(max(since, round - self.part.turns), round + self._handed_on)
        return frozenset(self.part.turn(one) for one in rounds)

    def wire(self, parts: frozenset[int]) -> WeightWire:
        """Return what carries these parts, and all else that travels."""
        if parts not in self._wires:
            sent = {n: t for n, t in self.part.travelling().items() if (of := part_of(n)) is None or of in parts}
            self._wires[parts] = WeightWire(sent, self._compression, roles=self.part.roles())
        return self._wires[parts]

    def kept(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what a client keeps from one round to the next: all parts as it was sent them."""
        return {name: tensor for name, tensor in weights.items() if part_of(name) is not None}

    def fit(self, kept: Mapping[str, Tensor]) -> bool:
        """Tell whether these are all parts."""
        wanted = self.kept(self.part.travelling())
        return {n: t.shape for n, t in kept.items()} == {n: t.shape for n, t in wanted.items()}
