"""The client's end of the control plane: weights that it takes and weights that it returns, whole or as differences."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from splitfed.clients.state import ClientState
from splitfed.errors import Lacking, RunError, WireError
from splitfed.federation.phases import Phase
from splitfed.seeds import Key
from splitfed.split.weights.differences import Base, Weights, base_of, fits, restored, send
from splitfed.split.weights.initial import Initial
from splitfed.split.weights.turns import Turns
from splitfed.split.weights.wire import WeightWire
from splitfed.wire.frame import Packed
from splitfed.wire.messages import Weights as Sent


@dataclass(frozen=True, slots=True)
class Wires:
    """What weights cross by at a client: each round, and `once` what is never trained; the `initial` weights, where the
    client has loaded them itself; and the `turns` of an adapter's parts, where these take turns."""

    each_round: WeightWire
    once: WeightWire
    initial: Initial | None = None
    turns: Turns | None = None


class RoundWeights:
    """One client's weights in one round, `phases` telling which phase a round is in: `down` first, then `up`. `trained`
    is the last round before in which the server took this client."""

    def __init__(
        self, wires: Wires, state: ClientState, round: int, client: int, phases: Callable[[int], Phase],
        trained: int | None = None,
    ) -> None:  # fmt: skip
        self._wire, self._once, self._initial = wires.each_round, wires.once, wires.initial
        self._turns = wires.turns
        self._state, self._round, self._client = state, round, client
        self._phase, self._phases, self._trained = phases(round), phases, trained
        self._known: Weights = {}
        self._missing: Weights = {}  # what its weights lacked that it returned last

    def down(self, sent: Sent) -> tuple[Weights, Weights]:
        """Return the weights that a message of the server's stands for, and those that are never trained: from a frame
        that comes once, and then from where they are kept. In a frozen phase the former are kept too. Raises WireError
        for what is no such message, and Lacking where it builds on weights that this client has not."""
        frozen = self.frozen(sent.once)
        self._known = weights = self._told(sent) if self._turns is None else self._in_turn(self._turns, sent)
        if self._phase.frozen:
            if sent.weights or sent.loaded:
                self._state.save_settled(self._phase.first, weights)
            return weights, frozen
        # Asked for before the client trains: where it is gone, the server can be told.
        if self._wire.delta and self._wire.lossy:
            # In a frozen phase nothing came back, and what lacked before still does.
            learned = self._trained is not None and not self._phases(self._trained).frozen
            self._missing = self._state.residual(self._round, self._trained if learned else None)
        return weights, frozen

    def to_evaluate(self, sent: Sent) -> tuple[Weights, Weights]:
        """Return the weights to be evaluated, and those that are never trained; nothing is kept. Raises as `down`
        does."""
        return self._told(sent, whole=True), self.frozen(sent.once)

    def _told(self, sent: Sent, whole: bool = False) -> Weights:
        if sent.loaded:
            if self._initial is None:
                raise WireError("the message is about weights that this client was not to load")
            self._initial.check(sent.loaded)
            if not sent.weights:
                return self._initial.weights
        elif not sent.weights:
            if not self._phase.frozen:
                raise WireError("the message has no weights, in a round in which they change")
            return self._settled(self._phase)
        weights, frame = self._wire.unpack(sent.weights)
        same_round(frame.round, self._round)
        if (base := base_of(frame)) is None:
            return weights
        if whole:
            raise WireError("the message to evaluate has differences, not weights")
        return restored(self._base(base), weights)

    def _in_turn(self, turns: Turns, sent: Sent) -> Weights:
        """Return all that travels in some round, from what came and what is kept of parts that did not."""
        weights, frame = turns.wire(turns.lacking(self._trained, self._round)).unpack(sent.weights)
        same_round(frame.round, self._round)
        if self._trained is None:
            return weights
        kept = self._state.known(self._trained)
        if kept is None or not turns.fit(kept):
            raise Lacking(f"the parts of the adapter that round {self._trained} began with are not here")
        return {**kept, **weights}

    def _settled(self, phase: Phase) -> Weights:
        kept = self._state.settled(phase.first)
        if kept is None or not fits(self._wire, kept):
            raise Lacking(f"the weights of the phase that began in round {phase.first} are not here")
        return kept

    def up(self, weights: dict[str, Tensor], key: Key) -> Packed:
        """Return the frame of these weights, and keep what the next round needs."""
        wire, round, client = self._wire, self._round, self._client
        if self._turns is not None:
            self._state.save_weights(round, self._turns.kept(self._known), {}, spared=self._trained)
        if not wire.delta:
            return wire.pack(weights, key, round, client)
        if self._missing and not fits(wire, self._missing):
            raise RunError(f"the weights that client {client} has kept are another model's: start a new run")
        sent = send(wire, weights, Base(round, self._known), key, round, client, self._missing)
        self._state.save_weights(round, self._known, sent.residual if wire.lossy else {})
        return sent.packed

    def frozen(self, once: bytes) -> Weights:
        """Return what is never trained, from a frame that comes once, and then from where it is kept; nothing where all
        is trained. Raises WireError and Lacking as `down` does."""
        if once:
            frozen, frame = self._once.unpack(once)
            same_round(frame.round, self._round)
            self._state.save_frozen(frozen)
            return frozen
        if not self._once.shapes:
            return {}
        kept = self._state.frozen()
        if kept is None or not fits(self._once, kept):
            raise Lacking("the weights that are sent once, as they are never trained, are not here")
        return kept

    def _base(self, round: int) -> Weights:
        if round == 0:
            if self._initial is None:
                raise WireError("the message builds on weights that this client was not to load")
            return self._initial.weights
        if (phase := self._phases(round)).frozen:
            return self._settled(phase)
        known = self._state.known(round)
        if known is None or not fits(self._wire, known):
            raise Lacking(f"the weights of round {round}, from which this round's are measured, are not here")
        return known


def same_round(weights: int, message: int) -> None:
    """Raise WireError unless the weights that came with a message are of its round."""
    if weights != message:
        raise WireError(f"the message for round {message} has the front's weights of round {weights}")
