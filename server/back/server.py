"""The split server: whose round is open, who trains in it or evaluates after it, and what becomes of what they
trained."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from threading import Lock

from splitfed.errors import WireError
from splitfed.model.forward import autocast, draws
from splitfed.run.ledger import Ledger
from splitfed.seeds import Key
from splitfed.server.back.evaluation_session import Looking
from splitfed.server.back.joint_steps import Joint
from splitfed.server.back.pools import BackPool
from splitfed.server.back.private_session import PrivateSession
from splitfed.server.back.session import Session, SplitSession, away
from splitfed.server.back.steps import Alone, Training, Turns
from splitfed.split.cut import Cut
from splitfed.split.evaluation import Looks


class SplitServer:
    """Opens a session for each client of the round, and keeps it while its streams come and go; safe to call from
    threads.

    `on_step(round, client)` is called after every mini-batch, by one thread at a time. At most `at_once` mini-batches
    train at the same time, and one where they must not: on a shared back, on a GPU, or where the back draws random
    numbers, for which torch's global generator is seeded. A pool that trains clients `together` joins their
    mini-batches, which wait for each other with `patience` (see `Joint`). `clock` tells
    seconds. `looks` carries the evaluations of clients, where they make any.
    """

    def __init__(
        self, pool: BackPool, cut: Cut, ledger: Ledger, key: Key, precision: str,
        on_step: Callable[[int, int], None] = lambda round, client: None, at_once: int = 1,
        clock: Callable[[], float] = time.monotonic, patience: float | None = None, looks: Looks | None = None,
    ) -> None:  # fmt: skip
        self.pool, self.cut, self.ledger, self.key, self.on_step, self.clock = pool, cut, ledger, key, on_step, clock
        self.reporting = Lock()
        drawing = draws(pool.trainer.back)
        self.autocast: Callable[[], AbstractContextManager] = lambda: autocast(precision, cut.device)
        how = self.autocast, drawing
        one = pool.one_at_a_time or drawing or cut.device.type != "cpu"
        self.training: Training = (
            Joint(cut.reducer, *how, patience) if pool.together
            else Alone(cut.reducer, *how, Turns(1 if one else at_once))
        )  # fmt: skip
        self.examples: dict[int, int] = {}
        self.open_round = 0
        self.most_bytes = max(cut.most_bytes, looks.most_bytes if looks else 0)
        self.turns_to_look = Turns(at_once if cut.device.type == "cpu" else 1)
        self._looks = looks
        self._looking: Looking | None = None
        self._sessions: dict[int, SplitSession] = {}
        self._lock = Lock()

    def start_round(self, round: int, lr: float, examples: dict[int, int]) -> None:
        """Accept the streams of these clients, who hold so many examples, for this round only."""
        with self._lock:
            self.pool.open_round(lr, sorted(examples))
            self.open_round, self.examples, self._sessions = round, dict(examples), {}
            self.training.begin(examples)

    def start_wave(self, clients: Collection[int]) -> None:
        """Expect mini-batches of these clients of the round alone, until the next wave: they train at once."""
        self.training.begin(clients)

    def open(self, client: int, round: int) -> Session:
        """Begin a client's round, or its evaluation, or go on with it. Raises WireError for a client that has no part
        in it, or not any more."""
        if (looking := self._looking) is not None:
            return looking.open(client, round)
        with self._lock:
            if round != self.open_round or client not in self.examples:
                raise WireError(f"client {client} has no part in round {round}, or not any more")
            if client not in self._sessions:
                kind = PrivateSession if self.cut.private else SplitSession
                self._sessions[client] = kind(self, client, round, self.pool.open(client))
            session = self._sessions[client]
            session.detached = None
            return session

    def lost(self, grace: float) -> set[int]:
        """Return the clients who began, did not finish, and have had no stream for more than `grace` seconds."""
        with self._lock:
            return away(self._sessions, self.clock() - grace)

    def settle(self, client: int, taken: bool) -> bool:
        """End a client's round: hand what it trained to the pool if its reply was `taken` and its stream was finished,
        and drop it otherwise. Return whether it was handed over.

        Waits for a mini-batch in progress; nothing is taken from the client afterwards. Harmless when called again, and
        for a client that never came.
        """
        with self._lock:
            examples, session = self.examples.pop(client, None), self._sessions.pop(client, None)
        if examples is None:
            return False
        self.training.leave(client)  # it may wait for others: `shut` would wait with it
        if session:
            session.shut()
        with self._lock:
            if session and taken and session.finished:
                self.pool.commit(client, session.trainer, examples)
                return True
            self.pool.drop(client, session.trainer if session else None)
            return False

    def end_round(self) -> None:
        """Settle who is left as not taken, and then the round, in the pool."""
        for client in sorted(self.examples):
            self.settle(client, taken=False)
        with self._lock:
            self.pool.close_round()

    @contextmanager
    def evaluation(self, round: int, images: Mapping[int, int]) -> Iterator[Looking]:
        """Accept streams of these clients, who hold out so many images each, for the evaluation after a round, and no
        others while the `with` block lasts."""
        assert self._looks is not None
        self._looking = Looking(self, self._looks, round, images)
        try:
            yield self._looking
        finally:
            self._looking.close()
            self._looking = None
