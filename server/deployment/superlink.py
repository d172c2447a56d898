"""The SuperLink's process: Flower's own, behind a door of ours.

Flower serves everything on one port: the nodes' API, but also those that start and stop runs, register keys and hand
out tasks. Other machines need the first alone. The rest is open to the process that started this one, which comes from
this machine and proves that it knows the secret: an address alone says little behind a proxy or a tunnel.

Flower reads a request whole before it asks who sent it. Here it is asked first, of whoever sends more than a little.
"""

import argparse
import asyncio
import hmac
import ipaddress
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitfed.engines.deployment.processes import follow_parent
from splitfed.engines.deployment.proof import HEADER, proof
from splitfed.server.deployment.strangers import Peer, Strangers, Watch, plain

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.proto.message_pb2 import ObjectTree
    from starlette.types import ASGIApp, Receive, Scope, Send

_NODES = "/v1/fleet/"
_HEALTH = "/health"

# Of the messages of a SuperNode only weights are larger, and what Flower says of them before.
SMALL = 64 * 1024
_MOST_HEADER_BYTES = 32 * 1024
# A message of ours has 4, or 5: itself, what it holds, and each of its records.
MOST_PARTS = 16
# Flower gives up after 5 s: one who waits for a slow disk, or behind a long transaction, would end the run.
_LOCKED_MS = 60_000

Headers = list[tuple[bytes, bytes]]


def _host(address: Any) -> "ipaddress.IPv4Address | ipaddress.IPv6Address | None":
    try:
        host = ipaddress.ip_address(str(address[0]).partition("%")[0])
    except (TypeError, IndexError, ValueError):
        return None
    return getattr(host, "ipv4_mapped", None) or host


class Door:
    """Lets everyone call the nodes' API and ask for health, and only this machine, with the proof, anything else.

    Everyone else may send `SMALL` bytes at once, and `most()` who has signed a request on the same connection with a
    key that is known: `knows(headers)` says which, and then `strangers` hear of it.
    """

    def __init__(
        self, app: "ASGIApp", secret: bytes, strangers: Strangers, knows: Callable[[Headers], bytes | None],
        most: Callable[[], int],
    ) -> None:  # fmt: skip
        self._app, self._proof = app, proof(secret).encode()
        self._strangers, self._knows, self._most = strangers, knows, most

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif refusal := await self._refusal(scope):
            status, body = refusal
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
            headers += [(b"connection", b"close")]  # so that the rest of the request is not read
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        else:
            await self._app(scope, receive, send)

    async def _refusal(self, scope: "Scope") -> tuple[int, bytes] | None:
        """Return why a request may not pass, as status and text; None where it may."""
        if self._ours(scope):
            return None
        node = scope["path"].startswith(_NODES)
        if not node and (scope["path"] != _HEALTH or scope["method"] != "GET"):
            return 403, b"only SuperNodes are served here\n"
        told = dict(scope["headers"])
        if b"transfer-encoding" in told:
            return 411, b"how long is the request?\n"
        known = node and await self._known(scope)
        length = told.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > (max(SMALL, self._most()) if known else SMALL):
            return 413, b"the request is too long\n"
        return None

    def _ours(self, scope: "Scope") -> bool:
        """Tell whether the request is that of the process that started this one."""
        peer, here = _host(scope.get("client")), _host(scope.get("server"))
        proofs = [value for name, value in scope["headers"] if name == HEADER.encode()]
        local = peer is not None and (peer.is_loopback or peer == here)
        proven = local and len(proofs) == 1 and hmac.compare_digest(proofs[0], self._proof)
        if proven and (at := _peer(scope)):
            self._strangers.know(at)
        return proven

    async def _known(self, scope: "Scope") -> bool:
        """Tell whether whoever is at the other end has shown that it has a key that is known."""
        at = _peer(scope)
        if at is not None and self._strangers.knows(at):
            return True
        key = await asyncio.to_thread(self._knows, scope["headers"])
        if key is not None and at is not None:
            self._strangers.know(at, key)
        return key is not None


def _peer(scope: "Scope") -> Peer | None:
    with suppress(TypeError, IndexError, ValueError):
        client: Any = scope.get("client")
        return plain(str(client[0]), client[1])
    return None


def few_parts(tree: "ObjectTree") -> "ObjectTree":
    """Return of which parts a message is to be taken, each as large as a node may send at once: those that it has, or,
    where it has more than `MOST_PARTS`, its first alone, which is no message then."""
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

    many = next(islice(iterate_object_tree(tree), MOST_PARTS, None), None) is not None
    return ObjectTree(object_id=tree.object_id) if many else tree


def main() -> None:
    """Serve until told to end; the arguments are those of `flower-superlink`, and our own."""
    follow_parent()
    import uvicorn
    from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
    from flwr.server.superlink.linkstate import sql_linkstate
    from flwr.supercore import sql_mixin
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
    from flwr.superlink.main import create_app
    from flwr.superlink.servicer.fleet import fleet_handlers

    from splitfed.server.deployment import tidy
    from splitfed.server.deployment.keys import signer
    from splitfed.server.deployment.nodes import counted

    logging.getLogger("flwr").setLevel(logging.WARNING)  # else a line for each request, whoever's
    tidy.keep_short()
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--silence", type=float, required=True)
    parser.add_argument("--most-bytes", type=Path, required=True)
    parser.add_argument("--most-nodes", type=int)  # of those without a key
    ours, sys.argv[1:] = parser.parse_known_args()
    # A node counts as online for so many of the intervals that it announces. All announce the same: a round would wait
    # an hour for one that announced half of that and went.
    sql_linkstate.HEARTBEAT_PATIENCE = ours.silence / HEARTBEAT_DEFAULT_INTERVAL
    fleet_handlers.HEARTBEAT_MAX_INTERVAL = HEARTBEAT_DEFAULT_INTERVAL
    patient = ("busy_timeout", str(_LOCKED_MS))
    sql_mixin.SQLITE_PRAGMAS = (*sql_mixin.SQLITE_PRAGMAS, patient)  # type: ignore[assignment]
    store = sql_linkstate.SqlLinkState.store_message_and_object_tree

    def bounded(
        state: sql_linkstate.SqlLinkState, message: "Message", object_tree: "ObjectTree", session_id: str
    ) -> tuple[bool, list[str]]:
        return store(state, message, few_parts(object_tree), session_id)

    taken_in = tidy.few_waiting(bounded)
    sql_linkstate.SqlLinkState.store_message_and_object_tree = taken_in  # type: ignore[method-assign]
    deleted = tidy.whole(sql_linkstate.SqlLinkState.delete_messages)
    sql_linkstate.SqlLinkState.delete_messages = deleted  # type: ignore[assignment,method-assign]

    if ours.most_nodes is not None:
        create = counted(sql_linkstate.SqlLinkState.create_node, ours.most_nodes)
        sql_linkstate.SqlLinkState.create_node = create  # type: ignore[method-assign]

    config = _parse_superlink_lifespan_config()
    if config.superexec_auth_secret is None:
        sys.exit("the SuperLink needs --isolation process and --superexec-auth-secret-file")
    app, strangers = create_app(config, SuperLinkLifespan), Strangers()

    def knows(headers: Headers) -> bytes | None:
        key = signer(headers)
        node = None if key is None else app.state.linkstate_factory.state().get_node_id_by_public_key(key)
        return None if node is None else key

    def most() -> int:
        with suppress(OSError, ValueError):  # before the model is built
            return int(ours.most_bytes.read_text())
        return SMALL

    with Watch(config.port, strangers):
        uvicorn.run(
            Door(app, config.superexec_auth_secret, strangers, knows, most),
            host=config.host,
            port=config.port,
            http="h11",  # the other one takes headers of any length
            h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
            log_level="error",  # what a stranger sends fills no log
            access_log=False,
            proxy_headers=False,  # a peer's address is what the socket says
            ssl_keyfile=config.ssl_keyfile,
            ssl_certfile=config.ssl_certfile,
            timeout_graceful_shutdown=1,
        )


if __name__ == "__main__":
    main()
