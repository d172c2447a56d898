"""One client's TCP connection over its link, in simulated time: slow start, idle windows, loss, jitter.

Frames are those of the ledger; headers of TCP, TLS and HTTP/2, some 4 %, are left out. So are what a receiver's window
bounds, and queues in the network.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from splitfed.link.trace import Recording
from splitfed.seeds import Key

SEGMENT = 1448  # bytes in a packet
_FIRST_WINDOW = 10.0 * SEGMENT  # RFC 6928
_MOST_WINDOW = 6.0 * 2**20  # what Linux lets a receiver offer
_LEAST_TIMEOUT = 0.2  # seconds that a retransmission timer has beside the round trip
# CUBIC (RFC 9438): what is left of a window after a loss, and how fast it grows again.
_LEFT, _STEEP = 0.7, 0.4
_FRIENDLY = 3 * (1 - _LEFT) / (1 + _LEFT)
HANDSHAKES = 4  # round trips before the first frame: TCP, TLS 1.3, the settings of HTTP/2, and to be let in
# Round trips that a message of Flower's takes beside the way of its bytes: it is asked for, so are its parts, over
# connections that are made anew after a pause, and what came is confirmed.
MESSAGE = 5


class Line(Protocol):
    """How bytes pass one way."""

    def later(self, seconds: float) -> "Line":
        """Return the line as it is so many seconds later."""
        ...

    def passed(self, start: float, size: float) -> float:
        """Return when the last of so many bytes has passed that wait from `start` on, in seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Steady:
    """A line with the same rate at all times, in bits a second."""

    rate: float

    def later(self, seconds: float) -> Line:
        """Return the line, which is always the same."""
        return self

    def passed(self, start: float, size: float) -> float:
        """Return when the last of these bytes has passed."""
        return start + 8 * size / self.rate


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recording that is `ahead` by so many seconds at the run's beginning."""

    recording: Recording
    ahead: float

    def later(self, seconds: float) -> Line:
        """Return the recording from there on."""
        return Recorded(self.recording, self.ahead + seconds)

    def passed(self, start: float, size: float) -> float:
        """Return when the last of these bytes has passed."""
        return self.recording.passed(start + self.ahead, size) - self.ahead


@dataclass(frozen=True, slots=True)
class Link:
    """Both ways between a client and the server; latency (each way) and jitter in seconds, `loss` a share of
    packets."""

    up: Line
    down: Line
    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0

    @property
    def connecting(self) -> float:
        """Seconds until a new connection takes its first frame."""
        return HANDSHAKES * 2 * self.latency

    @property
    def messaging(self) -> float:
        """Seconds that a message of Flower's takes beside its bytes."""
        return MESSAGE * 2 * self.latency


@dataclass(slots=True)
class Way:
    """One way of a connection, with the state of its sender. What is drawn comes from the key, frame by frame.

    Where it is `joined` with the way back, whoever receives a frame sends something too: window updates and pings of
    HTTP/2, too small to count, that keep its own window from resting."""

    line: Line
    link: Link
    key: Key
    _window: float = _FIRST_WINDOW
    _threshold: float = math.inf  # of the window, below which it doubles
    _largest: float = 0.0  # the window at the last loss, in packets
    _since: float = 0.0  # when it was
    _used: float = -math.inf  # when something was sent last
    _gone: float = 0.0  # and when a frame was
    _opened: float = -math.inf  # when the window was last filled anew, and how much of it was left
    _room: float = 0.0
    _flying: float = 0.0  # what was sent in this window and is acknowledged at that time
    _landed: float = -math.inf
    _spoilt: bool = False  # whether some of it was lost
    _gap: float | None = None  # packets until the next loss
    _draws: Iterator[float] | None = field(default=None)
    _back: "Way | None" = None

    def join(self, back: "Way") -> None:
        """Be the other way of the same stream of gRPC."""
        self._back, back._back = back, self

    def send(self, start: float, size: int, follows: bool = False) -> tuple[float, float]:
        """Send a frame; return when its last byte leaves the line, and how many seconds later it is there. One that
        `follows` others without an answer in between has what they have left of the window, until a round trip is
        over."""
        trip, link = 2 * self.link.latency, self.link
        now = gone = opened = start
        left, late, lost = float(size), 0.0, False
        if follows and start < self._opened + trip:
            opened, room = self._opened, self._room
        else:
            self._acknowledged(trip)
            self._rested(start, trip)
            self._since += max(0.0, start - self._gone)  # CUBIC's clock stands still while nothing is on its way
            room = self._window
        while True:
            if room > 0:
                burst = min(left, room)
                gone = self.line.passed(now, burst)
                left, room = left - burst, room - burst
                lost = self._lost(math.ceil(burst / SEGMENT))
                self._flying, self._landed = self._flying + burst, max(gone, opened + trip)
                if lost:
                    self._spoilt = True
                    self._shrink(gone)
            if left <= 0:
                # What a few packets end with shows its loss to nobody but a timer.
                late = (2 * trip if size <= 3 * SEGMENT else trip) if lost else 0.0
                break
            now = opened = max(gone, opened + trip)
            self._acknowledged(trip)
            room, lost = self._window, False
        self._used = self._gone = gone
        self._opened, self._room = opened, room
        if self._back is not None:
            self._back._answer(start + link.latency, gone + link.latency)
        jitter = link.jitter * (2 * self._drawn() - 1) if link.jitter else 0.0
        return gone, link.latency + late + jitter

    def _acknowledged(self, trip: float) -> None:
        """Take note that all of a window has arrived."""
        if self._flying and not self._spoilt:
            self._grow(self._flying, self._landed, trip)
        self._flying, self._spoilt = 0.0, False

    def _rested(self, now: float, trip: float) -> None:
        """Halve the window for every timeout that nothing was sent in, as Linux does."""
        timeout = trip + _LEAST_TIMEOUT
        idle = now - self._used
        if idle > timeout and self._window > _FIRST_WINDOW:
            self._threshold = max(self._threshold, 0.75 * self._window)
            halvings = min(idle / timeout, 64.0)
            self._window = max(_FIRST_WINDOW, self._window / 2 ** math.floor(halvings))

    def _answer(self, begun: float, ended: float) -> None:
        """Send something now and then, from the moment at which a frame begins to arrive until it has."""
        self._rested(begun, 2 * self.link.latency)
        self._used = max(self._used, ended)

    def _grow(self, burst: float, now: float, trip: float) -> None:
        """Grow as what was sent in a window is acknowledged, unless it had room for twice as much."""
        if 2 * burst < self._window:
            return
        if self._window < self._threshold:
            self._window = min(self._window + burst, self._threshold, _MOST_WINDOW)
            return
        passed = now - self._since
        until = (self._largest * (1 - _LEFT) / _STEEP) ** (1 / 3)
        cubic = self._largest + _STEEP * (passed - until) ** 3
        friendly = self._largest * _LEFT + _FRIENDLY * passed / trip if trip else math.inf
        self._window = max(self._window, min(max(cubic, friendly) * SEGMENT, _MOST_WINDOW))

    def _shrink(self, now: float) -> None:
        self._largest, self._since = self._window / SEGMENT, now
        self._window = self._threshold = max(2.0 * SEGMENT, _LEFT * self._window)

    def _lost(self, packets: int) -> bool:
        """Tell whether one of the next packets is lost."""
        if not self.link.loss:
            return False
        gap = self._until_loss() if self._gap is None else self._gap
        lost = gap <= packets
        while gap <= packets:
            gap += self._until_loss()
        self._gap = gap - packets
        return lost

    def _until_loss(self) -> float:
        """Draw how many packets it takes to the next that is lost."""
        return 1 + math.floor(math.log1p(-self._drawn()) / math.log1p(-self.link.loss))

    def _drawn(self) -> float:
        if self._draws is None:
            self._draws = _uniform(self.key)
        return next(self._draws)


def _uniform(key: Key) -> Iterator[float]:
    generator = key.numpy()
    while True:
        yield from generator.random(64).tolist()
