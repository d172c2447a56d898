"""How we prove to a SuperLink of ours that we are the ones who started it."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

HEADER = "x-splitfed-proof"


def proof(secret: bytes) -> str:
    """Return what travels in the header: it shows that the sender knows the secret, and is not the secret."""
    return hmac.new(secret, b"splitfed control", hashlib.sha256).hexdigest()


def make_secret(path: Path) -> bytes:
    """Write a new random secret to a file that only its owner may read, and return it."""
    secret = secrets.token_hex(32).encode()
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    return secret
