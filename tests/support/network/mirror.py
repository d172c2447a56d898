"""A mirror for frames and its visitor, run as programs: how long an exchange takes over a bare TCP socket, and over our
channel. The argument is an `Errand` as JSON; output is lines of JSON."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from splitfed.wire.grpc_settings import options

TCP_PORT = 5000


@dataclass(frozen=True, slots=True)
class Errand:
    """What to be, at which server, by `tcp` or `grpc`; so many exchanges of frames of so many bytes each way; what gRPC
    is told beside our options."""

    be: str
    server: str
    carrier: str = ""
    size: int = 0
    exchanges: int = 0
    invitation: tuple[str, str] = ("", "")
    more: tuple[tuple[str, int], ...] = ()

    def text(self) -> str:
        """Return it as an argument."""
        return json.dumps(asdict(self))


class Mirror:
    """Answers each frame with itself."""

    most_bytes = 1 << 26

    def open(self, client: int, round: int) -> "Mirror":
        return self

    def handle(self, buffer: bytes) -> bytes:
        return buffer

    def close(self) -> None:
        pass


def _take(connection: socket.socket, length: int) -> bytes:
    whole = bytearray()
    while len(whole) < length and (part := connection.recv(length - len(whole))):
        whole += part
    return bytes(whole)


def _mirror(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            length = int.from_bytes(_take(connection, 4), "big")
            while buffer := _take(connection, length):
                connection.sendall(buffer)


def serve(errand: Errand) -> None:
    """Mirror until the input ends; tell the invitation first."""
    from splitfed.server.deployment import grpc_listener

    grpc_listener.options = lambda most: [*options(most), *errand.more]
    threading.Thread(target=_mirror, args=(socket.create_server((errand.server, TCP_PORT)),), daemon=True).start()
    with grpc_listener.GrpcListener(
        Mirror(), host=errand.server, port=0, tls=None, run="mirror", attempt=1, streams=1, deadline=60.0
    ) as listener:  # fmt: skip
        invitation = listener.invite(0, 1)
        print(json.dumps([invitation.address, invitation.token]), flush=True)
        sys.stdin.read()


def visit(errand: Errand) -> None:
    """Exchange frames; print the seconds of each."""
    exchange, buffer, seconds = _way(errand), os.urandom(errand.size), []
    for _ in range(errand.exchanges):
        began = time.monotonic()
        assert len(exchange(buffer)) == errand.size
        seconds.append(time.monotonic() - began)
    print(json.dumps(seconds), flush=True)


def _way(errand: Errand) -> Callable[[bytes], bytes]:
    if errand.carrier == "grpc":
        from splitfed.clients.connect import Reach, connect
        from splitfed.clients.deployment import grpc_stream
        from splitfed.wire.channel import Invitation

        grpc_stream.options = lambda most: [*options(most), *errand.more]
        return connect(Invitation(*errand.invitation), 0, 1, Reach(errand.server, deadline=60.0)).exchange
    connection = socket.create_connection((errand.server, TCP_PORT))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(errand.size.to_bytes(4, "big"))

    def exchange(buffer: bytes) -> bytes:
        connection.sendall(buffer)
        return _take(connection, len(buffer))

    return exchange


if __name__ == "__main__":
    given = Errand(**json.loads(sys.argv[1]))
    {"server": serve, "visitor": visit}[given.be](given)
