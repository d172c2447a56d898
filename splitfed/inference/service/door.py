"""Whom a service lets in: a client that signs a fresh nonce with its key, or where there are no keys anybody.

A nonce is made and checked with a secret of this process, so strangers who ask for many fill no memory; one that was
used is remembered until it expires.
"""

import hmac
import secrets
import threading
import time
from base64 import b64decode
from binascii import Error as NoBase64
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from splitfed.engines.deployment.tls import ServerFiles, check_host, fingerprint, read_server
from splitfed.errors import TlsError, WireError
from splitfed.wire.answers import signed

LIFETIME = 30.0  # seconds in which a client signs
_MOST_CLIENT = 10**9


class Door:
    """Checks who asks, by the files in `tls`, or lets everybody in where it is None. Raises TlsError for files that
    are unfit, and where `host` is none that the certificate names. Safe to call from threads."""

    def __init__(
        self, tls: Path | None, host: str, lifetime: float = LIFETIME, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder, self._host, self._lifetime, self._clock = tls, host, lifetime, clock
        self._secret = secrets.token_bytes(32)
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()
        self.files: ServerFiles | None = None
        self._keys: dict[int, ec.EllipticCurvePublicKey] = {}
        self.reload()

    def reload(self) -> None:
        """Read the files anew: who is not listed any more is not let in again. Raises TlsError; those that were read
        before stay."""
        if self._folder is None:
            return
        files = read_server(self._folder)
        check_host(files, self._host)
        self._authority = fingerprint(files.ca)
        self._keys = {client: _key(text) for client, text in files.clients.items()}
        self.files = files

    def knows(self, client: int) -> bool:
        """Tell whether a client would be let in, if it is the one that it says."""
        return self._folder is None or client in self._keys

    def nonce(self) -> str:
        """Return what a client is to sign."""
        told = f"{int(1000 * (self._clock() + self._lifetime))}.{secrets.token_hex(16)}"
        return f"{told}.{self._mac(told)}"

    def check(self, client: str, host: str, nonce: str, signature: str) -> int:
        """Return which client asks. Raises WireError, with a reason that gives nothing away, for one that does not
        prove it."""
        number = int(client) if client.isascii() and client.isdecimal() and len(client) < 10 else -1
        if number < 0:
            raise WireError("a stream needs a client's number")
        self._use(nonce)
        if self._folder is None:
            return number
        assert self.files is not None
        try:
            check_host(self.files, host)
        except TlsError:
            raise WireError("the signature is for another server") from None
        key = self._keys.get(number)
        with suppress(InvalidSignature, NoBase64, ValueError):
            if key is not None:
                text = signed(nonce, host, number, self._authority)
                key.verify(b64decode(signature, validate=True), text, ec.ECDSA(hashes.SHA256()))
                return number
        raise WireError(f"this server does not know the key of client {number}")

    def _use(self, nonce: str) -> None:
        """Take a nonce, once. Raises WireError."""
        told, _, mac = nonce.rpartition(".")
        if len(nonce) > 200 or not nonce.isascii() or not hmac.compare_digest(mac, self._mac(told)):
            raise WireError("this is no nonce of this server's")
        now, end = self._clock(), int(told.partition(".")[0]) / 1000
        with self._lock:
            self._used = {one: until for one, until in self._used.items() if until > now}
            if end < now or nonce in self._used:
                raise WireError("the nonce has expired")
            self._used[nonce] = end

    def _mac(self, told: str) -> str:
        return hmac.digest(self._secret, told.encode(), sha256).hex()


def _key(text: str) -> ec.EllipticCurvePublicKey:
    key = load_ssh_public_key(text.encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)  # as it was read
    return key
