"""What both ends of the gRPC stream agree on: its name, what its metadata say, and the options of a connection.

One bidirectional stream for each client and round; a message is one frame, as it is. There is nothing else to declare,
so there is no .proto. This module does not import grpc.
"""

from collections.abc import Iterable, Iterator
from queue import Empty, SimpleQueue
from threading import Semaphore, Thread

SERVICE, METHOD = "splitfed.Split", "Exchange"
PATH = f"/{SERVICE}/{METHOD}"

# Raised whenever an older peer could misunderstand a newer one.
PROTOCOL = 2
PROTOCOL_KEY, TOKEN_KEY = "splitfed-protocol", "splitfed-token"

# What a client takes that was told no limit; what a server takes follows from the scenario.
MOST_BYTES = 1 << 30

# A peer that vanished without a word is asked after 10 s, and given up 10 s later.
_KEEPALIVE, _LEAST_BETWEEN_PINGS = 10_000, 5_000


def options(most_bytes: int) -> list[tuple[str, int]]:
    """Return the options of a channel or server that takes messages of at most this many bytes."""
    # Windows are left to gRPC, which probes what a line holds: no option made a stream faster (docs/links.md).
    return [
        ("grpc.max_receive_message_length", most_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", _KEEPALIVE),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE),
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE),  # a minute otherwise, whatever the line above says
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_BETWEEN_PINGS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _LEAST_BETWEEN_PINGS),
        # Two runs must not share a port, and a stream that opens anew must not inherit a broken connection.
        ("grpc.so_reuseport", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        # Only the identity: what a peer compressed would be unpacked before its size is checked.
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]


def endpoint(host: str, port: int | str) -> str:
    """Return `host:port`, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def entry(metadata: Iterable[tuple[str, str | bytes]] | None, key: str) -> str:
    """Return the one text that metadata have under a key, or an empty one."""
    values = [value for name, value in metadata or () if name == key]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else ""


class Arrivals:
    """The messages of a stream, one by one and with a deadline, which gRPC's own iterators do not know.

    A thread reads them, and none before it is asked for, but for as many as may be `ahead`; so a peer that sends more
    fills no memory.
    """

    def __init__(self, messages: Iterable[bytes], ahead: int = 0) -> None:
        self._inbox: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
        self._asked = Semaphore(ahead)
        self._ended: BaseException | None = None
        Thread(target=self._read, args=(iter(messages),), daemon=True, name="splitfed-arrivals").start()

    def _read(self, messages: Iterator[bytes]) -> None:
        try:
            while True:
                self._asked.acquire()
                message = next(messages, None)
                self._inbox.put(message)
                if message is None:
                    return
        except Exception as error:
            self._inbox.put(error)

    def take(self, seconds: float) -> bytes | None:
        """Return the next message, or None after the last.

        Raises TimeoutError where none comes in time, what the stream raised, or what `end` was given.
        """
        self._asked.release()
        try:
            found = self._inbox.get(timeout=seconds)
        except Empty:
            raise TimeoutError(f"nothing arrived within {seconds:g} s") from None
        if self._ended is not None:
            raise self._ended
        if isinstance(found, BaseException):
            raise found
        return found

    def end(self, reason: BaseException) -> None:
        """Let whoever takes, now or later, find this instead of a message; may be called by any thread."""
        self._ended = reason
        self._inbox.put(reason)

    def close(self) -> None:
        """Let the thread go, once the stream itself is over."""
        self._asked.release()
