"""A client's end of the gRPC channel: sends frames, waits for replies, and comes back where the stream breaks."""

import re
import time
from collections import deque
from collections.abc import Iterator
from queue import SimpleQueue

import grpc

from splitfed.errors import Unreached, WireError
from splitfed.wire.channel import Stream
from splitfed.wire.grpc_settings import PATH, PROTOCOL, PROTOCOL_KEY, TOKEN_KEY, Arrivals, entry, options
from splitfed.wire.records import shown

# Seconds in which a server that is there says whether it takes a stream.
_OPENING = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0

# What gRPC and its TLS library say, the more special before the more general.
_TLS_SIGNS = {
    "certificate has expired": "its certificate has expired",
    "certificate is not yet valid": "its certificate is not valid yet; do the clocks agree?",
    "Hostname Verification": "its certificate is for another host",
    "WRONG_VERSION_NUMBER": "it speaks no TLS",
    "Failed to create security handshaker": "the CA file of this client holds no certificate",
    "CERTIFICATE_VERIFY_FAILED": "its certificate does not go back to the CA that this client trusts",
    "certificate signature failure": "its certificate does not go back to the CA that this client trusts",
    "handshake failed": "the TLS handshake fails",
}
_BREAKS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class _Broken(Exception):
    """A stream that may be opened again; its text says what happened to it."""


class GrpcStream(Stream):
    """A client's stream to the split server at `where` (`host:port`), open when it is made.

    `ca` (PEM) is what the server's certificate must go back to; None: no TLS. Up to `ahead` replies are read before
    they are asked for. A stream that breaks is opened again for up to `grace` seconds, and the frames that were not
    answered are sent again, in order. Raises Unreached where that does not help, and where no reply comes within
    `deadline` seconds; any other WireError where the server refuses.
    """

    def __init__(
        self, where: str, token: str, *, ca: bytes | None, deadline: float, grace: float, most_bytes: int,
        ahead: int = 0,
    ) -> None:  # fmt: skip
        self._where, self._ca, self._deadline, self._grace = where, ca, deadline, grace
        self._most_bytes, self._ahead = most_bytes, ahead
        self._metadata = ((PROTOCOL_KEY, str(PROTOCOL)), (TOKEN_KEY, token))
        self._unanswered: deque[bytes] = deque()
        self._call = self._open(_Patience(grace))

    def send(self, buffer: bytes) -> None:
        """Send one frame; whether it got there, its reply tells."""
        self._unanswered.append(buffer)
        self._call.send(buffer)

    def receive(self) -> bytes:
        """Wait for the reply to the earliest frame that has none yet."""
        reply = self._reply()
        self._unanswered.popleft()
        return reply

    def _reply(self) -> bytes:
        patience: _Patience | None = None
        while True:
            try:
                return self._call.receive()
            except _Broken as broken:
                # One patience for a frame: a stream that opens and breaks without an answer does not renew it.
                if patience is None:
                    patience = _Patience(self._grace)
                elif not patience.pause():
                    raise Unreached(f"the stream to {self._where} breaks again and again: {broken}") from None
                self._call.close()
                self._call = self._open(patience)
                for buffer in self._unanswered:
                    self._call.send(buffer)

    def close(self) -> None:
        """End the stream."""
        self._call.close()

    def _open(self, patience: "_Patience") -> "_Call":
        while True:
            try:
                return _Call(self._where, self._ca, self._metadata, self._deadline, self._most_bytes, self._ahead)
            except _Broken as broken:
                if not patience.pause():
                    raise Unreached(f"nobody answers at {self._where}: {broken}") from None


class _Patience:
    """How long a client tries: pauses that grow, for so many seconds in all."""

    def __init__(self, seconds: float) -> None:
        self._until, self._pause = time.monotonic() + seconds, _FIRST_PAUSE

    def pause(self) -> bool:
        """Wait until the next try is due; False at once where none is."""
        if time.monotonic() + self._pause > self._until:
            return False
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True


class _Call:
    """One gRPC call on a connection of its own, from its admission to its end."""

    def __init__(
        self, where: str, ca: bytes | None, metadata: tuple[tuple[str, str], ...], deadline: float, most_bytes: int,
        ahead: int,
    ) -> None:  # fmt: skip
        self._where, self._tls, self._deadline = where, ca is not None, deadline
        if ca is None:
            self._channel = grpc.insecure_channel(where, options(most_bytes))
        else:
            self._channel = grpc.secure_channel(where, grpc.ssl_channel_credentials(ca), options(most_bytes))
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        call = self._channel.stream_stream(PATH)(iter(self._requests.get, None), metadata=metadata)
        self._arrivals = Arrivals(_replies(call, where), ahead)
        try:
            self._take(min(deadline, _OPENING))
        except TimeoutError:
            self.close()
            raise _Broken(f"the server is silent for {min(deadline, _OPENING):g} s") from None
        except Exception:
            self.close()
            raise

    def send(self, buffer: bytes) -> None:
        """Send one frame, when those before it are gone."""
        self._requests.put(buffer)

    def receive(self) -> bytes:
        """Wait for the next reply. Raises _Broken or WireError."""
        try:
            return self._take(self._deadline)
        except TimeoutError:
            raise Unreached(f"nobody answers at {self._where}: no reply within {self._deadline:g} s") from None

    def _take(self, seconds: float) -> bytes:
        try:
            found = self._arrivals.take(seconds)
        except grpc.RpcError as error:
            raise self._told(error) from None
        if found is None:
            raise _Broken("the server has ended the stream")
        return found

    def _told(self, error: grpc.RpcError) -> Exception:
        """Turn a status into a break, which is mended, or a refusal, which is told."""
        code, details = error.code(), error.details() or "no reason given"
        if code not in _BREAKS:
            return WireError(f"the split server at {self._where} refuses: {shown(details)}")
        if self._tls and (wrong := trouble(details)):
            return WireError(f"{self._where} does not prove that it is the server: {wrong}")
        if not self._tls and details.endswith("Socket closed"):
            return _Broken("it closes the connection; if it speaks TLS, this client needs its CA certificate")
        return _Broken(shown(short(details)))

    def close(self) -> None:
        """End the call and its connection."""
        self._requests.put(None)
        self._channel.close()
        self._arrivals.close()


def _replies(call, where: str) -> Iterator[bytes]:
    """Yield an empty message once the server has admitted the stream, and then its replies."""
    if not entry(call.initial_metadata(), PROTOCOL_KEY):
        next(call, None)  # raises the reason, where it was refused
        raise WireError(f"what answers at {where} is no split server")
    yield b""
    yield from call


def trouble(details: str) -> str | None:
    """Return what is wrong with the other end's TLS, as far as gRPC tells, or None where it is something else."""
    return next((told for sign, told in _TLS_SIGNS.items() if sign in details), None)


def short(details: str) -> str:
    """Leave out of gRPC's text what this client says itself: that it failed to connect, and to what."""
    found = re.search(r"last error: \w+: \S+: (.+)", details)
    return found[1] if found else details
