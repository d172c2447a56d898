"""The client's end of the control plane: weights that it takes and weights that it returns, whole or as differences."""

from torch import Tensor

from splitfed.clients.state import ClientState
from splitfed.errors import Lacking, RunError, WireError
from splitfed.seeds import Key
from splitfed.split.weight_differences import Base, Weights, base_of, fits, restored, send
from splitfed.split.weights import WeightWire
from splitfed.wire.frame import Packed


class RoundWeights:
    """One client's weights in one round: `down` first, then `up`. `once` is the wire of what is never trained;
    `trained` is the last round before in which the server took this client's weights."""

    def __init__(
        self, wire: WeightWire, once: WeightWire, state: ClientState, round: int, client: int,
        trained: int | None = None,
    ) -> None:  # fmt: skip
        self._wire, self._once, self._state, self._round, self._client = wire, once, state, round, client
        self._trained = trained
        self._known: Weights = {}
        self._missing: Weights = {}  # what its weights lacked that it returned last

    def down(self, buffer: bytes, once: bytes = b"") -> tuple[Weights, Weights]:
        """Return the weights that a frame of the server's stands for, and those that are never trained: from a frame
        that comes once, and then from where they are kept. Raises WireError for what is no such frame, and Lacking
        where it builds on weights that this client has not."""
        frozen = self.frozen(once)
        weights, frame = self._wire.unpack(buffer)
        same_round(frame.round, self._round)
        if (base := base_of(frame)) is not None:
            weights = restored(self._base(base), weights)
        self._known = weights
        # Asked for before the client trains: where it is gone, the server can be told.
        if self._wire.delta and self._wire.lossy:
            self._missing = self._state.residual(self._round, self._trained)
        return weights, frozen

    def up(self, weights: dict[str, Tensor], key: Key) -> Packed:
        """Return the frame of these weights, and keep what the next round needs."""
        wire, round, client = self._wire, self._round, self._client
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
        known = self._state.known(round)
        if known is None or not fits(self._wire, known):
            raise Lacking(f"the weights of round {round}, from which this round's are measured, are not here")
        return known


def same_round(weights: int, message: int) -> None:
    """Raise WireError unless the weights that came with a message are of its round."""
    if weights != message:
        raise WireError(f"the message for round {message} has the front's weights of round {weights}")
