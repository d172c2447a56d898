"""The server's end of the gRPC channel: admits clients with a ticket and carries frames to their sessions and back."""

import logging
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from threading import Lock
from urllib.parse import unquote

import grpc

from splitfed.engines.runtime import ServerTls
from splitfed.errors import SplitfedError, WireError
from splitfed.server.deployment.strangers import Strangers, Watch, most_connections, plain
from splitfed.server.deployment.tickets import Gate, Tickets
from splitfed.wire.channel import Acceptor, Invitation, Session
from splitfed.wire.grpc_settings import (
    METHOD,
    PROTOCOL,
    PROTOCOL_KEY,
    SERVICE,
    TOKEN_KEY,
    Arrivals,
    endpoint,
    entry,
    options,
)

_log = logging.getLogger(__name__)
_SECONDS_TO_LEAVE = 0.5
_HANDSHAKE_MS = 10_000
# Of a message that is too long gRPC tells nobody here: the stream is gone, as where a line breaks. Up to so many times
# the longest frame the session sees it, and refuses its client.
_SEEN_TIMES, _MOST_BYTES = 2, (1 << 31) - 1


class _Ended(Exception):
    """Why this end closes a stream."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


class GrpcListener:
    """Makes a split server reachable over gRPC at `host`:`port` (0 takes a free one, see `port`) inside its `with`
    block; with TLS where its files are given.

    `streams` clients are served at once, of each up to `ahead` frames wait here while one is served. Tokens are for
    this attempt of this run. A stream on which nothing arrives for `deadline` seconds is ended; who has no token is
    bounded as `strangers` says. `public` is the host that invitations
    name, if any. Entering raises SplitfedError where the port cannot be had or the TLS files are unfit.
    """

    def __init__(
        self, acceptor: Acceptor, *, host: str, port: int, tls: ServerTls | None, run: str, attempt: int,
        streams: int, deadline: float, public: str | None = None, strangers: Strangers | None = None, ahead: int = 0,
    ) -> None:  # fmt: skip
        self.port, self._ahead = port, ahead
        self._acceptor, self._host, self._tls, self._deadline, self._public = acceptor, host, tls, deadline, public
        self._tickets, self._strangers, self._entered = Tickets(run, attempt), strangers or Strangers(), ExitStack()
        self._live: dict[int, Arrivals] = {}
        self._left = False
        self._lock = Lock()
        # Each stream holds a thread. One that was superseded holds its own until its last mini-batch is trained.
        threads = 2 * streams + 8
        bounds = [
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
            ("grpc.max_allowed_incoming_connections", most_connections()),
        ]
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="splitfed-stream"),
            handlers=[grpc.method_handlers_generic_handler(
                SERVICE, {METHOD: grpc.stream_stream_rpc_method_handler(self._exchange)}
            )],
            interceptors=[Gate(self._tickets)],
            options=options(min(_SEEN_TIMES * acceptor.most_bytes, _MOST_BYTES)) + bounds,
            maximum_concurrent_rpcs=threads,
        )  # fmt: skip

    def invite(self, client: int, round: int) -> Invitation:
        """Return what a client must know to open its stream for a round."""
        where = endpoint(self._public, self.port) if self._public else self.port
        return Invitation(f"grpc:{where}", self._tickets.issue(client, round))

    def __enter__(self) -> "GrpcListener":
        where = endpoint(self._host, self.port)
        try:
            if self._tls:
                self.port = self._server.add_secure_port(where, credentials(self._tls))
            else:
                self.port = self._server.add_insecure_port(where)
        except RuntimeError:
            raise SplitfedError(
                f"cannot listen at {where} for mini-batches: is the port taken? Choose another"
            ) from None
        self._server.start()
        self._entered.enter_context(Watch(self.port, self._strangers))
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._left = True
            live = list(self._live.values())
        for arrivals in live:
            arrivals.end(_Ended(grpc.StatusCode.ABORTED, "the server has left"))
        self._entered.close()
        self._server.stop(_SECONDS_TO_LEAVE).wait(10 * _SECONDS_TO_LEAVE)

    def _exchange(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Serve one stream, which the gate has let in; an exception here becomes its status."""
        try:
            ticket = self._tickets.check(entry(context.invocation_metadata(), TOKEN_KEY))
            with suppress(ValueError):  # no address
                self._strangers.know(plain(*address(context.peer())), ticket.client)
            arrivals = self._supersede(ticket.client, requests)
            session = None
            try:
                session = self._acceptor.open(ticket.client, ticket.round)
                # A client that is gone is noticed at once, also while its mini-batch trains or waits.
                context.add_callback(lambda: self._over(ticket.client, arrivals, session))
                context.send_initial_metadata(((PROTOCOL_KEY, str(PROTOCOL)),))
                while (message := arrivals.take(self._deadline)) is not None:
                    yield session.handle(message)
            finally:
                self._over(ticket.client, arrivals, session)
        except _Ended as ended:
            context.abort(ended.code, ended.text)
        except TimeoutError as error:
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error))
        except WireError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except SplitfedError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except grpc.RpcError:
            return  # the client is gone
        except Exception:
            _log.exception("a stream ended because of an error in the server")
            context.abort(grpc.StatusCode.INTERNAL, "an error in the server, which its log tells")

    def _supersede(self, client: int, requests: Iterator[bytes]) -> Arrivals:
        """Make this the client's one stream: a connection that is dead, but not known to be, locks nobody out."""
        with self._lock:
            if self._left:
                raise _Ended(grpc.StatusCode.ABORTED, "the server has left")
            before = self._live.get(client)
            arrivals = self._live[client] = Arrivals(requests, self._ahead)
        if before:
            before.end(_Ended(grpc.StatusCode.ABORTED, f"client {client} has opened a newer stream"))
        return arrivals

    def _over(self, client: int, arrivals: Arrivals, session: Session | None) -> None:
        """Close the session, unless a newer stream has taken it over."""
        with self._lock:
            if self._live.get(client) is arrivals:
                del self._live[client]
                if session:
                    session.close()
        arrivals.close()


def address(peer: str) -> tuple[str, int]:
    """Split what gRPC calls a peer, such as `ipv6:%5B::1%5D:4711`. Raises ValueError for one without a port."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return host.strip("[]"), int(port)


def credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Return what a gRPC server proves itself with. Raises SplitfedError for files that do not fit."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            tls.certificate, tls.key
        )  # gRPC does not say what is wrong
        return grpc.ssl_server_credentials([(tls.key.read_bytes(), tls.certificate.read_bytes())])
    except OSError as error:  # and so are those of ssl
        raise SplitfedError(f"TLS with {tls.certificate} and {tls.key}: {error.strerror or error}") from None
