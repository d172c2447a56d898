"""An evaluation at the split server: who is asked, what the back makes of their images, and their sessions."""

from collections.abc import Mapping
from threading import Lock

from torch import nn

from splitfed.errors import Refused, WireError
from splitfed.run.ledger import Row, Sizes
from splitfed.server.back.pools import Trainer
from splitfed.server.back.round_context import RoundContext
from splitfed.server.back.session import ClientSession, away
from splitfed.split.evaluation import Evaluated, EvaluationCut, evaluated
from splitfed.wire.frame import Frame, Packed


class EvaluationRound:
    """One evaluation, of the back as the last round left it, for clients who hold out so many images each. The back is
    in evaluation mode from when this is made until it is closed. Some have a cut of their `own`. Safe to call from
    threads."""

    def __init__(
        self, context: RoundContext, cut: EvaluationCut, trainer: Trainer, images: Mapping[int, int],
        own: Mapping[int, EvaluationCut],
    ) -> None:  # fmt: skip
        self._context, self._cut, self._trainer, self._images = context, cut, trainer, dict(images)
        self._own = own
        trainer.back.eval()
        self._sessions: dict[int, EvaluationSession] = {}
        self.refused: dict[int, Refused | WireError] = {}  # clients that were settled, and had been refused
        self._lock = Lock()

    def open(self, client: int, round: int) -> "EvaluationSession":
        """Begin a client's evaluation, or go on with it. Raises WireError for a client that is not asked, or not any
        more."""
        with self._lock:
            if round != self._context.round or client not in self._images:
                raise WireError(f"client {client} has no part in the evaluation of round {round}, or not any more")
            if client not in self._sessions:
                images, back = self._images[client], self._trainer.behind(client)
                cut = self._own.get(client, self._cut)
                self._sessions[client] = EvaluationSession(self._context, client, cut, back, images)
            session = self._sessions[client]
            session.attach()
            return session

    def begun(self) -> set[int]:
        """Return the clients who have opened a stream, and are not settled."""
        with self._lock:
            return set(self._sessions)

    def lost(self, grace: float) -> set[int]:
        """Return the clients who began, did not finish, and have had no stream for more than `grace` seconds."""
        with self._lock:
            return away(self._sessions, grace)

    def settle(self, client: int) -> list[Evaluated] | None:
        """End a client's evaluation, and return what the back made of its images, by mini-batch; nothing of them where
        labels are private, and None where it did not come to its end."""
        with self._lock:
            self._images.pop(client, None)
            session = self._sessions.pop(client, None)
        if session is None:
            return None
        session.shut()
        if session.refused:
            self.refused[client] = session.refused
        return session.found if session.finished else None

    def close(self) -> None:
        """Let the back train again, and nobody in."""
        for client in list(self._images):
            self.settle(client)
        self._trainer.back.train()


class EvaluationSession(ClientSession):
    """One client's mini-batches of an evaluation, in order and each evaluated once; `found` is what the back makes of
    them."""

    def __init__(self, context: RoundContext, client: int, cut: EvaluationCut, back: nn.Module, images: int) -> None:
        super().__init__(context, client)
        self.found: list[Evaluated] = []
        self._cut, self._back, self._left = cut, back, images

    def _unpack(self, buffer: bytes) -> Frame:
        return self._cut.unpack_up(buffer)

    def _work(self, frame: Frame) -> tuple[Packed, list[Row]]:
        looked = self._cut.batch(frame)
        images = len(looked.smashed)
        if images > self._left:
            raise WireError(f"{images} images more, where client {self.client} holds out {self._left}")
        self._left -= images
        self._step += 1
        rows = self._count(frame, "up", images)
        made = self.context.passes.evaluate(self._back, looked.smashed)
        if looked.labels is None:
            key = self.context.key.at(self.client, self._step)
            reply = self._cut.answer_private(frame, made, key, looked.lengths)
        else:
            self.found.append(evaluated(made, looked.labels))
            reply = self._cut.answer(frame, self.found[-1], images)
        return reply, rows + self._count(reply, "down", images)

    def _end(self, frame: Frame) -> tuple[Packed, list[Row]]:
        if self._left:
            raise WireError(f"client {self.client} ends with {self._left} images left of those that it holds out")
        return super()._end(frame)

    def _done(self, frame: Frame) -> None:
        """Nobody watches it step by step."""

    def _sizes(self, packed: Packed | Frame, examples: int) -> dict[str, Sizes]:
        return self._cut.sizes(packed, examples)
