"""Flower's processes as children of ours: started without a PATH, deaf to the user's own Flower settings, gone when we
are.

Each child leads a session of its own, so that a terminal's Ctrl-C reaches us alone and we decide who stops first.
"""

import errno
import ipaddress
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from splitfed.engines.deployment.diagnosis import diagnose, explain
from splitfed.engines.runtime import ServerTls
from splitfed.errors import RunError, SplitfedError
from splitfed.wire.records import shown

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PARENT, _PARENT_CHECK_SECONDS, _GRACE_SECONDS = "SPLITFED_PARENT", 0.5, 8.0


class ChildError(SplitfedError):
    """A process that we need and that could not start, or ended."""


class Child:
    """A process in a session of its own, whose output goes to the file `log`; the end of a `with` block ends it.

    Flower in it keeps all that it writes in the folder `home`.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, home: Path) -> None:
        self.name, self.log = name, log
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
            os.fchmod(output.fileno(), 0o600)  # it may be there already
            self._from = output.tell()
            self._process = subprocess.Popen(
                command,
                env=environment(home),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,  # what it writes is its owner's alone
            )

    @property
    def pid(self) -> int:
        """Return its process id, which is that of its session too."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Return whether it still runs."""
        if self._process.returncode is not None:
            return False
        # An ended process is left as it is until `stop`: as long as it is not collected, its number is nobody else's,
        # and what it may have left in its session can be signalled.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None

    @property
    def returncode(self) -> int | None:
        """Return how it ended (below 0: by that signal), or None while it runs."""
        if self._process.returncode is not None:
            return self._process.returncode
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def tail(self, lines: int = 40) -> str:
        """Return the last lines that this process wrote."""
        with open(self.log, "rb") as file:
            written = file.seek(0, os.SEEK_END)
            file.seek(self._from if self._from <= written else 0)  # it may have begun anew
            return "\n".join(_COLOUR.sub("", file.read().decode(errors="replace")).splitlines()[-lines:])

    def why(self) -> str:
        """Return one line that says why it ended, or what it wrote last."""
        found = diagnose(self.tail(), self.returncode)
        last = next((line.strip() for line in reversed(self.tail().splitlines()) if line.strip()), "it wrote nothing")
        # What it wrote last may be what a peer has told it.
        return found or f"{self.name} ended ({self.returncode}): {shown(last)}; its log: {self.log}"

    def stop(self, grace: float = _GRACE_SECONDS) -> None:
        """End it and all that it started: ask, wait at most `grace` seconds, then kill."""
        if self._process.returncode is not None:
            return
        try:
            self._signal(signal.SIGTERM)
            limit = time.monotonic() + grace
            while self.alive and time.monotonic() < limit:
                time.sleep(0.02)
        finally:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # in the moment before it has made its session
            self._process.send_signal(number)
        except PermissionError:  # macOS: nobody is left but the ended leader
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a Flower process that keeps to `home`, asks nothing of the internet, goes through no
    proxy, imports what we do and ends when we end."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FLWR_") and name != "FORWARDED_ALLOW_IPS" and not name.lower().endswith("_proxy")
    }
    return kept | {
        "NO_PROXY": "*",  # nor one that the system is set up with
        "no_proxy": "*",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",  # which its log is read in
        PARENT: str(os.getpid()),
    }


def follow_parent() -> None:
    """In a child: end this process, and its session, as soon as the process that started it is gone.

    Asking for the parent's number needs no pipe that a fork of the parent might keep open, and no PR_SET_PDEATHSIG,
    which fires when the parent's *thread* ends.
    """
    parent = int(os.environ[PARENT])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()


def superlink_command(
    host: str, port: int, *, secret_file: Path, database: Path, tls: ServerTls | None = None, ca: Path | None = None,
    silence: float = 60.0, most_nodes: int = 1000,
) -> list[str]:  # fmt: skip
    """Return the command of a SuperLink that serves only SuperNodes to other machines; with `tls` and its `ca`, only
    nodes whose keys are registered, without it at most `most_nodes`. A node that is silent for `silence` seconds counts
    as away. How many bytes it may send at once stands in the file `most_bytes_file(database)`."""
    security = ["--insecure", "--most-nodes", str(most_nodes)]
    if tls is not None:
        files = {"--ssl-certfile": tls.certificate, "--ssl-keyfile": tls.key, "--ssl-ca-certfile": ca}
        security = [*(str(part) for pair in files.items() for part in pair), "--enable-supernode-auth"]
    address = ["--host", host, "--port", str(port)]
    state = ["--isolation", "process", "--superexec-auth-secret-file", str(secret_file), "--database", str(database)]
    ours = ["--silence", str(silence), "--most-bytes", str(most_bytes_file(database))]
    return [sys.executable, "-m", "splitfed.server.deployment.superlink", *address, *security, *state, *ours]


def most_bytes_file(database: Path) -> Path:
    """Return the file beside a SuperLink's database that says, in digits, how many bytes a node may send at once."""
    return database.with_name("most-bytes")


def supernode_command(
    superlink: str, port: int, *, secret_file: Path, ca: Path | None = None, key: Path | None = None
) -> list[str]:
    """Return the command of a SuperNode that joins `superlink` (host:port) and offers its tasks at 127.0.0.1:`port`.

    Without `ca` it speaks plain text; `key` is its private key, by which the SuperLink knows it.
    """
    security = ["--insecure"] if ca is None else ["--root-certificates", str(ca)]
    security += [] if key is None else ["--auth-supernode-private-key", str(key)]
    tasks = ["--isolation", "process", "--superexec-auth-secret-file", str(secret_file)]
    address = ["--superlink", superlink, "--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-m", "splitfed.clients.deployment.supernode", *address, *security, *tasks]


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def port_number(text: str | int, name: str) -> int:
    """Return the port that a text says. Raises RunError, which begins with `name`, where it says none."""
    if not re.fullmatch("[0-9]{1,5}", str(text)) or not 0 < int(text) < 65536:
        raise RunError(f"{name}: a port is a number from 1 to 65535, not {str(text)[:40]!r}")
    return int(text)


def parse(server: str, port: int) -> tuple[str, int]:
    """Split `host`, `host:port` or `[v6]:port`; `port` is that where none is named. Raises RunError."""
    if server.count(":") > 1 and "[" not in server and _is_v6(server):
        return server, port
    host, colon, said = server.partition("]:") if "]:" in server else server.partition(":")
    bare = host.removeprefix("[").removesuffix("]") if server.startswith("[") else host
    if not (_is_v6(bare) if server.startswith("[") else re.fullmatch(r"[^\s\[\]/@:]+", bare)):
        raise RunError(f"{server}: is no server's address, which is a name and, after a colon, a port if not {port}")
    return bare, port_number(said, server) if colon else port


def _is_v6(text: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(text).version == 6
    return False


def is_loopback(host: str) -> bool:
    """Tell whether what is sent to this host, a name or an address, stays on this machine."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    return host.lower().removesuffix(".") == "localhost"


def check_port(host: str, port: int) -> None:
    """Raise ChildError where no server can listen: whatever answers there later would be taken for our child."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError) as error:
            no_host = isinstance(error, socket.gaierror | UnicodeError) or error.errno == errno.EADDRNOTAVAIL
            other = "--host must name an address of this machine" if no_host else "choose another port"
            why = getattr(error, "strerror", None) or "no such name"
            raise ChildError(f"cannot listen at {host}:{port}: {why}; {other}") from error


def own_context(ca: Path) -> ssl.SSLContext:
    """Return how to trust a child of ours: by its CA alone, as its certificate may not name a loopback address."""
    context = ssl.create_default_context(cafile=str(ca))
    context.check_hostname = False
    return context


def wait_until_healthy(url: str, child: Child, ca: Path | None = None, timeout: float = 60.0) -> None:
    """Wait until `child` answers at `url` (http[s]://host:port).

    Raises ChildError, with the reason, when it ends before or does not answer within `timeout` seconds.
    """
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if ca is not None:
        handlers.append(urllib.request.HTTPSHandler(context=own_context(ca)))
    opener, limit = urllib.request.build_opener(*handlers), time.monotonic() + timeout
    while time.monotonic() < limit:
        if not child.alive:
            raise ChildError(child.why())
        try:
            with opener.open(f"{url}/health", timeout=2.0):
                return
        except OSError as error:  # URLError is one too
            if wrong := explain(getattr(error, "reason", error)):
                raise ChildError(wrong) from error
            time.sleep(0.05)
    raise ChildError(f"{child.name} did not answer at {url} within {timeout:.0f} s; its log: {child.log}")
