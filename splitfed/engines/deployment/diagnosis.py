"""What is wrong between a client and its server, in one line: from a log of Flower's, or by trying the way there."""

import http.client
import re
import socket
import ssl
import urllib.request
from pathlib import Path

from splitfed.wire.records import shown

_PROBE_SECONDS = 5.0
_CERTIFICATES = {
    r"certificate has expired": "the server's certificate has expired: make a new one with `splitfed certs`",
    r"certificate is not yet valid": "the server's certificate is not valid yet: check the clocks of both machines",
    r"[Hh]ostname mismatch|IP address mismatch|not valid for": "the server's certificate does not name the host that "
    "was joined: join by a name in it, or make one with `splitfed certs --host`",
    r"CERTIFICATE_VERIFY_FAILED": "the server's certificate was not signed by this CA: take ca.crt from the folder "
    "that `splitfed certs` made for this server",
    r"WRONG_VERSION_NUMBER|record layer failure": "the server speaks plain text, not TLS: start it with --tls, or join "
    "it without",
    r"KEY_VALUES_MISMATCH": "the server's certificate and private key do not belong together",
}
_LOGGED = {
    **_CERTIFICATES,
    r"\[code: 2004\]": "the server does not know this client's key, or still counts a client with this key as "
    "connected: after a crash or a lost network that takes up to a minute",
    r"\[code: 23\]": "the server has as many nodes as it takes without keys: try again later, or serve with --tls",
    r"Exit Code: 302|private key file": "the client's private key cannot be read: it must be an elliptic-curve key in "
    "OpenSSH's format, as `splitfed certs` makes them",
    r"Exit Code: 606": "server and client have versions of flwr that do not fit together: install the same on both",
    r"Exit Code: 105": "the run's SuperLink database was written by another version of flwr",
    r"[Aa]ddress already in use": "the port is taken by another process: choose another one",
    r"does not recognize this SuperNode": "the server does not know this client any more: its database was replaced",
}
_WANTS_TLS = "the server speaks TLS: join with --tls and the folder of this client that `splitfed certs` made"
# A SuperNode that the SuperLink refuses after it was connected ends itself, without an error.
_DISOWNED = "the server does not know this client any more: it was started anew, as another run"
_RETRYING = r"Connection attempt failed, retrying"
_RECOVERED = r"Connection successful after"


def _first(lines: dict[str, str], text: str) -> str | None:
    return next((line for pattern, line in lines.items() if re.search(pattern, text)), None)


def diagnose(log_tail: str, returncode: int | None) -> str | None:
    """Return why a SuperLink or SuperNode ended (or, with None for `returncode`, what it waits for) and the way out, or
    None where its log shows nothing known."""
    if returncode is None:
        waiting = re.findall(f"{_RETRYING}|{_RECOVERED}", log_tail)
        return "the server does not answer; still trying" if waiting and waiting[-1] == _RETRYING else None
    if returncode == 0 and "terminated gracefully" in log_tail:
        return _DISOWNED
    return _first(_LOGGED, log_tail)


def hopeless(problem: str) -> bool:
    """Return whether a line of this module names what waiting does not mend: certificates, TLS on one side alone."""
    return any(line in problem for line in (*_CERTIFICATES.values(), _WANTS_TLS))


def explain(error: BaseException) -> str | None:
    """Return what an error of TLS means, or None for any other."""
    return _first(_CERTIFICATES, str(error)) if isinstance(error, ssl.SSLError) else None


def probe(host: str, port: int, ca: Path | None = None, timeout: float = _PROBE_SECONDS) -> str | None:
    """Ask the SuperLink at `host`:`port` for its health, over TLS where `ca` is given, for at most `timeout` seconds a
    step. Return None where it answers, else what is in the way: a SuperNode that cannot connect does not say."""
    where = f"{host}:{port}"
    connection: http.client.HTTPConnection
    if ca is None:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
    else:
        context = ssl.create_default_context(cafile=str(ca))
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (socket.gaierror, UnicodeError):
        return f"{host}: no machine of this name is known"
    except ConnectionRefusedError:
        return f"nobody listens at {where}: is `splitfed serve` running there, on this port?"
    except ssl.SSLError as error:
        return f"{where}: {explain(error) or shown(str(error))}"
    except (http.client.HTTPException, ConnectionError):
        if ca is None and _speaks_tls(host, port, timeout):
            return f"{where}: {_WANTS_TLS}"
        return f"{where} is not a splitfed server: it hangs up"
    except OSError as error:
        return f"{where} does not answer ({error}): is there a firewall in between?"
    finally:
        connection.close()
    return None if status == 200 else f"{where} is not a splitfed server: it answers with HTTP {status}"


def _speaks_tls(host: str, port: int, timeout: float) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # whoever it is: nothing is sent
    try:
        with socket.create_connection((host, port), timeout) as plain, context.wrap_socket(plain):
            return True
    except OSError:
        return False


def proxies(host: str) -> list[str]:
    """Return the variables of the environment by which other programs would go to this host through a proxy."""
    found = urllib.request.getproxies_environment()
    if urllib.request.proxy_bypass(host):
        return []
    return [f"{kind.upper()}_PROXY" for kind in ("all", "https", "http", "grpc") if kind in found]
