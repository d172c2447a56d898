"""What the channel costs beside a bare gRPC stream: 800 kB each way over loopback, codec `float32`, no lossless stage.

    python benchmarks/wire/exchange.py [--exchanges 300] [--threads 1] [--repeats 5]

One exchange of splitfed is what a client and a server do with a mini-batch beyond training: encode, pack, send, check,
decode, and the same back. The bare stream echoes ready bytes of the same length between the same two kinds of process:
client and server are processes of their own in both. They alternate, so that a busy machine slows both; the ratio of
the medians is printed as `ratio plain: 1.35`. The second pair is the same with TLS.
"""

import argparse
import datetime
import ipaddress
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

import grpc
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from splitfed.clients.connect import Reach, connect
from splitfed.compression.codecs.settings import Float32
from splitfed.compression.expect import Expect
from splitfed.compression.lossless import NoStage
from splitfed.engines.runtime import ServerTls
from splitfed.seeds import Key
from splitfed.server.deployment.grpc_listener import GrpcListener
from splitfed.wire.channel import Invitation
from splitfed.wire.frame import pack, unpack

NUMBERS = 200_000
KEY, CODEC, STAGE = Key(0), Float32().build(), NoStage()
EXPECTED = {"step": {"smashed": (Expect.floats(NUMBERS),)}}
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def write(tensor: torch.Tensor) -> bytes:
    """Return a tensor as a frame."""
    return pack("step", 1, 0, 1, {"smashed": (CODEC.encode(tensor, KEY), STAGE)}).buffer


def read(buffer: bytes) -> torch.Tensor:
    """Return the tensor of a frame."""
    return unpack(buffer, EXPECTED, max_bytes=1 << 24).tensors["smashed"]


class Mirror:
    """Decodes what it gets and answers with it, packed anew."""

    most_bytes = 1 << 24

    def open(self, client: int, round: int) -> "Mirror":
        return self

    def handle(self, buffer: bytes) -> bytes:
        return write(read(buffer))

    def close(self) -> None:
        pass


def serve(pipe: Connection, folder: Path, threads: int) -> None:
    """Serve both kinds, with and without TLS, until told to stop; tell the ports first."""
    torch.set_num_threads(threads)
    certificate, key = folder / "server.crt", folder / "server.key"

    def echo(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from requests

    bare = grpc.server(ThreadPoolExecutor(4), options=UNLIMITED)
    handlers = {"Echo": grpc.stream_stream_rpc_method_handler(echo)}
    bare.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", handlers),))
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    ports = [bare.add_insecure_port("127.0.0.1:0"), bare.add_secure_port("127.0.0.1:0", credentials)]
    bare.start()
    common = {"host": "127.0.0.1", "port": 0, "run": "exchange", "attempt": 1, "streams": 4, "deadline": 60.0}
    with (
        GrpcListener(Mirror(), tls=None, **common) as plain,  # type: ignore[arg-type]
        GrpcListener(Mirror(), tls=ServerTls(certificate, key), **common) as tls,  # type: ignore[arg-type]
    ):
        pipe.send((ports, [plain.invite(0, 1), tls.invite(0, 1)]))
        pipe.recv()
    bare.stop(0).wait()


def ours(invitation: Invitation, ca: Path | None, tensor: torch.Tensor, exchanges: int) -> list[float]:
    """Return the seconds of each exchange through frames, listener and dial."""
    seconds = []
    with connect(invitation, 0, 1, Reach("127.0.0.1", ca)) as stream:
        for _ in range(exchanges):
            began = time.perf_counter()
            read(stream.exchange(write(tensor)))
            seconds.append(time.perf_counter() - began)
    return seconds


def bare(port: int, ca: Path | None, buffer: bytes, exchanges: int) -> list[float]:
    """Return the seconds of each exchange on a bare stream."""
    seconds, requests, where = [], SimpleQueue[bytes | None](), f"127.0.0.1:{port}"
    if ca is None:
        channel = grpc.insecure_channel(where, UNLIMITED)
    else:
        channel = grpc.secure_channel(where, grpc.ssl_channel_credentials(ca.read_bytes()), UNLIMITED)
    with channel:
        replies = channel.stream_stream("/bare/Echo")(iter(requests.get, None))
        for _ in range(exchanges):
            began = time.perf_counter()
            requests.put(buffer)
            next(replies)
            seconds.append(time.perf_counter() - began)
        requests.put(None)
    return seconds


def certify(folder: Path) -> None:
    """Write a certificate for 127.0.0.1 that is its own CA, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "exchange")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = builder.add_extension(host, critical=False).sign(key, hashes.SHA256())
    (folder / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "server.key").write_bytes(key.private_bytes(pem, plain, serialization.NoEncryption()))


def main() -> None:
    """Print two ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tensor = torch.randn(NUMBERS, generator=KEY.generator())
    buffer = write(tensor)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certify(folder)
        pipe, theirs = context.Pipe()
        server = context.Process(target=serve, args=(theirs, folder, options.threads))
        server.start()
        ports, invitations = pipe.recv()
        for number, kind in enumerate(("plain", "tls")):
            ca = folder / "server.crt" if kind == "tls" else None
            bares, ourselves = [], []
            for repeat in range(options.repeats + 1):
                first = bare(ports[number], ca, buffer, options.exchanges)
                second = ours(invitations[number], ca, tensor, options.exchanges)
                if repeat:  # the first warms up
                    bares += first
                    ourselves += second
            bottom, top = statistics.median(bares), statistics.median(ourselves)
            print(f"{kind}: {len(buffer)} bytes each way, bare {1e3 * bottom:.2f} ms, splitfed {1e3 * top:.2f} ms")
            print(f"ratio {kind}: {top / bottom:.2f}", flush=True)
        pipe.send(None)
        server.join()


if __name__ == "__main__":
    main()
