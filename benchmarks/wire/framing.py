"""What a network adds to our frames: bytes on an interface for each byte of payload, and what they are.

    python benchmarks/wire/framing.py [--megabytes 20]

As root on Linux: two hosts in network namespaces, MTU 1500, no offloads, so that the interface counts what a real wire
would carry, Ethernet's header included (its preamble, checksum and gap, 24 bytes a packet, are not in such counters).
Frames of 100 kB and 800 kB (codec `float32`, no lossless stage) go to a mirror and back: over a bare TCP socket, over
our channel in plain text, and over our channel with TLS. `wire` is the interface's bytes for each byte of payload; the
rest are shares of the payload:

    envelope   our header of a frame
    headers    Ethernet, IPv4 and TCP with timestamps: 66 bytes for each packet that carries data
    ACKs       packets that carry none, 66 bytes each, for what the other direction sent
    resent     packets that TCP sent again
    HTTP/2     what gRPC adds to the frames; for the bare socket, what the other columns leave unexplained
    TLS        what the same frames take more than in plain text

Packets with data and those sent again are counted by the kernel's TCP. All processes share one core: on several, the
virtual wire would change the order of packets, and TCP would send them again.
"""

import argparse
import json
import os
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))

from network.netns import Network, Unavailable, answer, tell

HEADERS, FULL = 14 + 20 + 32, 14 + 1500
SIZES = (100_000, 800_000)
WIDTHS = (9, 8, 7, 8, 8, 7)
CARRIERS = {"tcp": "bare TCP", "plain": "gRPC", "tls": "gRPC, TLS"}


@dataclass(frozen=True, slots=True)
class Way:
    """What left a host: bytes on its interface, packets, those of them with new data, and those that TCP sent again."""

    bytes: int
    packets: int
    data: int
    resent: int

    def __sub__(self, other: "Way") -> "Way":
        return Way(
            self.bytes - other.bytes, self.packets - other.packets, self.data - other.data, self.resent - other.resent
        )  # fmt: skip

    @property
    def stream(self) -> int:
        """Bytes of the TCP stream, if packets that were sent again were full."""
        return self.bytes - HEADERS * self.packets - (FULL - HEADERS) * self.resent


def frame(size: int) -> tuple[bytes, int]:
    """Return a frame of so many bytes of payload, and the length of what is around it."""
    import torch

    from splitfed.compression.codecs.settings import Float32
    from splitfed.compression.lossless import NoStage
    from splitfed.seeds import Key
    from splitfed.wire.frame import pack

    tensor = torch.randn(size // 4, generator=Key(0).generator())
    packed = pack("step", 1, 0, 1, {"smashed": (Float32().build().encode(tensor, Key(0)), NoStage())})
    return packed.buffer, packed.envelope


class Mirror:
    """Answers each frame with itself."""

    most_bytes = 1 << 24

    def open(self, client: int, round: int) -> "Mirror":
        return self

    def handle(self, buffer: bytes) -> bytes:
        return buffer

    def close(self) -> None:
        pass


def take(connection: socket.socket, length: int) -> bytes:
    """Return so many bytes of a TCP stream, or what came until its end."""
    whole = bytearray()
    while len(whole) < length and (part := connection.recv(length - len(whole))):
        whole += part
    return bytes(whole)


def serve(host: str, folder: Path) -> None:
    """Mirror frames over all carriers until a line of input; tell first where."""
    from splitfed.engines.deployment.tls import read_server
    from splitfed.server.deployment.grpc_listener import GrpcListener

    listener = socket.create_server((host, 0))

    def mirror() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                length = int.from_bytes(take(connection, 4), "big")
                while buffer := take(connection, length):
                    connection.sendall(buffer)

    threading.Thread(target=mirror, daemon=True).start()
    common = {"host": host, "port": 0, "run": "framing", "attempt": 1, "streams": 4, "deadline": 60.0}
    with (
        GrpcListener(Mirror(), tls=None, **common) as plain,  # type: ignore[arg-type]
        GrpcListener(Mirror(), tls=read_server(folder).tls, **common) as tls,  # type: ignore[arg-type]
    ):
        invitations = {name: one.invite(0, 1) for name, one in (("plain", plain), ("tls", tls))}
        told = {"tcp": [str(listener.getsockname()[1])]}
        print(json.dumps(told | {name: [one.address, one.token] for name, one in invitations.items()}), flush=True)
        sys.stdin.readline()


def exchange(host: str, folder: Path, carrier: str, size: int, where: list[str]) -> None:
    """Open a connection, and then do as many exchanges as each line of input says."""
    from splitfed.clients.connect import Reach, connect
    from splitfed.engines.deployment.tls import read_client
    from splitfed.wire.channel import Invitation

    buffer, _ = frame(size)
    print("ready", flush=True)
    sys.stdin.readline()
    if carrier == "tcp":
        connection = socket.create_connection((host, int(where[0])))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(len(buffer).to_bytes(4, "big"))
    else:
        ca = read_client(folder / "client-0").ca if carrier == "tls" else None
        stream = connect(Invitation(*where), 0, 1, Reach(host, ca))
    print("open", flush=True)
    for line in sys.stdin:
        for _ in range(int(line)):
            if carrier == "tcp":
                connection.sendall(buffer)
                reply = take(connection, len(buffer))
            else:
                reply = stream.exchange(buffer)
            assert len(reply) == len(buffer)
        print("done", flush=True)


def measure(network: Network, folder: Path, carrier: str, size: int, exchanges: int, where: list[str]) -> list[Way]:
    """Return what opening a connection took, and then the exchanges: up, down, up, down."""
    settings = json.dumps([network.addresses["server"], str(folder), carrier, size, where])
    moments = []
    with network.start("client", sys.executable, __file__, "--be-client", settings) as client:
        if answer(client) != "ready":
            raise SystemExit(f"the client of {carrier} has ended")
        for line in ("", "2", str(exchanges)):  # two exchanges to find their pace
            moments.append([way(network, host) for host in ("client", "server")])
            tell(client, line)
            if not answer(client):
                raise SystemExit(f"the client of {carrier} has ended")
            time.sleep(0.3)  # for acknowledgements that are still to come
        moments.append([way(network, host) for host in ("client", "server")])
        assert client.stdin
        client.stdin.close()
    return [after - before for i in (0, 2) for before, after in zip(moments[i], moments[i + 1], strict=True)]


def way(network: Network, host: str) -> Way:
    """Return what has left a host until now."""
    counts, kernel = network.counts(host), network.statistics(host)
    return Way(counts.sent, counts.packets_sent, kernel["TCPOrigDataSent"], kernel["RetransSegs"])


def report(network: Network, folder: Path, megabytes: int) -> None:
    """Print one table, and what opening a connection takes."""
    from splitfed.engines.deployment.certificates import make

    address = network.addresses["server"]
    make(folder, [address], 1)
    opening = {}
    columns = ("", "frame", "way", "wire", "envelope", "headers", "ACKs", "resent", "HTTP/2", "TLS")
    print("{:10}{:>8}{:>6}{:>9}{:>10}{:>9}{:>8}{:>9}{:>9}{:>8}".format(*columns))
    with network.start("server", sys.executable, __file__, "--be-server", json.dumps([address, str(folder)])) as server:
        where = json.loads(answer(server))
        for size in SIZES:
            exchanges = megabytes * 1_000_000 // size
            payload, (buffer, envelope) = size * exchanges, frame(size)
            plain: dict[str, int] = {}
            for carrier, name in CARRIERS.items():
                *opened, up, down = measure(network, folder, carrier, size, exchanges, where[carrier])
                opening[name] = [one.bytes for one in opened]
                for direction, seen in (("up", up), ("down", down)):
                    added = seen.stream - len(buffer) * exchanges
                    http = plain.setdefault(direction, added) if carrier != "tcp" else added
                    acks, full = seen.packets - seen.data - seen.resent, FULL * seen.resent
                    parts = (envelope * exchanges, HEADERS * seen.data, HEADERS * acks, full, http, added - http)
                    shares = [100 * part / payload for part in parts]
                    cells = [f"{share:{width}.2f}%" for share, width in zip(shares, WIDTHS, strict=True)]
                    print(f"{name:10}{size // 1000:5} kB{direction:>6}{seen.bytes / payload:9.4f}{''.join(cells)}")
        tell(server, "end")
    for name, (up, down) in opening.items():
        print(f"opening a connection, {name}: {up} bytes up, {down} down")


def main() -> None:
    """Make the network, and measure in it; its hosts run this program too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=20, help="payload of each measurement, in each direction")
    for part in ("--be-server", "--be-client"):
        parser.add_argument(part, type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be_server:
        host, folder = options.be_server
        serve(host, Path(folder))
    elif options.be_client:
        host, folder, *rest = options.be_client
        exchange(host, Path(folder), *rest)
    else:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        try:
            with Network("server", "client") as network, tempfile.TemporaryDirectory() as folder:
                report(network, Path(folder) / "tls", options.megabytes)
        except Unavailable as why:
            sys.exit(f"there is no such network here: {why}")


if __name__ == "__main__":
    main()
