"""What goes down as differences: who holds which weights since the last round, and what they are sent in this one.

Clients hold different weights of the same round where some were sent it whole. The cohort is grouped by what it holds,
a group's difference is encoded once, and who is in none of the largest groups is sent all, so that the server holds
few sets of weights however many clients there are.
"""

from typing import Any

from flwr.app import ArrayRecord
from torch import Tensor

from splitfed.errors import RunError, WireError
from splitfed.run.ledger import Sizes
from splitfed.seeds import Key
from splitfed.server.weights.exchange import Coded, WeightExchange, plain, where
from splitfed.server.weights.guard import Given, Guard
from splitfed.split.weights.differences import Base, base_of, restored, send
from splitfed.split.weights.initial import HeldByPhase, Initial
from splitfed.split.weights.wire import WeightWire
from splitfed.wire.messages import Weights

MOST_GROUPS = 3
# The groups of those who are sent all, and of those who have what they loaded themselves; the others count from 1.
_WHOLE, _LOADED = 0, -1


class WeightDifferences(WeightExchange):
    """Weights that cross as differences. `open` and `close` embrace a round. `guard` judges what comes back. Who has
    nothing of the last round is sent all, or the difference to the `initial` weights, if it loads these itself. Where
    clients train `in_turn`, each is sent another front, and nobody has anything of the round before. `held` has the
    wire and the initial weights of each round, where they change."""

    def __init__(
        self, wire: WeightWire, guard: Guard | None = None, initial: Initial | None = None,
        held: HeldByPhase | None = None, *, in_turn: bool = False,
    ) -> None:  # fmt: skip
        self.wire, self._guard, self._initial = wire, guard or Guard(), initial
        self._held, self._in_turn = held, in_turn
        self._round = 0
        self._arrays: ArrayRecord | None = None
        self._weights: dict[str, Tensor] = {}
        self._group: dict[int, int] = {}  # of the clients of this round
        self._bases: dict[int, Base] = {}  # by group
        self._sent: dict[int, tuple[Coded, dict[str, Tensor], Given]] = {}  # by group: the frame, and what it makes
        # Since the last round: which weights, by number, a client knows.
        self._knows: dict[int, int] = {}
        self._known: dict[int, dict[str, Tensor]] = {}
        self._since = 0

    def open(self, round: int, clients: list[int]) -> None:
        """Begin a round with these clients; it may be one that was begun before."""
        self._round, self._arrays, self._sent = round, None, {}
        if self._held is not None:
            now = self._held.at(round)
            self.wire, self._initial = now.wire, now.initial
        if self._in_turn:
            self._group = {client: place for place, client in enumerate(sorted(clients))}
            return
        groups: dict[int, list[int]] = {}
        for client in sorted(clients):
            if client in self._knows and self._since == round - 1:
                groups.setdefault(self._knows[client], []).append(client)
        largest = sorted(groups, key=lambda number: (-len(groups[number]), groups[number][0]))[:MOST_GROUPS]
        self._bases = {place: Base(self._since, self._known[number]) for place, number in enumerate(largest, 1)}
        members = {client: place for place, number in enumerate(largest, 1) for client in groups[number]}
        others = _WHOLE if self._initial is None else _LOADED
        self._group = {client: members.get(client, others) for client in clients}

    def down(self, arrays: ArrayRecord, client: int, round: int, key: Key) -> Coded:
        """Return the frame for a client of the round. Raises RunError where it is to get other weights than the others
        of its cohort."""
        if self._in_turn:
            self._sent = {}  # the turn before is over
        if self._arrays is not arrays:
            self._take(arrays)
        group = self._group[client]
        if group not in self._sent:
            self._sent[group] = self._encoded(group, round, key.at(group) if group else key)
        return self._sent[group][0]

    def _encoded(self, group: int, round: int, key: Key) -> tuple[Coded, dict[str, Tensor], Given]:
        base, loaded = self._bases.get(group), ""
        if self._initial is not None and (self._in_turn or group == _LOADED):
            base, loaded = Base(0, self._initial.weights), self._initial.sha256
            if self._initial.same(self._weights):
                return (Weights(b"", loaded=loaded), {}), base.weights, self._guard.given(base.weights)
        sent = send(self.wire, self._weights, base, key, round, -1)
        coded = Weights(sent.packed.buffer, loaded=loaded), self.wire.sizes(sent.packed)
        return coded, sent.known, self._guard.given(sent.known)

    def up(self, buffer: bytes, client: int) -> tuple[dict[str, Tensor], dict[str, Sizes]]:
        """Read a client's frame, and return its weights, to which what it was sent is added. Raises WireError, and
        Diverged for absurd ones."""
        difference, frame = self.wire.unpack(buffer)
        base, group = base_of(frame), self._group.get(client)
        sent = None if group is None else self._sent.get(group)
        if base != self._round or sent is None:
            raise WireError(f"weights that are measured from those of round {base}, where {self._round} is open")
        weights = self._guard.taken(restored(sent[1], difference), sent[2], where(frame.round, client))
        return weights, self.wire.sizes(frame)

    def forget(self, client: int) -> bool:
        """Hear that a client has not what it was thought to know: it is sent all when it is next drawn. Return whether
        that can be."""
        self._knows.pop(client, None)
        return self._group.get(client, _WHOLE) in self._bases

    def close(self, clients: list[int]) -> None:
        """End the round: these clients were trained, and know what they were sent."""
        self._knows = {} if self._in_turn else {client: self._group[client] for client in clients}
        self._known = {group: self._sent[group][1] for group in sorted(set(self._knows.values()))}
        self._since, self._sent, self._bases, self._group = self._round, {}, {}, {}
        self._arrays, self._weights = None, {}

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round needs: which weights are known since which round, and who knows which."""
        return {"round": self._since, "knows": dict(self._knows), "known": dict(self._known)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned. Raises KeyError where it is not of this front."""
        self._since, self._knows = state["round"], dict(state["knows"])
        known = {number: state["known"][number] for number in set(self._knows.values())}
        # An auxiliary net may be beside the front.
        self._known = {n: {**{name: one[name] for name in self.wire.shapes}, **one} for n, one in known.items()}

    def _take(self, arrays: ArrayRecord) -> None:
        weights = plain(arrays)
        if (
            not self._in_turn
            and self._arrays is not None
            and any(not weights[n].equal(t) for n, t in self._weights.items())
        ):
            raise RunError(
                "federation.strategy sends clients of one round different weights, from which no differences can be "
                "told: set compression.front_weights.delta to false"
            )
        self._arrays, self._weights = arrays, weights
