"""One client at the server, for a round: takes its frames, counts both directions, and trains the back on what it
sends."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from splitfed.errors import WireError
from splitfed.run.ledger import Direction, Row, Sizes
from splitfed.split.ending import END, counted, pack_done
from splitfed.wire.frame import Frame, Packed, Place

if TYPE_CHECKING:
    from splitfed.server.back.pools import Trainer
    from splitfed.server.back.server import SplitServer


@dataclass(frozen=True, slots=True)
class _Answered:
    """The last frame with its reply and their rows, in case the reply is lost on its way and the frame comes again."""

    request: bytes
    reply: bytes
    rows: list[Row]


class Session(ABC):
    """One client's frames, in order and each taken once, until it has finished; outlives streams that break.

    `detached` is when its last stream was closed, by the server's clock; None while it has one.
    """

    def __init__(self, server: "SplitServer", client: int, round: int) -> None:
        self._server, self.client, self.round = server, client, round
        self.finished = False
        self.detached: float | None = None
        self._step = 0
        self._up = self._down = 0
        self._last: _Answered | None = None
        self._shut = False
        self._lock = Lock()  # a stream and the one that supersedes it may both be here

    def handle(self, buffer: bytes) -> bytes:
        """Take a client's frame and return the reply; the last frame again gets its reply again.

        Raises WireError for anything else.
        """
        with self._lock:
            if self._shut:
                raise WireError(f"round {self.round} has gone on without client {self.client}")
            if self._last and buffer == self._last.request:
                self._server.ledger.retried(self._last.rows)
                return self._last.reply
            if self.finished:
                raise WireError("the stream has ended")
            frame = self._unpack(buffer)
            if (frame.round, frame.client, frame.step) != (self.round, self.client, self._next):
                raise WireError(
                    f"frame of round {frame.round}, client {frame.client}, step {frame.step}, "
                    f"where {self.round}, {self.client}, {self._next} is next"
                )
            reply, rows = self._end(frame) if frame.kind == END else self._work(frame)
            self._last = _Answered(buffer, reply.buffer, rows)
        self._done(frame)
        return reply.buffer

    @property
    def _next(self) -> int:
        """The step that is next."""
        return self._step + 1

    @abstractmethod
    def _unpack(self, buffer: bytes) -> Frame:
        """Decode a client's frame, one of its work or `end`. Raises WireError for anything else."""

    @abstractmethod
    def _work(self, frame: Frame) -> tuple[Packed, list[Row]]:
        """Answer a frame that is not the end, and count both."""

    @abstractmethod
    def _sizes(self, packed: Packed | Frame, examples: int) -> dict[str, Sizes]:
        """Return what a frame of so many images adds to the ledger."""

    @abstractmethod
    def _done(self, frame: Frame) -> None:
        """Hear that a frame was answered, for the first time."""

    def _end(self, frame: Frame) -> tuple[Packed, list[Row]]:
        if counted(frame) != (self._up, self._down):
            raise WireError(
                f"client {self.client} counts {counted(frame)} bytes up and down, not {(self._up, self._down)}"
            )
        self._step += 1
        rows = self._count(frame, "up", 0)
        reply = pack_done(Place(self.round, self.client, self._step))
        rows += self._count(reply, "down", 0)
        self.finished = True
        return reply, rows

    def _count(self, packed: Packed | Frame, direction: Direction, examples: int) -> list[Row]:
        if direction == "up":
            self._up += packed.total
        else:
            self._down += packed.total
        place = (self.round, self._step, self.client, direction, "data")
        rows = [Row(*place, role, part) for role, part in self._sizes(packed, examples).items()]  # type: ignore[arg-type]
        self._server.ledger.add(rows)
        return rows

    def close(self) -> None:
        """Note that the client has no stream any more; it may come back. Harmless when called again."""
        if self.detached is None:
            self.detached = self._server.clock()

    def shut(self) -> None:
        """Take nothing more, once a mini-batch in progress is done."""
        with self._lock:
            self._shut, self._last = True, None


class SplitSession(Session):
    """One client's mini-batches of a round, each trained once."""

    def __init__(self, server: "SplitServer", client: int, round: int, trainer: "Trainer") -> None:
        super().__init__(server, client, round)
        self.trainer = trainer

    def _unpack(self, buffer: bytes) -> Frame:
        return self._server.cut.unpack_up(buffer)

    def _sizes(self, packed: Packed | Frame, examples: int) -> dict[str, Sizes]:
        return self._server.cut.sizes(packed, examples)

    def _work(self, frame: Frame) -> tuple[Packed, list[Row]]:
        server = self._server
        batch = server.cut.batch(frame)
        # Whatever fails from here on, this frame will not be trained again.
        self._step += 1
        rows = self._count(frame, "up", batch.examples)
        key = server.key.at(self.round, self.client, self._step)
        gradient, loss = server.training.step(self.trainer, batch, key)
        reply = server.cut.pack_gradient(frame, gradient, loss, key.at("rounding"))
        return reply, rows + self._count(reply, "down", batch.examples)

    def _end(self, frame: Frame) -> tuple[Packed, list[Row]]:
        reply = super()._end(frame)
        self._server.training.leave(self.client)
        return reply

    def _done(self, frame: Frame) -> None:
        if frame.kind == "step":
            with self._server.reporting:
                self._server.on_step(self.round, self.client)

    def close(self) -> None:
        """Note that the client has no stream any more; it may come back. Harmless when called again."""
        gone = self.detached is None
        super().close()
        if gone:
            self._server.training.hung_up(self.client)


def away(sessions: Mapping[int, Session], since: float) -> set[int]:
    """Return the clients who did not finish and have had no stream since before this time, by the server's clock."""
    return {
        client
        for client, session in sessions.items()
        if not session.finished and session.detached is not None and session.detached < since
    }
