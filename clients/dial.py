"""Opens a client's stream to the split server, by whatever carries it."""

import re
from dataclasses import dataclass
from pathlib import Path

from splitfed.channel import Invitation, Stream, connect_inline
from splitfed.errors import WireError
from splitfed.rpc import MOST_BYTES, endpoint


@dataclass(frozen=True, slots=True)
class Reach:
    """How a client gets to its server: the host that it joined, the CA certificate that its server must prove itself by
    (None: no TLS), and how many seconds it waits for a reply and tries to come back when a stream breaks."""

    host: str | None = None
    ca: Path | None = None
    deadline: float = 600.0
    grace: float = 10.0


def connect(
    invitation: Invitation, client: int, round: int, reach: Reach, most_bytes: int = MOST_BYTES
) -> Stream:  # fmt: skip
    """Open a client's stream for a round, for replies of at most `most_bytes`.

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
    from splitfed.clients.stream import GrpcStream  # grpc is loaded only where it is used

    return GrpcStream(
        endpoint(host, port), invitation.token,
        ca=ca, deadline=reach.deadline, grace=reach.grace, most_bytes=most_bytes,
    )  # fmt: skip


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
