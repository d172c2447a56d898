"""Connections of those who have not proved who they are: how many there may be, for how long, and what sees to it.

Neither gRPC nor uvicorn can tell one from another: a silent connection is a file of this process, until it has none
left. So a thread looks at the process's own connections, and hangs up where there are too many.
"""

import ipaddress
import os
import resource
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager, suppress

# A client proves who it is with its first request, a moment after it has connected.
PER_ADDRESS, IN_ALL, SECONDS = 128, 256, 20.0
# Of one who is known: more than a SuperNode has, and than streams that broke leave behind.
EACH = 32
_LOOK_SECONDS = 0.5
_MOST_FILES, _KEPT = 1 << 20, 512

Peer = tuple[str, int]  # address and port


class Strangers:
    """Decides which connections must go: those of strangers after so many `seconds`, the oldest of the address that has
    most, where it has more than `per_address`, or all together more than `in_all`, and the oldest of one who is known
    and has more than `each`. Safe to call from threads."""

    def __init__(
        self, per_address: int = PER_ADDRESS, in_all: int = IN_ALL, seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic, each: int = EACH,
    ) -> None:  # fmt: skip
        self._per_address, self._in_all, self._seconds, self._clock = per_address, in_all, seconds, clock
        self._each = each
        self._since: dict[Peer, float] = {}
        self._unseen: dict[Peer, int] = {}  # of those who are known: in how many looks they were not there
        self._whose: dict[Peer, Hashable] = {}  # in the order in which they became known
        self._lock = threading.Lock()

    def know(self, peer: Peer, who: Hashable = None) -> None:
        """Hear that who is at this connection has proved who it is; None is this machine's own, which has as many as it
        likes."""
        with self._lock:
            self._unseen[peer] = 0
            if who is not None:
                self._whose[peer] = who

    def knows(self, peer: Peer) -> bool:
        """Tell whether who is at this connection has proved who it is."""
        with self._lock:
            return peer in self._unseen

    def surplus(self, there: Collection[Peer]) -> list[Peer]:
        """Return those of the connections that are there now that must go."""
        now = self._clock()
        with self._lock:
            # One that came after the look, and has proved itself since, is not in it yet.
            unseen = {peer: 0 if peer in there else looks + 1 for peer, looks in self._unseen.items()}
            self._unseen = {peer: looks for peer, looks in unseen.items() if looks < 2}
            self._since = {peer: self._since.get(peer, now) for peer in there if peer not in self._unseen}
            since = dict(self._since)
            self._whose = {peer: who for peer, who in self._whose.items() if peer in self._unseen}
            known: dict[Hashable, list[Peer]] = defaultdict(list)
            for peer, who in self._whose.items():
                if peer in there:
                    known[who].append(peer)
        of_address: dict[str, list[Peer]] = defaultdict(list)
        for peer in sorted(since, key=since.__getitem__, reverse=True):
            of_address[peer[0]].append(peer)
        gone = [peer for peers in known.values() for peer in peers[: max(0, len(peers) - self._each)]]
        left = len(since)
        for peers in of_address.values():
            while peers and (len(peers) > self._per_address or now - since[peers[-1]] > self._seconds):
                gone.append(peers.pop())
                left -= 1
        for _ in range(left - self._in_all):
            gone.append(max(of_address.values(), key=len).pop())
        return gone


class Watch:
    """Hangs up on `strangers` among those who are connected to this process at `port`, within its `with` block."""

    def __init__(self, port: int, strangers: Strangers) -> None:
        self._port, self._strangers = port, strangers
        self._over = threading.Event()

    def __enter__(self) -> "Watch":
        threading.Thread(target=self._run, name="strangers", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            there = _connections(self._port)
            for peer in self._strangers.surplus(there):
                with suppress(OSError), _borrowed(there[peer]) as connection:
                    if plain(*connection.getpeername()[:2]) == peer:
                        connection.shutdown(socket.SHUT_RDWR)  # its owner sees that it is over, and closes it


def plain(host: str, port: int) -> Peer:
    """Return one form of an address for every way to write it. Raises ValueError for what is none."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return str(getattr(address, "ipv4_mapped", None) or address), port


def raise_file_limit() -> None:
    """Let this process, and those that it starts, have as many files open as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """Return how many connections leave this process files to work with."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MOST_FILES if soft == resource.RLIM_INFINITY else min(soft, _MOST_FILES)
    return max(files - _KEPT, files // 2)


def _connections(port: int) -> dict[Peer, int]:
    """Return the descriptor of each connection to a port of this process."""
    found: dict[Peer, int] = {}
    for descriptor in _descriptors():
        # Most are no sockets, no connections, or gone by now.
        with suppress(OSError, ValueError), _borrowed(descriptor) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.getsockname()[1] == port:
                found[plain(*one.getpeername()[:2])] = descriptor
    return found


def _descriptors() -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir("/dev/fd"))
    except OSError:  # no file is left, not even for looking
        return list(range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 16)))


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Look at a socket that is somebody else's. Raises OSError where it is none."""
    one = socket.socket(fileno=descriptor)
    try:
        yield one
    finally:
        one.detach()
