"""An evaluation at the split server: who is asked, what the back makes of their images, and their sessions."""

from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING

import torch

from splitfed.errors import WireError
from splitfed.run.ledger import Row, Sizes
from splitfed.server.back.session import Session, away
from splitfed.split.evaluation import Evaluated, EvaluationCut, evaluated
from splitfed.wire.frame import Frame, Packed

if TYPE_CHECKING:
    from splitfed.server.back.server import SplitServer


class Looking:
    """One evaluation, of the back as the last round left it, for clients who hold out so many images each. The back is
    in evaluation mode from when this is made until it is closed. Safe to call from threads."""

    def __init__(self, server: "SplitServer", looks: EvaluationCut, round: int, images: Mapping[int, int]) -> None:
        self._server, self._looks, self._round, self._images = server, looks, round, dict(images)
        self._sessions: dict[int, LookSession] = {}
        self._lock = Lock()
        self._back = server.pool.trainer.back.eval()

    def open(self, client: int, round: int) -> "LookSession":
        """Begin a client's evaluation, or go on with it. Raises WireError for a client that is not asked, or not any
        more."""
        with self._lock:
            if round != self._round or client not in self._images:
                raise WireError(f"client {client} has no part in the evaluation of round {round}, or not any more")
            if client not in self._sessions:
                self._sessions[client] = LookSession(self._server, client, round, self._looks, self._images[client])
            session = self._sessions[client]
            session.detached = None
            return session

    def lost(self, grace: float) -> set[int]:
        """Return the clients who began, did not finish, and have had no stream for more than `grace` seconds."""
        with self._lock:
            return away(self._sessions, self._server.clock() - grace)

    def settle(self, client: int) -> list[Evaluated] | None:
        """End a client's evaluation, and return what the back made of its images, by mini-batch; nothing of them where
        labels are private, and None where it did not come to its end."""
        with self._lock:
            self._images.pop(client, None)
            session = self._sessions.pop(client, None)
        if session is None:
            return None
        session.shut()
        return session.found if session.finished else None

    def close(self) -> None:
        """Let the back train again, and nobody in."""
        for client in list(self._images):
            self.settle(client)
        self._back.train()


class LookSession(Session):
    """One client's mini-batches of an evaluation, in order and each looked at once; `found` is what the back makes of
    them."""

    def __init__(self, server: "SplitServer", client: int, round: int, looks: EvaluationCut, images: int) -> None:
        super().__init__(server, client, round)
        self.found: list[Evaluated] = []
        self._looks, self._left = looks, images

    def _unpack(self, buffer: bytes) -> Frame:
        return self._looks.unpack_up(buffer)

    def _work(self, frame: Frame) -> tuple[Packed, list[Row]]:
        server, back = self._server, self._server.pool.trainer.back
        smashed, labels = self._looks.batch(frame)
        images = len(smashed)
        if images > self._left:
            raise WireError(f"{images} images more, where client {self.client} holds out {self._left}")
        self._left -= images
        self._step += 1
        rows = self._count(frame, "up", images)
        with server.turns_to_look, torch.no_grad(), server.autocast():
            made = back(back.get_submodule("decoder")(smashed))
        if labels is None:
            key = server.key.at("evaluation", self.round, self.client, self._step)
            reply = self._looks.answer_private(frame, made, key)
        else:
            self.found.append(evaluated(made, labels))
            reply = self._looks.answer(frame, self.found[-1])
        return reply, rows + self._count(reply, "down", images)

    def _end(self, frame: Frame) -> tuple[Packed, list[Row]]:
        if self._left:
            raise WireError(f"client {self.client} ends with {self._left} images left of those that it holds out")
        return super()._end(frame)

    def _done(self, frame: Frame) -> None:
        """Nobody watches it step by step."""

    def _sizes(self, packed: Packed | Frame, examples: int) -> dict[str, Sizes]:
        return self._looks.sizes(packed, examples)
