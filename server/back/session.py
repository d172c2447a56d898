"""One client at the server, for a round: takes its frames, counts both directions, and trains the back on what it
sends."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import ClassVar

from splitfed.errors import Diverged, Late, NotFinite, Refused, WireError
from splitfed.run.ledger import Direction, Row, Sizes
from splitfed.seeds import Key
from splitfed.server.back.pools import Trainer
from splitfed.server.back.round_context import RoundContext
from splitfed.split.copies import Copies
from splitfed.split.cut import Arrived
from splitfed.split.ending import END, counted, pack_done
from splitfed.wire.frame import Frame, Packed, Place


@dataclass(frozen=True, slots=True)
class _Answered:
    """A frame with its reply and their rows, in case the reply is lost on its way and the frame comes again."""

    request: bytes
    reply: bytes
    rows: list[Row]


class ClientSession(ABC):
    """One client's frames, in order and each taken once, until it has finished; outlives streams that break. What the
    channel calls a `Session` (`splitfed.wire.channel`)."""

    def __init__(self, context: RoundContext, client: int) -> None:
        self.context, self.client = context, client
        self.finished = False
        # Why nothing more is taken of the client: its numbers, or that it sent what no client sends.
        self.refused: Refused | WireError | None = None
        self._detached: float | None = None  # when its last stream was closed; None while it has one
        self._step = 0
        self._up = self._down = 0
        # A client has no more frames without a reply: whatever it sends beside shows that it has had earlier replies.
        self._answered: deque[_Answered] = deque(maxlen=context.ahead + 1)
        self._shut = False
        self._lock = Lock()  # a stream and the one that supersedes it may both be here

    def handle(self, buffer: bytes) -> bytes:
        """Take a client's frame and return the reply; a frame again whose reply it may have missed gets that again.

        Raises WireError for anything else, and Refused for numbers with which no training goes on, be they the client's
        or what came of them: nothing is taken from the client any more. What is Late alone does no harm: a stream that
        was superseded may bring it.
        """
        try:
            return self._handle(buffer)
        except (Diverged, NotFinite) as error:
            told = self._told(error)
            self._refuse(told)
            raise told from error
        except Late:
            raise
        except WireError as error:
            self._refuse(error)
            raise

    def _handle(self, buffer: bytes) -> bytes:
        with self._lock:
            round = self.context.round
            if self._shut:
                raise Late(f"round {round} has gone on without client {self.client}")
            for answered in self._answered:
                if buffer == answered.request:
                    self.context.ledger.retried(answered.rows)
                    return answered.reply
            if self.finished:
                raise WireError("the stream has ended")
            frame = self._unpack(buffer)
            if (frame.round, frame.client, frame.step) != (round, self.client, self._next):
                before = (frame.round, frame.client) == (round, self.client) and frame.step < self._next
                raise (Late if before else WireError)(
                    f"frame of round {frame.round}, client {frame.client}, step {frame.step}, "
                    f"where {round}, {self.client}, {self._next} is next"
                )
            reply, rows = self._end(frame) if frame.kind == END else self._work(frame)
            self._answered.append(_Answered(buffer, reply.buffer, rows))
        self._done(frame)
        return reply.buffer

    def _refuse(self, why: Refused | WireError) -> None:
        """Take nothing more of the client."""
        self.refused = why
        self.shut()

    def _told(self, error: Diverged | NotFinite) -> Refused:
        if isinstance(error, Diverged):
            return Refused(error.where, error.problem, error.sides)
        return Refused(str(Place(self.context.round, self.client, self._next)), str(error))

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
        reply = pack_done(Place(self.context.round, self.client, self._step))
        rows += self._count(reply, "down", 0)
        self.finished = True
        return reply, rows

    def _count(self, packed: Packed | Frame, direction: Direction, examples: int) -> list[Row]:
        if direction == "up":
            self._up += packed.total
        else:
            self._down += packed.total
        place = (self.context.round, self._step, self.client, direction, "data")
        rows = [Row(*place, role, part) for role, part in self._sizes(packed, examples).items()]  # type: ignore[arg-type]
        self.context.ledger.add(rows)
        return rows

    def attach(self) -> None:
        """Note that the client has a stream, its first or another."""
        self._detached = None

    def close(self) -> None:
        """Note that the client has no stream any more; it may come back. Harmless when called again."""
        if self._detached is None:
            self._detached = self.context.clock()

    def away(self, grace: float) -> bool:
        """Tell whether the client did not finish, and is refused or has had no stream for more than `grace` seconds."""
        if self.refused:
            return True
        return not self.finished and self._detached is not None and self._detached < self.context.clock() - grace

    def shut(self) -> None:
        """Take nothing more, once a mini-batch in progress is done."""
        with self._lock:
            self._shut = True
            self._answered.clear()


class SplitSession(ClientSession):
    """One client's mini-batches of a round, `most` so many, each trained once; `copies` are those of its samples."""

    _trains: ClassVar[str] = "step"  # the kind of frame on which a mini-batch is trained

    def __init__(
        self, context: RoundContext, client: int, trainer: Trainer, most: int | None = None,
        copies: Copies | None = None,
    ) -> None:  # fmt: skip
        super().__init__(context, client)
        self.trainer, self._most, self.copies = trainer, most, copies
        self.batches = self.images = 0  # taken so far
        self.most: dict[str, float] = {}  # the largest magnitude of what it has sent, by role
        self._losses = 0.0  # their sum, in the order in which the client adds them

    def _unpack(self, buffer: bytes) -> Frame:
        return self.context.cut.unpack_up(buffer)

    def _sizes(self, packed: Packed | Frame, examples: int) -> dict[str, Sizes]:
        return self.context.cut.sizes(packed, examples)

    def _work(self, frame: Frame) -> tuple[Packed, list[Row]]:
        batch, rows, key = self._taken(frame)
        gradient, loss = self.context.steps.step(self.trainer, batch, key)
        self._losses += loss
        cut = self.context.cut
        if gradient is None:
            reply = cut.pack_taken(frame, loss)
        else:
            reply = cut.pack_gradient(frame, gradient, loss, key.at("rounding"), batch.visit)
        return reply, rows + self._count(reply, "down", batch.examples)

    @property
    def loss(self) -> float | None:
        """The mean loss of the mini-batches so far, as an honest client counts it; None where it alone knows it."""
        return self._losses / self.batches if self.batches else None

    def _taken(self, frame: Frame) -> tuple[Arrived, list[Row], Key]:
        """Take a mini-batch and count it; return it with its rows and the key of what it draws. Whatever fails from
        here on, its frame is not taken again."""
        if self.batches == self._most:
            raise WireError(f"a mini-batch more than the {self._most} that the images of client {self.client} make")
        batch = self.context.cut.batch(frame, self.copies, answered=self.context.answers(self.batches, frame.place))
        self._step += 1
        self.batches, self.images = self.batches + 1, self.images + batch.examples
        rows = self._count(frame, "up", batch.examples)
        self._note("smashed", self.context.cut.check(batch))
        return batch, rows, self.context.key.at(self.client, self._step)

    def _note(self, role: str, magnitude: float) -> None:
        self.most[role] = max(magnitude, self.most.get(role, 0.0))

    def _end(self, frame: Frame) -> tuple[Packed, list[Row]]:
        reply = super()._end(frame)
        self.context.steps.leave(self.client)
        return reply

    def _refuse(self, why: Refused | WireError) -> None:
        self.context.steps.leave(self.client)  # the others must not wait for it
        super()._refuse(why)

    def _done(self, frame: Frame) -> None:
        if frame.kind == self._trains:
            self.context.trained(self.client)

    def close(self) -> None:
        """Note that the client has no stream any more; it may come back. Harmless when called again."""
        gone = self._detached is None
        super().close()
        if gone:
            self.context.steps.hung_up(self.client)


def away(sessions: Mapping[int, ClientSession], grace: float) -> set[int]:
    """Return the clients who began, did not finish, and are refused or have had no stream for more than `grace`
    seconds."""
    return {client for client, session in sessions.items() if session.away(grace)}
