"""One client's round where its labels stay with it: the back is run on one frame and trained on the next."""

from dataclasses import dataclass

from torch import Tensor

from splitfed.run.ledger import Row
from splitfed.seeds import Key
from splitfed.server.back.session import SplitSession
from splitfed.server.back.steps import Alone
from splitfed.split.cut import Arrived
from splitfed.wire.frame import Frame, Packed


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A mini-batch whose features are with the client: what autograd goes on from when their gradient comes."""

    batch: Arrived
    features: Tensor
    sent: Packed
    key: Key


class PrivateSession(SplitSession):
    """Each mini-batch in two exchanges; in between, its graph waits here, until the client is lost."""

    _waiting: _Waiting | None = None

    @property
    def _next(self) -> int:
        return self._step + (self._waiting is None)

    def _unpack(self, buffer: bytes) -> Frame:
        return self._server.cut.unpack_up(buffer, self._waiting.features if self._waiting else None)

    def _work(self, frame: Frame) -> tuple[Packed, list[Row]]:
        return self._forward(frame) if self._waiting is None else self._backward(frame, self._waiting)

    def _done(self, frame: Frame) -> None:
        if frame.kind == "backward":
            with self._server.reporting:
                self._server.on_step(self.round, self.client)

    def _forward(self, frame: Frame) -> tuple[Packed, list[Row]]:
        server = self._server
        batch = server.cut.batch(frame)
        # Whatever fails from here on, this frame will not be taken again.
        self._step += 1
        rows = self._count(frame, "up", batch.examples)
        key = server.key.at(self.round, self.client, self._step)
        features = self._training.forward(self.trainer, batch, key)
        reply = server.cut.pack_features(frame, features, key.at("rounding"))
        rows += self._count(reply, "down", batch.examples)
        self._waiting = _Waiting(batch, features, reply, key)
        return reply, rows

    def _backward(self, frame: Frame, waiting: _Waiting) -> tuple[Packed, list[Row]]:
        server, batch, self._waiting = self._server, waiting.batch, None
        rows = self._count(frame, "up", batch.examples)
        gradient = server.cut.corrected_tail(frame.tensors["tail_gradient"], waiting.features, waiting.sent)
        at_the_cut = self._training.backward(self.trainer, batch, waiting.features, gradient)
        reply = server.cut.pack_gradient(frame, at_the_cut, None, waiting.key.at("rounding"))
        return reply, rows + self._count(reply, "down", batch.examples)

    @property
    def _training(self) -> Alone:
        assert isinstance(self._server.training, Alone)  # joint steps know no halves: the scenario is refused
        return self._server.training

    def shut(self) -> None:
        """Take nothing more, and let go of what waits."""
        super().shut()
        with self._lock:
            self._waiting = None
