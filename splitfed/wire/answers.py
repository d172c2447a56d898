"""What both ends of a service of answers agree on: its methods, what their metadata say, and what is signed.

A client is greeted with a nonce, signs it, and then either fetches what it computes with, or opens a stream: up go
frames that ask, down come an `answer` to each, in any order, or one of `NOTICES`. Where the service adapts norms by
images, those that a client keeps for it go up on another stream. This module does not import grpc.
"""

from collections.abc import Mapping

from splitfed.compression.codecs.base import Buffer
from splitfed.compression.expect import Expected
from splitfed.wire.frame import Packed, look, pack
from splitfed.wire.header import Header, Scalar

SERVICE = "splitfed.Answers"
GREET, FETCH, ASK, KEEP = "Greet", "Fetch", "Ask", "Keep"

# Raised whenever an older peer could misunderstand a newer one.
PROTOCOL = 2
PROTOCOL_KEY = "splitfed-answers"
CLIENT_KEY, HOST_KEY, NONCE_KEY, SIGNATURE_KEY = "splitfed-client", "splitfed-host", "splitfed-nonce", "splitfed-signed"
RATE_KEY, DEADLINE_KEY = "splitfed-rate", "splitfed-deadline"
KNOWN_KEY, FRONT_KEY, BYTES_KEY = "splitfed-known", "splitfed-front", "splitfed-bytes"
# Which norms the service adapts, if any; and which of the known fronts a fetched one has all else from.
ADAPT_KEY, BASE_KEY = "splitfed-adapt", "splitfed-base"

# In place of an answer: the queue is full, come again after so many milliseconds (`after_ms`); the front is not served
# any more, fetch it anew; the deadline is over; the request is refused (`why`).
BUSY, ANEW, LATE, REFUSED = "busy", "anew", "late", "refused"
NOTICES: dict[str, Expected] = {BUSY: {}, ANEW: {}, LATE: {}, REFUSED: {}}
TAKEN = "taken"  # of a kept image; `model` names the front that is served to this client now
CHUNK = 1 << 18  # bytes of a message of what is fetched
MOST_KNOWN = 8  # fronts that a client says to have
MOST_SECONDS = 3600.0  # of a deadline
_MOST_WHY = 200


def path(method: str) -> str:
    """Return the path of a method."""
    return f"/{SERVICE}/{method}"


def signed(nonce: str, host: str, client: int, authority: str) -> bytes:
    """Return what a client signs: the server's `nonce`, the host that it dialled, who it is, and the fingerprint of the
    CA that it trusts. So what is signed for one server is no use at another."""
    return "\0".join(["splitfed answers", nonce, host, str(client), authority]).encode()


def notice(kind: str, number: int, **meta: Scalar) -> Packed:
    """Encode what answers request `number` in place of an answer."""
    return pack(kind, 0, 0, number, {}, {k: v[:_MOST_WHY] if isinstance(v, str) else v for k, v in meta.items()})


def heading(buffer: Buffer, answers: Mapping[str, Expected], most_bytes: int) -> Header:
    """Read the header of what comes down: one of `answers`, or a notice. Raises WireError for anything else."""
    return look(buffer, {**answers, **NOTICES}, max_bytes=most_bytes)
