"""The SuperLink's process: Flower's own, behind a door of ours.

Flower serves everything on one port: the nodes' API, but also those that start and stop runs, register keys and hand
out tasks. Other machines need the first alone. The rest is open to the process that started this one, which comes from
this machine and proves that it knows the secret: an address alone says little behind a proxy or a tunnel.
"""

import hmac
import ipaddress
import sys
from typing import TYPE_CHECKING, Any

from splitfed.engines.deployment.processes import follow_parent
from splitfed.engines.deployment.proof import HEADER, proof

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_NODES = "/v1/fleet/"
_HEALTH = "/health"


def _host(address: Any) -> "ipaddress.IPv4Address | ipaddress.IPv6Address | None":
    try:
        host = ipaddress.ip_address(str(address[0]).partition("%")[0])
    except (TypeError, IndexError, ValueError):
        return None
    return getattr(host, "ipv4_mapped", None) or host


class Door:
    """Lets everyone call the nodes' API and ask for health, and only this machine, with the proof, anything else."""

    def __init__(self, app: "ASGIApp", secret: bytes) -> None:
        self._app, self._proof = app, proof(secret).encode()

    def admits(self, scope: "Scope") -> bool:
        """Return whether an HTTP request may pass."""
        path = scope["path"]
        if path.startswith(_NODES) or (path == _HEALTH and scope["method"] == "GET"):
            return True
        peer, here = _host(scope.get("client")), _host(scope.get("server"))
        proofs = [value for name, value in scope["headers"] if name == HEADER.encode()]
        local = peer is not None and (peer.is_loopback or peer == here)
        return local and len(proofs) == 1 and hmac.compare_digest(proofs[0], self._proof)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self.admits(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            body = b"only SuperNodes are served here\n"
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        else:
            await send({"type": "websocket.close", "code": 1008})


def main() -> None:
    """Serve until told to end; the arguments are those of `flower-superlink`."""
    follow_parent()
    import uvicorn
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
    from flwr.superlink.main import create_app

    config = _parse_superlink_lifespan_config()
    if config.superexec_auth_secret is None:
        sys.exit("the SuperLink needs --isolation process and --superexec-auth-secret-file")
    uvicorn.run(
        Door(create_app(config, SuperLinkLifespan), config.superexec_auth_secret),
        host=config.host,
        port=config.port,
        access_log=False,
        proxy_headers=False,  # a peer's address is what the socket says
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
