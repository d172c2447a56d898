"""Tickets: what admits a client to its stream for one round, and to nothing else.

A ticket travels in Flower's training message, which is authenticated, and comes back in the metadata of the stream. It
is made and checked with a secret that only this process has ever known.
"""

import hmac
import re
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import grpc

from splitfed.errors import WireError
from splitfed.wire.grpc_settings import PROTOCOL, PROTOCOL_KEY, TOKEN_KEY, entry

# As long as Flower keeps the message that the ticket came with.
LIFETIME = 12 * 3600.0

_FIELD = "[0-9]{1,12}"
_TOKEN = re.compile(rf"([0-9a-f]{{8}})\.({_FIELD})\.({_FIELD})\.({_FIELD})\.({_FIELD})\.([\w-]{{43}})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Ticket:
    """Whom a token admits, and to which round."""

    client: int
    round: int


class Tickets:
    """Issues and checks the tokens of one attempt of a run; `lifetime` and `clock` are in seconds."""

    def __init__(
        self, run: str, attempt: int, lifetime: float = LIFETIME, clock: Callable[[], float] = time.time
    ) -> None:
        self._run, self._attempt, self._lifetime, self._clock = run, attempt, lifetime, clock
        self._mark = sha256(run.encode()).hexdigest()[:8]  # only to tell a stray client from a forger
        self._secret = secrets.token_bytes(32)

    def issue(self, client: int, round: int) -> str:
        """Return the token of a client for a round."""
        told = f"{self._mark}.{self._attempt}.{round}.{client}.{int(self._clock() + self._lifetime)}"
        return f"{told}.{self._mac(told)}"

    def check(self, token: str) -> Ticket:
        """Return whom a token admits. Raises WireError, with a reason that gives nothing away, for any other text."""
        found = _TOKEN.fullmatch(token)
        if not found:
            raise WireError("a stream needs the token of a training message" if not token else "this is no token")
        mark, attempt, round, client, expiry, mac = found.groups()
        if mark != self._mark:
            raise WireError("this token is from another run")
        if int(attempt) != self._attempt:
            raise WireError(f"this token is from attempt {attempt} of the run, which is now at {self._attempt}")
        if not hmac.compare_digest(mac, self._mac(token.rpartition(".")[0])):
            raise WireError("this token is forged")
        if int(expiry) < self._clock():
            raise WireError(f"the token of client {client} for round {round} has expired")
        return Ticket(int(client), int(round))

    def _mac(self, told: str) -> str:
        mac = hmac.digest(self._secret, f"{self._run}\0{told}".encode(), "sha256")
        return urlsafe_b64encode(mac).rstrip(b"=").decode()


class Gate(grpc.ServerInterceptor):
    """Refuses a stream before any of its messages is received: another protocol, or no valid token."""

    def __init__(self, tickets: Tickets) -> None:
        self._tickets = tickets

    def intercept_service(self, continuation, handler_call_details):
        """Let the call through to its handler, or to one that ends it at once."""
        metadata = handler_call_details.invocation_metadata
        theirs = entry(metadata, PROTOCOL_KEY)
        if theirs != str(PROTOCOL):
            spoken = f"the client {theirs}" if re.fullmatch("[0-9]{1,4}", theirs) else "the client another"
            text = f"this server speaks protocol {PROTOCOL}, {spoken}: install the same splitfed"
            return _refusal(grpc.StatusCode.FAILED_PRECONDITION, text)
        try:
            self._tickets.check(entry(metadata, TOKEN_KEY))
        except WireError as error:
            return _refusal(grpc.StatusCode.UNAUTHENTICATED, str(error))
        return continuation(handler_call_details)


def _refusal(code: grpc.StatusCode, text: str) -> grpc.RpcMethodHandler:
    return grpc.stream_stream_rpc_method_handler(lambda requests, context: context.abort(code, text))
