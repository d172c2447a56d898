"""One client's round in which it sends what the server keeps."""

from splitfed.run.ledger import Row
from splitfed.server.back.pools import Trainer
from splitfed.server.back.round_context import RoundContext
from splitfed.server.back.session import SplitSession
from splitfed.server.memory.store import Store
from splitfed.wire.frame import Frame, Packed


class StoringSession(SplitSession):
    """Each mini-batch is kept, as it came, and nothing is learned from it yet."""

    def __init__(
        self, context: RoundContext, client: int, trainer: Trainer, most: int | None, store: Store
    ) -> None:  # fmt: skip
        super().__init__(context, client, trainer, most)
        self._store, self._came = store, b""

    def _unpack(self, buffer: bytes) -> Frame:
        self._came = buffer
        return super()._unpack(buffer)

    def _work(self, frame: Frame) -> tuple[Packed, list[Row]]:
        batch, rows, _ = self._taken(frame)
        self._store.add(self.client, self._came, batch)
        reply = self.context.cut.pack_stored(frame)
        return reply, rows + self._count(reply, "down", batch.examples)
