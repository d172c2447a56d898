"""Opens a client's stream to the split server, by whatever carries it."""

import math
import re
import socket
import ssl
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from splitfed.engines.deployment.diagnosis import explain
from splitfed.errors import WireError
from splitfed.wire.channel import Invitation, Stream, connect_inline
from splitfed.wire.grpc_settings import MOST_BYTES, endpoint
from splitfed.wire.records import shown


@dataclass(frozen=True, slots=True)
class Reach:
    """How a client gets to its server: the host that it joined, the CA certificate that its server must prove itself by
    (None: no TLS), and how many seconds it waits for a reply and tries to come back when a stream breaks."""

    host: str | None = None
    ca: Path | None = None
    deadline: float = 600.0
    grace: float = 10.0


def connect(
    invitation: Invitation, client: int, round: int, reach: Reach, most_bytes: int = MOST_BYTES, ahead: int = 0
) -> Stream:  # fmt: skip
    """Open a client's stream for a round, for replies of at most `most_bytes`, of which up to `ahead` wait here.

    Raises WireError where it is refused, nobody listens, or the server does not prove who it is.
    """
    if invitation.address.startswith("inline:"):
        return connect_inline(invitation.address, client, round)
    host, port = target(invitation.address, reach)
    try:
        ca = reach.ca.read_bytes() if reach.ca else None
    except OSError as error:
        raise WireError(f"{reach.ca}: {error.strerror}; the server proves itself by it") from None
    if ca is not None and b"-----BEGIN CERTIFICATE-----" not in ca:
        raise WireError(f"{reach.ca} holds no certificate")  # gRPC would take any CA that the system trusts
    from splitfed.clients.deployment.grpc_stream import GrpcStream  # grpc is loaded only where it is used

    return GrpcStream(
        endpoint(host, port), invitation.token,
        ca=ca, deadline=reach.deadline, grace=reach.grace, most_bytes=most_bytes, ahead=ahead,
    )  # fmt: skip


class Measured(Stream):
    """A stream whose exchanges are timed: `waited` seconds for all answers, of which the `shortest` stands for what has
    nothing to do with bytes."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.waited, self.shortest, self._bytes, self._exchanges = 0.0, math.inf, 0, 0
        # When frames that have no reply yet were sent, and when the last reply came.
        self._sent, self._answered = deque[float](), -math.inf

    def close(self) -> None:
        """End the stream."""
        self._stream.close()

    def send(self, buffer: bytes) -> None:
        """Send one frame."""
        self._sent.append(time.monotonic())
        self._stream.send(buffer)
        self._bytes += len(buffer)

    def receive(self) -> bytes:
        """Wait for the reply to the earliest frame that has none yet: that takes from when it was sent, or the one
        before it was answered."""
        reply = self._stream.receive()
        now = time.monotonic()
        took, self._answered = now - max(self._sent.popleft(), self._answered), now
        self.waited, self.shortest = self.waited + took, min(self.shortest, took)
        self._bytes, self._exchanges = self._bytes + len(reply), self._exchanges + 1
        return reply

    @property
    def throughput(self) -> float | None:
        """Bytes a second both ways; None where nothing was measured."""
        left = self.waited - self._exchanges * self.shortest if self._exchanges else 0.0
        return self._bytes / left if left > 0 else None


def target(address: str, reach: Reach) -> tuple[str, int]:
    """Return the host and port that a `grpc:` address means for this client. Raises WireError where it means none."""
    scheme, _, rest = address.partition(":")
    host, _, port = rest.rpartition(":")
    if scheme != "grpc" or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise WireError(f"{address[:80]}: no way to reach such an address is known")
    host = host.removeprefix("[").removesuffix("]") or reach.host or ""
    if not host:
        raise WireError(f"{address}: the server names no host, and this client has joined none")
    return host, int(port)


# How HTTP/2, which carries gRPC, begins: the client's preface with empty settings, and the server's own settings.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS, _HEADER_BYTES = 4, 9


def probe(address: str, reach: Reach, timeout: float = 10.0) -> None:
    """Connect to where an invitation's address leads, and hear whether a split server may be there; `timeout` is in
    seconds, for each step. Raises WireError with what is in the way. An address in this process needs no try."""
    if address.startswith("inline:"):
        return
    host, port = target(address, reach)
    where = f"the split port {endpoint(host, port)}"
    context = _trust(reach.ca) if reach.ca else None
    try:
        with socket.create_connection((host, port), timeout) as plain:
            if context is None:
                _greet(
                    plain,
                    f"{where} does not answer as a split server; it may want TLS, for which this client has no CA",
                )
                return
            with context.wrap_socket(plain, server_hostname=host) as secure:
                _greet(secure, f"{where} speaks TLS, but is no split server")
    except ssl.SSLError as error:
        raise WireError(f"{where}: {explain(error) or shown(str(error))}") from None
    except (socket.gaierror, UnicodeError):
        raise WireError(f"cannot reach {where}: no machine of this name is known") from None
    except ConnectionRefusedError:
        raise WireError(f"cannot reach {where}: connection refused; is it open in the firewall?") from None
    except TimeoutError:
        raise WireError(f"cannot reach {where}: no answer in {timeout:g} s; is it open in the firewall?") from None
    except ConnectionError as error:
        raise WireError(f"{where} hangs up ({error.strerror}): is it the one of splitfed serve?") from None
    except OSError as error:
        raise WireError(f"cannot reach {where}: {error.strerror or error}") from None


def _trust(ca: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except OSError as error:  # ssl's own errors too
        raise WireError(f"{ca}: {error.strerror or error}; the server proves itself by it") from None
    context.set_alpn_protocols(["h2"])
    return context


def _greet(connection: socket.socket, problem: str) -> None:
    """Speak as gRPC does at first. Raises WireError where the answer is not that of its server."""
    connection.sendall(_PREFACE)
    answer = b""
    while len(answer) < _HEADER_BYTES and (more := connection.recv(_HEADER_BYTES - len(answer))):
        answer += more
    if len(answer) < _HEADER_BYTES or answer[3] != _SETTINGS:
        raise WireError(problem)
