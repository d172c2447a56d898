"""How a client comes to a service: the connection, the proof of who it is, and what refusals mean."""

from base64 import b64encode
from contextlib import suppress

import grpc
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from splitfed.clients.deployment.grpc_stream import short, trouble
from splitfed.engines.deployment.tls import ClientFiles, fingerprint
from splitfed.engines.deployment.tls_files import read_ssh_key
from splitfed.errors import Unreached, WireError
from splitfed.wire.answers import (
    CLIENT_KEY,
    GREET,
    HOST_KEY,
    NONCE_KEY,
    PROTOCOL,
    PROTOCOL_KEY,
    SIGNATURE_KEY,
    path,
    signed,
)
from splitfed.wire.grpc_settings import endpoint, entry, options
from splitfed.wire.records import shown

_MOST_NONCE = 200
# What may be otherwise a moment later.
_PASSING = (
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED,
)  # fmt: skip

_TOO_LONG = "larger than max"  # what gRPC says of a message, at either end

Metadata = tuple[tuple[str, str], ...]


class Dialler:
    """Connects to the service at `host`:`port` as a `client`, over TLS with its files, or in plain text without."""

    def __init__(self, host: str, port: int, files: ClientFiles | None, client: int) -> None:
        self.host, self.where, self.client = host, endpoint(host, port), client
        self._ca = files.ca.read_bytes() if files else None
        self._authority = fingerprint(files.ca) if files else ""
        self._key = read_ssh_key(files.key) if files else None

    def channel(self, most_bytes: int) -> grpc.Channel:
        """Return a connection of its own, which takes messages of at most so many bytes."""
        if self._ca is None:
            return grpc.insecure_channel(self.where, options(most_bytes))
        return grpc.secure_channel(self.where, grpc.ssl_channel_credentials(self._ca), options(most_bytes))

    def proof(self, channel: grpc.Channel, seconds: float) -> Metadata:
        """Ask the server for a nonce, and return the metadata of one call that prove who this is. Raises RpcError."""
        spoken = (PROTOCOL_KEY, str(PROTOCOL))
        call = channel.stream_stream(path(GREET))(iter(()), metadata=(spoken,), timeout=seconds)
        nonce = next(call, b"")[:_MOST_NONCE].decode(errors="replace")
        if not nonce.isascii() or not nonce.isprintable():
            raise WireError(f"what answers at {self.where} is no service of splitfed")
        signature = ""
        if self._key is not None:
            text = signed(nonce, self.host, self.client, self._authority)
            signature = b64encode(self._key.sign(text, ec.ECDSA(hashes.SHA256()))).decode()
        return (
            spoken, (CLIENT_KEY, str(self.client)), (HOST_KEY, self.host), (NONCE_KEY, nonce),
            (SIGNATURE_KEY, signature),
        )  # fmt: skip

    def check_admitted(self, call) -> dict[str, str]:
        """Return what a server says that has let a call in. Raises RpcError where it has not, and WireError where this
        is no service."""
        said = call.initial_metadata()
        if entry(said, PROTOCOL_KEY) != str(PROTOCOL):
            next(call, None)  # raises the reason, where it was refused
            raise WireError(f"what answers at {self.where} is no service of splitfed")
        return {key: value for key, value in said if isinstance(value, str)}

    def meaning(self, error: grpc.RpcError) -> WireError:
        """Return what the status of a call means: Unreached is what may pass, any other WireError what does not."""
        code, details = error.code(), error.details() or "no reason given"
        if self._ca is not None and (wrong := trouble(details)):
            return WireError(f"{self.where} does not prove that it is the server: {wrong}")
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return WireError(
                f"what answers at {self.where} is no service of splitfed: is this the port of 'splitfed serve-model'?"
            )
        if _TOO_LONG in details:
            return WireError(f"a message from or to {self.where} is too long: {shown(details)}")
        if code not in _PASSING:
            return WireError(f"the server at {self.where} refuses: {shown(details)}")
        if self._ca is None and details.endswith("Socket closed"):
            return Unreached(f"{self.where} closes the connection: if it speaks TLS, say --tls")
        why = "it is silent" if code == grpc.StatusCode.DEADLINE_EXCEEDED else shown(short(details))
        return Unreached(f"nobody answers at {self.where}: {why}")


def closed(channel: grpc.Channel | None) -> None:
    """Close a connection, whatever state it is in."""
    with suppress(Exception):
        if channel is not None:
            channel.close()
