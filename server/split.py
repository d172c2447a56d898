"""The split server: trains the back on what clients send, answers with the cut gradient, and counts both directions."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import nn

from splitfed.cut import Cut
from splitfed.errors import WireError
from splitfed.ledger import Direction, Ledger, Row
from splitfed.precision import autocast
from splitfed.randomness import draws, keyed_rng
from splitfed.seeds import Key
from splitfed.server.backs import BackPool
from splitfed.wire import Frame, Packed, pack


class SplitServer:
    """Opens a session for each client and round; `on_step(round, client)` is called after every mini-batch."""

    def __init__(
        self, pool: BackPool, cut: Cut, ledger: Ledger, key: Key, precision: str,
        on_step: Callable[[int, int], None] = lambda round, client: None,
    ) -> None:  # fmt: skip
        self.pool, self.cut, self.ledger, self.key, self.on_step = pool, cut, ledger, key, on_step
        self.autocast: Callable[[], AbstractContextManager] = lambda: autocast(precision, cut.device)
        self.draws = draws(pool.trainer.back)
        self.examples: dict[int, int] = {}
        self.open_round = 0

    def start_round(self, round: int, lr: float, examples: dict[int, int]) -> None:
        """Accept the streams of these clients, who hold so many examples, for this round only."""
        self.open_round, self.examples = round, examples
        self.pool.open_round(lr)

    def end_round(self) -> None:
        """Settle the round in the pool."""
        self.pool.close_round()
        self.examples = {}

    def open(self, client: int, round: int) -> "SplitSession":
        """Begin a client's round. Raises WireError for a client that the round does not have."""
        if round != self.open_round or client not in self.examples:
            raise WireError(f"client {client} has no part in round {round}")
        return SplitSession(self, client, round)


class SplitSession:
    """One client's mini-batches of a round, in order."""

    def __init__(self, server: SplitServer, client: int, round: int) -> None:
        self._server, self.client, self.round = server, client, round
        self._trainer = server.pool.open(client)
        self._step = 0
        self._up = self._down = 0
        self._open = True

    def handle(self, buffer: bytes) -> bytes:
        """Take a `step` or `end` frame and return the reply. Raises WireError for anything else."""
        if not self._open:
            raise WireError("the stream has ended")
        frame = self._server.cut.unpack_up(buffer)
        self._step += 1
        if (frame.round, frame.client, frame.step) != (self.round, self.client, self._step):
            raise WireError(
                f"frame of round {frame.round}, client {frame.client}, step {frame.step}, "
                f"where {self.round}, {self.client}, {self._step} is next"
            )
        return self._train(frame) if frame.kind == "step" else self._end(frame)

    def _train(self, frame: Frame) -> bytes:
        server, trainer = self._server, self._trainer
        batch = server.cut.batch(frame)
        self._count(frame, "up", batch.examples)
        smashed = batch.smashed.requires_grad_()
        key = server.key.at(self.round, self.client, self._step)
        with keyed_rng(key.at("dropout"), smashed.device, server.draws), server.autocast():
            restored = server.cut.reducer.restore(smashed, batch.side, frame.meta)
            loss = nn.functional.cross_entropy(trainer.back(restored), batch.targets)
        loss.backward()
        trainer.update()
        assert smashed.grad is not None
        reply = server.cut.pack_gradient(frame, smashed.grad, float(loss.detach()), key.at("rounding"))
        self._count(reply, "down", batch.examples)
        server.on_step(self.round, self.client)
        return reply.buffer

    def _end(self, frame: Frame) -> bytes:
        counted = (frame.meta.get("up"), frame.meta.get("down"))
        if counted != (self._up, self._down):
            raise WireError(f"client {self.client} counts {counted} bytes up and down, not {(self._up, self._down)}")
        self._count(frame, "up", 0)
        reply = pack("done", self.round, self.client, self._step, {})
        self._count(reply, "down", 0)
        self._server.pool.commit(self.client, self._trainer, self._server.examples[self.client])
        self._open = False
        return reply.buffer

    def _count(self, packed: Packed | Frame, direction: Direction, examples: int) -> None:
        if direction == "up":
            self._up += packed.total
        else:
            self._down += packed.total
        place = (self.round, self._step, self.client, direction, "data")
        sizes = self._server.cut.sizes(packed, examples)
        self._server.ledger.add([Row(*place, role, part) for role, part in sizes.items()])  # type: ignore[arg-type]

    def close(self) -> None:
        """Drop what an unfinished client trained; harmless when called again."""
        if self._open:
            self._open = False
            self._server.pool.drop(self.client, self._trainer)
