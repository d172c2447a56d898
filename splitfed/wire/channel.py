"""The data plane's transport: who listens for mini-batches, and how a client reaches it.

A `Stream` is one client's connection for one round: frames up, a reply down for each. The same bytes cross whatever
carries them. An address names the carrier by its scheme; `inline:` is a call in this process.
"""

import itertools
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from splitfed.errors import WireError


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a training message tells a client about the channel: where it is, and the token that admits it.

    Addresses are `inline:<number>`, `grpc:<port>` (at the host that the client joined) or `grpc:<host>:<port>`."""

    address: str
    token: str = ""


class Session(Protocol):
    """Server end of one client's round; it may outlive a stream that breaks."""

    def handle(self, buffer: bytes) -> bytes:
        """Take one frame and return the reply."""
        ...

    def close(self) -> None:
        """The stream is over, whether or not the client finished its round; harmless when called again."""
        ...


class Acceptor(Protocol):
    """Whatever opens sessions: the split server."""

    most_bytes: int

    def open(self, client: int, round: int) -> Session:
        """Begin a client's round, or go on with it over a new stream."""
        ...


class Listener(Protocol):
    """Makes an acceptor reachable for as long as its `with` block lasts."""

    def invite(self, client: int, round: int) -> Invitation:
        """Return what a client must know to open its stream for a round."""
        ...

    def __enter__(self) -> "Listener": ...

    def __exit__(self, *_: object) -> None: ...


class Stream(ABC):
    """Client end of one stream; a context manager that closes it. Replies come in the order of their frames."""

    @abstractmethod
    def send(self, buffer: bytes) -> None:
        """Send one frame, also while earlier ones have no reply yet."""

    @abstractmethod
    def receive(self) -> bytes:
        """Wait for the reply to the earliest frame that has none yet."""

    def exchange(self, buffer: bytes) -> bytes:
        """Send one frame and wait for the reply."""
        self.send(buffer)
        return self.receive()

    @abstractmethod
    def close(self) -> None:
        """End the stream."""

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class InlineStream(Stream):
    """A stream within this process; it passes the very bytes that a network would carry. A frame is taken as it is
    sent."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._replies: deque[bytes] = deque()

    def send(self, buffer: bytes) -> None:
        """Have one frame taken."""
        self._replies.append(self._session.handle(buffer))

    def receive(self) -> bytes:
        """Return the reply to the earliest frame that has none yet."""
        return self._replies.popleft()

    def close(self) -> None:
        """End the stream."""
        self._session.close()


_listening: dict[str, Acceptor] = {}
_numbers = itertools.count(1)


class InlineListener:
    """Makes a split server reachable within this process, for as long as the `with` block lasts."""

    def __init__(self, acceptor: Acceptor) -> None:
        # Of one length: the address travels in messages that are counted, and a run must send the same bytes again.
        self.address = f"inline:{next(_numbers):06d}"
        self._acceptor = acceptor

    def invite(self, client: int, round: int) -> Invitation:
        """Return the address alone: whoever is in this process needs no token."""
        return Invitation(self.address)

    def __enter__(self) -> "InlineListener":
        _listening[self.address] = self._acceptor
        return self

    def __exit__(self, *_: object) -> None:
        _listening.pop(self.address, None)


def connect_inline(address: str, client: int, round: int) -> Stream:
    """Open a client's stream for a round. Raises WireError where nobody listens."""
    if address not in _listening:
        raise WireError(f"nobody listens at {address}")
    return InlineStream(_listening[address].open(client, round))
