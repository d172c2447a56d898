"""A client's stream to a service: frames go up, answers come down in any order, and what breaks is opened again."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from queue import SimpleQueue

import grpc

from splitfed.compression.expect import Expected
from splitfed.errors import Unreached, WireError
from splitfed.inference.remote.dialling import Dialler, closed
from splitfed.wire.answers import ASK, DEADLINE_KEY, RATE_KEY, heading, path
from splitfed.wire.frame import Packed, count
from splitfed.wire.header import Header

_OPENING = 10.0  # seconds in which a server that is there takes a stream
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0

Reply = tuple[Header, bytes]


class Line:
    """Keeps a stream of a `method` open on which requests go at one `rate`, each with `deadline` seconds; a thread does
    it. `said` is what the server's metadata said when it was opened last. `answers` are the frames that may come down,
    of `most_bytes` at most; `hears` is told direction, role and size of all that crosses. Where nobody answers it tries
    again, with pauses that grow to half a minute, until it is closed. Safe to call from threads."""

    def __init__(
        self, dialler: Dialler, rate: str, deadline: float, answers: Mapping[str, Expected], most_bytes: int,
        hears: Callable[[str, str, int], None], method: str = ASK,
    ) -> None:  # fmt: skip
        self.said: Mapping[str, str] = {}
        self._method = method
        self._dialler, self._rate, self._deadline = dialler, rate, deadline
        self._answers, self._most, self._hears = answers, most_bytes, hears
        self._under_way: dict[int, Future[Reply]] = {}
        self._requests: SimpleQueue[bytes | None] | None = None  # of the open stream
        self._problem: WireError | None = None  # why there is none, and for now will be none
        self._channel: grpc.Channel | None = None
        self._over = False
        self._changed = threading.Condition()
        threading.Thread(target=self._keep, name="splitfed-line", daemon=True).start()

    def ready(self, seconds: float) -> None:
        """Wait until the stream is open. Raises Unreached where it is known not to be, or is not in time, and any other
        WireError where the server refuses this client."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests is not None or self._problem or self._over, max(0, seconds))
            if self._requests is None:
                raise self._why("nobody answers at {} in time")

    def send(self, number: int, packed: Packed) -> "Future[Reply]":
        """Send request `number`, and return what its answer will be in; that raises Unreached where the stream breaks.
        Raises as `ready` does where it is not open."""
        with self._changed:
            if self._requests is None:
                raise self._why("the stream to {} is not open")
            future: Future[Reply] = Future()
            self._under_way[number] = future
            self._requests.put(packed.buffer)
        self._count("up", packed.sizes, packed.envelope)
        return future

    def _why(self, otherwise: str) -> WireError:
        if self._problem is None:
            return Unreached(otherwise.format(self._dialler.where))
        return type(self._problem)(str(self._problem))  # one of its own for each who hears it

    def forget(self, number: int) -> None:
        """Wait no longer for the answer to a request."""
        with self._changed:
            self._under_way.pop(number, None)

    def close(self) -> None:
        """End the stream; who still waits finds that it is over."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
            if self._requests is not None:
                self._requests.put(None)
        closed(self._channel)

    def _keep(self) -> None:
        pause = _FIRST_PAUSE
        while not self._over:
            opened = time.monotonic()
            try:
                self._serve()
                problem: WireError = Unreached(f"{self._dialler.where} has ended the stream")
            except grpc.RpcError as error:
                problem = self._dialler.meaning(error)
            except WireError as error:
                problem = error
            except Exception as error:  # of a channel that was closed meanwhile
                problem = Unreached(f"the stream to {self._dialler.where} broke: {error}")
            was_open = self._end(problem)
            if not isinstance(problem, Unreached):
                return
            if was_open and time.monotonic() - opened > _FIRST_PAUSE:
                pause = _FIRST_PAUSE
            with self._changed:
                self._changed.wait_for(lambda: self._over, pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _serve(self) -> None:
        """Open a stream, and take what comes until it ends."""
        self._channel = channel = self._dialler.channel(self._most)
        requests: SimpleQueue[bytes | None] = SimpleQueue()
        try:
            metadata = (
                *self._dialler.proof(channel, _OPENING), (RATE_KEY, self._rate), (DEADLINE_KEY, f"{self._deadline:g}"),
            )  # fmt: skip
            call = channel.stream_stream(path(self._method))(iter(requests.get, None), metadata=metadata)
            self.said = self._dialler.check_admitted(call)
            with self._changed:
                self._requests, self._problem = requests, None
                self._changed.notify_all()
            self._take(call)
        finally:
            requests.put(None)
            closed(channel)

    def _take(self, call: Iterator[bytes]) -> None:
        for buffer in call:
            header = heading(buffer, self._answers, self._most)
            counted = count(header, len(buffer))
            self._count("down", counted.sizes, counted.envelope)
            with self._changed:
                future = self._under_way.pop(header.step, None)
            if future is not None:  # else nobody waits for it any more
                future.set_result((header, buffer))

    def _end(self, problem: WireError) -> bool:
        """Tell those who wait that the stream is over, and return whether it was open. The first break is mended at
        once; until that fails nobody is told that there is no way."""
        with self._changed:
            was_open = self._requests is not None
            waiting, self._under_way, self._requests = list(self._under_way.values()), {}, None
            if not was_open or not isinstance(problem, Unreached):
                self._problem = problem
            self._changed.notify_all()
        for future in waiting:
            future.set_exception(type(problem)(str(problem)))
        return was_open

    def _count(self, direction: str, sizes: Mapping, envelope: int) -> None:
        for role, part in sizes.items():
            self._hears(direction, role, part.sent)
        self._hears(direction, "envelope", envelope)
