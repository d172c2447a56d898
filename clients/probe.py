"""Tries the way to the split port before any round needs it: a firewall lets Flower's port through and not this one."""

import socket
import ssl
from pathlib import Path

from splitfed.clients.dial import Reach, target
from splitfed.diagnosis import explain
from splitfed.errors import WireError
from splitfed.rpc import endpoint

# How HTTP/2, which carries gRPC, begins: the client's preface with empty settings, and the server's own settings.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS, _HEADER_BYTES = 4, 9


def probe(address: str, reach: Reach, timeout: float = 10.0) -> None:
    """Connect to where an invitation's address leads, and hear whether a split server may be there; `timeout` is in
    seconds, for each step. Raises WireError with what is in the way. An address in this process needs no try."""
    if address.startswith("inline:"):
        return
    host, port = target(address, reach)
    where = f"the split port {endpoint(host, port)}"
    context = _trust(reach.ca) if reach.ca else None
    try:
        with socket.create_connection((host, port), timeout) as plain:
            if context is None:
                _greet(
                    plain,
                    f"{where} does not answer as a split server; it may want TLS, for which this client has no CA",
                )
                return
            with context.wrap_socket(plain, server_hostname=host) as secure:
                _greet(secure, f"{where} speaks TLS, but is no split server")
    except ssl.SSLError as error:
        raise WireError(f"{where}: {explain(error) or error}") from None
    except (socket.gaierror, UnicodeError):
        raise WireError(f"cannot reach {where}: no machine of this name is known") from None
    except ConnectionRefusedError:
        raise WireError(f"cannot reach {where}: connection refused; is it open in the firewall?") from None
    except TimeoutError:
        raise WireError(f"cannot reach {where}: no answer in {timeout:g} s; is it open in the firewall?") from None
    except ConnectionError as error:
        raise WireError(f"{where} hangs up ({error.strerror}): is it the one of splitfed serve?") from None
    except OSError as error:
        raise WireError(f"cannot reach {where}: {error.strerror or error}") from None


def _trust(ca: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except OSError as error:  # ssl's own errors too
        raise WireError(f"{ca}: {error.strerror or error}; the server proves itself by it") from None
    context.set_alpn_protocols(["h2"])
    return context


def _greet(connection: socket.socket, problem: str) -> None:
    """Speak as gRPC does at first. Raises WireError where the answer is not that of its server."""
    connection.sendall(_PREFACE)
    answer = b""
    while len(answer) < _HEADER_BYTES and (more := connection.recv(_HEADER_BYTES - len(answer))):
        answer += more
    if len(answer) < _HEADER_BYTES or answer[3] != _SETTINGS:
        raise WireError(problem)
