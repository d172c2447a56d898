"""What goes down as differences: who holds which weights since the last round, and what they are sent in this one.

Clients hold different weights of the same round where some were sent it whole. The cohort is grouped by what it holds,
a group's difference is encoded once, and who is in none of the largest groups is sent all, so that the server holds
few sets of weights however many clients there are.
"""

import json

from flwr.app import ArrayRecord
from torch import Tensor

from splitfed.errors import RunError, WireError
from splitfed.run.ledger import Sizes
from splitfed.run.tree import Flat
from splitfed.seeds import Key
from splitfed.server.weights.grid import Coded, Crossing, plain
from splitfed.split.weight_differences import Base, Weights, base_of, restored, send
from splitfed.split.weights import WeightWire
from splitfed.wire.messages import WEIGHTS

MOST_GROUPS = 3
_WHOLE = 0  # the group of those who are sent all; the others count from 1


class Differences(Crossing):
    """Weights that cross as differences. `open` and `close` embrace a round; `state` is what the next one needs.

    Raises RunError where the state of an earlier attempt is not of this front."""

    def __init__(self, wire: WeightWire, state: Flat | None = None) -> None:
        self.wire = wire
        self._round = 0
        self._arrays: ArrayRecord | None = None
        self._weights: Weights = {}
        self._group: dict[int, int] = {}  # of the clients of this round
        self._bases: dict[int, Base] = {}  # by group
        self._sent: dict[int, tuple[Coded, Weights]] = {}  # by group: the frame, and what it makes
        # Since the last round: which weights, by number, a client holds.
        self._holds: dict[int, int] = {}
        self._held: dict[int, Weights] = {}
        self._since = 0
        if state is not None:
            self._load(*state)

    def open(self, round: int, clients: list[int]) -> None:
        """Begin a round with these clients; it may be one that was begun before."""
        self._round, self._arrays, self._sent = round, None, {}
        groups: dict[int, list[int]] = {}
        for client in sorted(clients):
            if client in self._holds and self._since == round - 1:
                groups.setdefault(self._holds[client], []).append(client)
        largest = sorted(groups, key=lambda number: (-len(groups[number]), groups[number][0]))[:MOST_GROUPS]
        self._bases = {place: Base(self._since, self._held[number]) for place, number in enumerate(largest, 1)}
        members = {client: place for place, number in enumerate(largest, 1) for client in groups[number]}
        self._group = {client: members.get(client, _WHOLE) for client in clients}

    def down(self, arrays: ArrayRecord, client: int, round: int, key: Key) -> Coded:
        """Return the frame for a client of the round. Raises RunError where it is to get other weights than the others
        of its cohort."""
        if self._arrays is not arrays:
            self._take(arrays)
        group = self._group[client]
        if group not in self._sent:
            place = key.at(group) if group else key
            sent = send(self.wire, self._weights, self._bases.get(group), place, round, -1)
            self._sent[group] = ({WEIGHTS: sent.packed.buffer}, self.wire.sizes(sent.packed)), sent.known
        return self._sent[group][0]

    def up(self, buffer: bytes, client: int) -> tuple[Weights, dict[str, Sizes]]:
        """Read a client's frame, and return its weights, to which what it was sent is added. Raises WireError."""
        difference, frame = self.wire.unpack(buffer)
        base, sent = base_of(frame), self._sent.get(self._group.get(client, -1))
        if base != self._round or sent is None:
            raise WireError(f"weights that are measured from those of round {base}, where {self._round} is open")
        return restored(sent[1], difference), self.wire.sizes(frame)

    def forget(self, client: int) -> bool:
        """Hear that a client has not what it was thought to hold: it is sent all when it is next drawn. Return whether
        that can be."""
        self._holds.pop(client, None)
        return self._group.get(client, _WHOLE) != _WHOLE

    def close(self, clients: list[int]) -> None:
        """End the round: these clients were trained, and hold what they were sent."""
        self._holds = {client: self._group[client] for client in clients}
        self._held = {group: self._sent[group][1] for group in sorted(set(self._holds.values()))}
        self._since, self._sent, self._bases, self._group = self._round, {}, {}, {}
        self._arrays, self._weights = None, {}

    def state(self) -> Flat | None:
        """Return what the next round needs."""
        tensors = {f"{number}/{name}": t for number, held in self._held.items() for name, t in held.items()}
        return tensors, json.dumps({"round": self._since, "holds": sorted(self._holds.items())})

    def _load(self, tensors: dict[str, Tensor], text: str) -> None:
        try:
            said = json.loads(text)
            self._since, self._holds = int(said["round"]), {int(client): int(n) for client, n in said["holds"]}
            self._held = {
                number: {name: tensors[f"{number}/{name}"] for name in self.wire.shapes}
                for number in set(self._holds.values())
            }
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"the checkpoint does not say what the clients hold ({error!r})") from None

    def _take(self, arrays: ArrayRecord) -> None:
        weights = plain(arrays)
        if self._arrays is not None and any(not weights[n].equal(t) for n, t in self._weights.items()):
            raise RunError(
                "federation.strategy sends clients of one round different weights, from which no differences can be "
                "told: set compression.front_weights.delta to false"
            )
        self._arrays, self._weights = arrays, weights
