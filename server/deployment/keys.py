"""Who signed a request, by its headers alone: known before anything of its body is read.

Flower checks the same, but with the whole body in memory.
"""

import binascii
from base64 import b64decode
from collections.abc import Iterable
from datetime import datetime, timedelta

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

_HEADERS = [name.lower().encode() for name in (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER)]
_TIME = TIMESTAMP_HEADER.lower().encode()
_EARLY, _LATE = (timedelta(seconds=s) for s in (SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE))


def signer(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the public key whose owner signed a request just now, or None where nobody did."""
    told = dict(headers)
    try:
        key, signature = (b64decode(told[name], validate=True) for name in _HEADERS)
        time = told[_TIME].decode("ascii")
        fresh = -_EARLY < now() - datetime.fromisoformat(time) < _LATE
        return key if fresh and verify_signature(bytes_to_public_key(key), time.encode(), signature) else None
    except (KeyError, ValueError, TypeError, AttributeError, binascii.Error):
        return None
