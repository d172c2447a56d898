"""One client's round where its labels stay with it: the back is run on one frame and trained on the next."""

from dataclasses import dataclass

from torch import Tensor

from splitfed.run.ledger import Row
from splitfed.seeds import Key
from splitfed.server.back.session import SplitSession
from splitfed.split.bounds import largest
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

    _trains = "backward"
    _waiting: _Waiting | None = None

    @property
    def _next(self) -> int:
        return self._step + (self._waiting is None)

    @property
    def loss(self) -> None:
        """None: the client computes it."""
        return None

    def _unpack(self, buffer: bytes) -> Frame:
        waiting, cut = self._waiting, self.context.cut
        return cut.unpack_up(buffer, waiting.features, waiting.batch.lengths) if waiting else cut.unpack_up(buffer)

    def _work(self, frame: Frame) -> tuple[Packed, list[Row]]:
        return self._forward(frame) if self._waiting is None else self._backward(frame, self._waiting)

    def _forward(self, frame: Frame) -> tuple[Packed, list[Row]]:
        batch, rows, key = self._taken(frame)
        features = self.context.passes.forward(self.trainer, batch, key)
        reply = self.context.cut.pack_features(frame, features, key.at("rounding"), batch.lengths)
        rows += self._count(reply, "down", batch.examples)
        self._waiting = _Waiting(batch, features, reply, key)
        return reply, rows

    def _backward(self, frame: Frame, waiting: _Waiting) -> tuple[Packed, list[Row]]:
        cut, batch, self._waiting = self.context.cut, waiting.batch, None
        rows = self._count(frame, "up", batch.examples)
        gradient = cut.corrected_tail(frame.tensors["tail_gradient"], waiting.features, waiting.sent, batch.lengths)
        at_the_cut = self.context.passes.backward(self.trainer, batch, waiting.features, gradient)
        self._note("tail_gradient", largest([gradient]))
        if at_the_cut is None:
            reply = cut.pack_taken(frame, None)
        else:
            reply = cut.pack_gradient(frame, at_the_cut, None, waiting.key.at("rounding"), batch.visit)
        return reply, rows + self._count(reply, "down", batch.examples)

    def shut(self) -> None:
        """Take nothing more, and let go of what waits."""
        super().shut()
        with self._lock:
            self._waiting = None
