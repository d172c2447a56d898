"""A forwarder of IP packets between tun devices, run as a program: each way with a rate, a queue, a delay, jitter and
losses of its own. What TCP does about these, the kernels at both ends do.

Its argument is a list of ways, each with two open devices, from which and to which it leads, by number, and a name. A
line of input changes what ways are like, and is answered with what each has counted. It ends with its input.
"""

import json
import os
import random
import select
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field

_MTU, _AT_ONCE = 1500, 64


@dataclass(frozen=True, slots=True)
class Shape:
    """What one way is like: bits of IP packets a second, seconds that a bit is on its way, by how much a packet comes
    earlier or later at most (never before the one ahead of it), the share that is lost, as a seed has it, and the bytes
    that may wait; what comes when they do is dropped."""

    rate: float = 1e9
    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    queue: int = 256_000
    seed: int = 0


@dataclass(slots=True)
class Counted:
    """Packets and bytes that have been forwarded, and packets that found the queue full, or were lost."""

    packets: int = 0
    bytes: int = 0
    dropped: int = 0
    lost: int = 0

    @property
    def taken(self) -> int:
        """All packets that have come and are no longer on their way."""
        return self.packets + self.dropped + self.lost


@dataclass(slots=True)
class Way:
    """One way, as it is now; times are those of the monotonic clock."""

    to: int
    shape: Shape = Shape()
    counted: Counted = field(default_factory=Counted)
    _free: float = 0.0  # when the line will have sent what waits
    _there: float = 0.0  # when the last packet arrives
    _coming: deque[tuple[float, bytes]] = field(default_factory=deque)
    _draw: random.Random = field(default_factory=lambda: random.Random(0))

    def change(self, shape: Shape) -> None:
        """Be like this from the next packet on; losses begin anew."""
        self.shape, self._draw = shape, random.Random(shape.seed)

    def take(self, packet: bytes, now: float) -> None:
        """Take a packet that has come."""
        shape, begins = self.shape, max(now, self._free)
        if (begins - now) * shape.rate / 8 + len(packet) > shape.queue:
            self.counted.dropped += 1
            return
        self._free = begins + 8 * len(packet) / shape.rate
        if shape.loss and self._draw.random() < shape.loss:  # behind the queue, so that it has taken its time
            self.counted.lost += 1
            return
        jitter = shape.jitter * (2 * self._draw.random() - 1) if shape.jitter else 0.0
        self._there = max(self._there, self._free + shape.latency + jitter)
        self._coming.append((self._there, packet))

    def deliver(self, now: float) -> float | None:
        """Hand on what has arrived by now; return when the next will have, None where nothing is on its way."""
        while self._coming and self._coming[0][0] <= now:
            packet = self._coming.popleft()[1]
            with suppress(OSError):  # the device is down: the host is being removed
                os.write(self.to, packet)
            self.counted.packets += 1
            self.counted.bytes += len(packet)
        return self._coming[0][0] if self._coming else None


def forward(ways: dict[str, tuple[int, Way]]) -> None:
    """Forward until the input ends."""
    by_device = dict(ways.values())
    for device in by_device:
        os.set_blocking(device, False)
    poll, unread = select.epoll(), b""
    for number in (0, *by_device):
        poll.register(number, select.EPOLLIN)
    soon: float | None = None
    while True:
        ready = poll.poll(-1 if soon is None else max(0.0, soon - time.monotonic()))
        for number, _ in ready:
            if number:
                _read(number, by_device[number])
                continue
            if not (data := os.read(0, 1 << 16)):
                return
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                for name, shape in json.loads(line).items():
                    ways[name][1].change(Shape(**shape))
                print(json.dumps({name: asdict(way.counted) for name, (_, way) in ways.items()}), flush=True)
        now = time.monotonic()
        soon = min((at for way in by_device.values() if (at := way.deliver(now)) is not None), default=None)


def _read(device: int, way: Way) -> None:
    with suppress(BlockingIOError):
        for _ in range(_AT_ONCE):
            way.take(os.read(device, _MTU), time.monotonic())


if __name__ == "__main__":
    with suppress(OSError):  # before all that only computes: a packet that is read late has been on its way for longer
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    forward({name: (device, Way(to)) for name, device, to in json.loads(sys.argv[1])})
