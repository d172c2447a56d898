"""What tests of the gRPC channel share: a listener on loopback, a connection that can be cut, and certificates."""

import contextlib
import datetime
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock, Thread
from types import SimpleNamespace

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from waiting import LONG

from splitfed.clients.connect import Reach, connect
from splitfed.engines.runtime import ServerTls
from splitfed.server.deployment.grpc_listener import GrpcListener
from splitfed.wire.channel import Invitation, Stream

HOST = "127.0.0.1"


class Door:
    """Opens sessions that answer with what `answer` makes of a frame, and remembers what happened."""

    def __init__(self, answer: Callable[[bytes], bytes] = lambda buffer: buffer, most_bytes: int = 1 << 20) -> None:
        self.answer, self.most_bytes = answer, most_bytes
        self.happened: list[object] = []

    def open(self, client: int, round: int) -> "Door":
        self.happened.append((client, round))
        return self

    def handle(self, buffer: bytes) -> bytes:
        self.happened.append(bytes(buffer))
        return self.answer(buffer)

    def close(self) -> None:
        self.happened.append("closed")


def listen(acceptor, **changes) -> GrpcListener:
    """Return a listener on a free port of loopback."""
    settings = {"host": HOST, "port": 0, "tls": None, "run": "run", "attempt": 1, "streams": 8, "deadline": LONG}
    return GrpcListener(acceptor, **(settings | changes))  # type: ignore[arg-type]


def dial(invitation: Invitation, *, grace: float = 0.0, deadline: float = LONG, ca=None, **more) -> Stream:
    """Open the stream of an invitation, by default without a second try."""
    return connect(invitation, 0, 1, Reach(HOST, ca, deadline, grace), **more)


class Proxy:
    """Stands between a client and a port of loopback, and can cut or freeze their connections."""

    def __init__(self, port: int) -> None:
        self._port, self._lock = port, Lock()
        self._socket = socket.create_server((HOST, 0))
        self.port: int = self._socket.getsockname()[1]
        self.refuse = 0  # so many connections from now on are closed at once
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._frozen: set[socket.socket] = set()
        Thread(target=self._accept, daemon=True).start()

    def through(self, invitation: Invitation) -> Invitation:
        """Return the invitation to come by here."""
        return Invitation(f"grpc:{self.port}", invitation.token)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._socket.accept()
                if self.refuse:
                    self.refuse -= 1
                    near.close()
                    continue
                far = socket.create_connection((HOST, self._port))
                with self._lock:
                    self._pairs.append((near, far))
                for source, target in ((near, far), (far, near)):
                    Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if source not in self._frozen:
                    target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Reset every connection there is."""
        with self._lock:
            for one in (one for pair in self._pairs for one in pair):
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
            self._pairs.clear()

    def freeze(self) -> None:
        """Let nothing pass any more on the connections there are, and tell nobody."""
        with self._lock:
            self._frozen |= {one for pair in self._pairs for one in pair}

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self.cut()


@contextlib.contextmanager
def losing(server, at: int, ahead: int = 0) -> Iterator[tuple[Stream, list[bytes]]]:
    """Dial client 4's stream of round 2 to a split server, so many frames `ahead`; the connection is cut before the
    answer to frame number `at` is out, the end's too. Yield the stream, and every frame that the server handles."""
    handled: list[bytes] = []

    class Losing:
        most_bytes = server.most_bytes

        def open(self, client, round):
            session = server.open(client, round)

            def handle(buffer):
                reply = session.handle(buffer)
                handled.append(buffer)
                if len(handled) == at:
                    proxy.cut()
                return reply

            return SimpleNamespace(handle=handle, close=session.close)

    with (
        listen(Losing(), ahead=ahead) as listener,
        Proxy(listener.port) as proxy,
        dial(proxy.through(listener.invite(4, 2)), grace=20.0, ahead=ahead) as stream,
    ):
        yield stream, handled


def certify(folder: Path, *, days: int = 1, host: str = HOST) -> tuple[Path, ServerTls]:
    """Make a CA and the certificate of a server, valid for so many days from now; return the CA's file and both of the
    server's."""
    folder.mkdir()
    now = datetime.datetime.now(datetime.UTC)
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (f"CA of {folder}", "server")]

    def begin(name: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder(names[0], name, key.public_key(), x509.random_serial_number())
        return builder.not_valid_before(now - datetime.timedelta(9)).not_valid_after(now + datetime.timedelta(days))

    ca = begin(names[0], authority, 9).add_extension(x509.BasicConstraints(True, None), critical=True)
    hosts = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    leaf = begin(names[1], server, days).add_extension(hosts, critical=False)
    pem = serialization.Encoding.PEM
    files = folder / "ca.crt", folder / "server.crt", folder / "server.key"
    files[0].write_bytes(ca.sign(authority, hashes.SHA256()).public_bytes(pem))
    files[1].write_bytes(leaf.sign(authority, hashes.SHA256()).public_bytes(pem))
    files[2].write_bytes(
        server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )  # fmt: skip
    return files[0], ServerTls(*files[1:])
