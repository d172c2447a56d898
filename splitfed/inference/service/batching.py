"""Requests wait in a queue that is bounded, and are computed together where they fit: a thread does it all."""

import logging
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from splitfed.errors import Diverged, SplitfedError, WireError
from splitfed.inference.asking import Asked, Asking
from splitfed.inference.service.backs import Back
from splitfed.inference.service.metrics import Metrics
from splitfed.wire.answers import LATE, REFUSED, notice
from splitfed.wire.frame import Packed

log = logging.getLogger(__name__)

_LEAST_PAUSE, _LONGEST_PAUSE = 0.01, 2.0  # seconds after which somebody may come again
_PACE = 0.1  # how much of the mean seconds of a request the newest batch is


class Busy(Exception):
    """The queue is full; `seconds` is about how long it is."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


@dataclass(slots=True, eq=False)
class Request:
    """A frame that asks, of a `client`, for a back at a rate. `until` is the end of its time, by the batcher's clock;
    `answer` hears what comes of it, once, from the batcher's thread: a frame, or why its sender is not to be heard any
    more."""

    client: int
    number: int
    back: Back
    rate: str
    buffer: bytes
    until: float
    answer: Callable[[Packed | WireError], None]
    arrived: float = field(default=0.0)

    @property
    def asking(self) -> Asking:
        """What reads and answers it."""
        return self.back.asking[self.rate]


class Batcher:
    """Answers requests within its `with` block. Up to `queue` wait, of one client up to a quarter of them. Those that
    left after the same block with as many tokens are computed together, however sure exits must be for each of them,
    `batch` images at most; for the others of
    those who are `there` the first waits up to `wait` seconds. With a `batch` of 1 each is computed alone, as it
    came. `kept` hears of images that the model may learn from: whose they are, of which back, and the block after which
    they left, with their tokens `[B, k, D]`."""

    def __init__(
        self, metrics: Metrics, *, batch: int, wait: float, queue: int, there: Callable[[], int],
        kept: Callable[[int, Back, int, Tensor], None] | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._kept = kept
        self._metrics, self._batch, self._wait, self._most, self._there = metrics, batch, wait, queue, there
        self._clock = clock
        self._waiting: deque[Request] = deque()
        self._of: Counter[int] = Counter()
        self._seconds = 0.0  # that a request takes, about
        self._changed = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="splitfed-answers", daemon=True)

    def __enter__(self) -> "Batcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, request: Request) -> None:
        """Let a request wait its turn. Raises Busy where the queue is full, or this client's part of it."""
        with self._changed:
            if len(self._waiting) >= self._most or self._of[request.client] >= max(1, self._most // 4):
                raise Busy(min(_LONGEST_PAUSE, max(_LEAST_PAUSE, self._seconds * len(self._waiting))))
            request.arrived = self._clock()
            self._waiting.append(request)
            self._of[request.client] += 1
            self._changed.notify()

    def _take(self, until: float | None) -> Request | None:
        """Return the next request; None where none comes in time, or with None for `until` ever."""
        with self._changed:
            while not self._waiting:
                left = None if until is None else until - self._clock()
                if self._over or (left is not None and left <= 0):
                    return None
                self._changed.wait(left)
            request = self._waiting.popleft()
            self._of[request.client] -= 1
            if not self._of[request.client]:
                del self._of[request.client]
            return request

    def _run(self) -> None:
        while (first := self._take(None)) is not None:
            started, images = self._clock(), 0
            together: dict[tuple, list[tuple[Request, Asked]]] = defaultdict(list)
            request: Request | None = first
            taken = 0
            while request is not None:
                taken += 1
                if (asked := self._read(request)) is not None:
                    images += len(asked.tokens)
                    together[request.back, asked.block, asked.tokens.shape[1]].append((request, asked))
                if self._batch == 1 or images >= self._batch:
                    break
                # Who has asked already waits for an answer, and sends nothing meanwhile.
                request = self._take(started + self._wait if taken < self._there() else 0.0)
            for group in together.values():
                self._compute(group)
            each = (self._clock() - started) / taken
            self._seconds += (_PACE if self._seconds else 1.0) * (each - self._seconds)

    def _read(self, request: Request) -> Asked | None:
        if self._clock() > request.until:
            self._metrics.count("late")
            request.answer(notice(LATE, request.number))
            return None
        try:
            return request.asking.unpack(request.buffer)
        except WireError as error:
            request.answer(error)
        except Diverged as error:
            self._refuse(request, error.problem)
        except Exception:
            log.exception("a request could not be read")
            self._refuse(request, "an error in the server, which its log tells")
        return None

    def _compute(self, group: list[tuple[Request, Asked]]) -> None:
        started = self._clock()
        try:
            found = group[0][0].asking.answers([asked for _, asked in group])
        except Exception as error:
            if not isinstance(error, SplitfedError):
                log.exception("a batch of requests could not be answered")
            told = str(error) if isinstance(error, SplitfedError) else "an error in the server, which its log tells"
            for request, _ in group:
                self._refuse(request, told)
            return
        now = self._clock()
        images = sum(len(asked.tokens) for _, asked in group)
        self._metrics.batch(len(group), images, now - started)
        for (request, asked), answer in zip(group, found, strict=True):
            self._metrics.answered(asked.block, answer.exits, now - request.arrived)
            request.answer(answer)
            if self._kept is not None and asked.kept:
                self._kept(request.client, request.back, asked.block, asked.tokens[list(asked.kept)])

    def _refuse(self, request: Request, why: str) -> None:
        self._metrics.count("refused")
        request.answer(notice(REFUSED, request.number, why=why))
