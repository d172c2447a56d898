"""Children end when they must, a SuperLink opens its other APIs to its starter alone, and faults are told plainly."""

import asyncio
import http.server
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.common.config import get_fab_config
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import eventually, running

from splitfed.engines.deployment.certificates import make
from splitfed.engines.deployment.diagnosis import diagnose, hopeless, probe
from splitfed.engines.deployment.flower_tasks import bundle
from splitfed.engines.deployment.processes import (
    Child,
    ChildError,
    check_port,
    environment,
    free_port,
    wait_until_healthy,
)
from splitfed.engines.deployment.proof import HEADER, make_secret, proof
from splitfed.server.deployment.strangers import Strangers
from splitfed.server.deployment.superlink import Door

FOLLOWER = """
import time
from splitfed.engines.deployment.processes import follow_parent
follow_parent()
print("up", flush=True)
time.sleep(60)
"""


def python(code: str, folder: Path) -> Child:
    return Child("test", [sys.executable, "-c", code], folder / "log", folder / "home")


def test_a_child_writes_its_log_and_its_end_is_seen(tmp_path: Path) -> None:
    with python("print('one'); print('two'); raise SystemExit(3)", tmp_path) as child:
        assert eventually(lambda: not child.alive)
        assert child.returncode == 3
        assert child.tail(1) == "two"
        assert "two" in child.why()
        assert str(child.log) in child.why()
    assert child.returncode == 3


def test_a_later_child_does_not_show_what_an_earlier_one_wrote_to_the_same_log(tmp_path: Path) -> None:
    with python("print('[code: 2004]'); raise SystemExit(1)", tmp_path) as first:
        assert eventually(lambda: not first.alive)
    with python("print('fine')", tmp_path) as second:
        assert eventually(lambda: not second.alive)
        assert second.tail() == "fine"


@pytest.mark.parametrize("leader", ["time.sleep(60)", "pass"])
def test_stop_ends_the_whole_session_even_where_nobody_listens_to_sigterm(tmp_path: Path, leader: str) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); "
    grandchild = f"[sys.executable, '-c', {code + 'time.sleep(60)'!r}]"
    with python(
        f"{code}import subprocess, sys; print(subprocess.Popen({grandchild}).pid); {leader}", tmp_path
    ) as child:
        assert eventually(lambda: child.tail().count("up") == 2 and (leader != "pass" or not child.alive))
        left = next(int(line) for line in child.tail().splitlines() if line.isdigit())
        assert running(left)
        child.stop(grace=0.2)
    assert not child.alive
    assert eventually(lambda: not running(left))
    child.stop()


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from splitfed.engines.deployment.processes import Child
folder = Path({str(tmp_path)!r})
print(Child("test", [sys.executable, "-c", {FOLLOWER!r}], folder / "log", folder / "home").pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert eventually(lambda: "up" in (tmp_path / "log").read_text())
        assert running(pid)
        parent.kill()
    assert eventually(lambda: not running(pid))


def test_a_child_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    children: list[Child] = []
    thread = threading.Thread(target=lambda: children.append(python(FOLLOWER, tmp_path)))
    thread.start()
    thread.join()
    with children[0] as child:
        assert eventually(lambda: "up" in child.tail())
        time.sleep(1.0)  # twice as long as it takes to look for its parent
        assert child.alive


def test_a_childs_environment_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_DATABASE", "/elsewhere")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    monkeypatch.setenv("no_proxy", "intranet")
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
    env = environment(tmp_path)
    assert {name: value for name, value in env.items() if name.startswith("FLWR_")} == {
        "FLWR_HOME": str(tmp_path),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    assert "FORWARDED_ALLOW_IPS" not in env
    assert {name: value for name, value in env.items() if name.lower().endswith("_proxy")} == {
        "NO_PROXY": "*",
        "no_proxy": "*",
    }


def test_a_child_imports_what_we_import_and_not_what_lies_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "splitfed.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    with python("import splitfed.engines.deployment.processes; print('ours')", tmp_path) as child:
        assert eventually(lambda: not child.alive)
        assert child.tail() == "ours"


def test_a_port_in_use_is_refused_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ChildError, match="choose another port"):
        check_port("127.0.0.1", taken.getsockname()[1])
    check_port("127.0.0.1", free_port())


def test_waiting_for_a_child_that_ends_says_why(tmp_path: Path) -> None:
    refused = "print('[Errno 98] address already in use'); raise SystemExit(1)"
    with python(refused, tmp_path) as child, pytest.raises(ChildError, match="port is taken"):
        wait_until_healthy(f"http://127.0.0.1:{free_port()}", child)


def test_what_a_child_wrote_last_is_shown_without_control_characters(tmp_path: Path) -> None:
    """It may be what a peer told it, of any length."""
    with python(r"print('no\x1b]0;x\x07\x1b[2J' + 9999 * 'x')", tmp_path) as child:
        assert eventually(lambda: not child.alive)
        told = child.why().removesuffix(str(child.log))
    assert told.isprintable()
    assert len(told) < 600


def test_waiting_for_a_child_that_never_answers_ends(tmp_path: Path) -> None:
    with python("import time; time.sleep(60)", tmp_path) as child, pytest.raises(ChildError, match="did not answer"):
        wait_until_healthy(f"http://127.0.0.1:{free_port()}", child, timeout=0.3)


def test_a_secret_is_new_each_time_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    first, second = make_secret(path), make_secret(path)
    assert first != second
    assert path.read_bytes() == second
    assert path.stat().st_mode & 0o777 == 0o600
    assert second.decode() not in proof(second)


# The door

SECRET = b"the secret"
PROVEN = [(HEADER.encode(), proof(SECRET).encode())]


def status(
    path: str, client: object, headers: list = PROVEN, server: object = ("10.0.0.5", 8000), method="POST"
) -> int:
    """Return what a SuperLink behind the door answers; the app behind it answers 200 to everything."""

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent: list[dict] = []

    async def send(event) -> None:
        sent.append(event)

    scope = {"type": "http", "method": method, "path": path, "client": client, "server": server, "headers": headers}
    door = Door(app, SECRET, Strangers(), lambda headers: False, lambda: 0)
    asyncio.run(door(scope, None, send))  # type: ignore[arg-type]
    return sent[0]["status"]


PRIVATE = [
    "/v1/control/start-run",
    "/v1/runtime/acquire-task",
    "/docs",
    "/openapi.json",
    "/",
    "/v1/fleetx",
    "/v1/fleet",
]


@pytest.mark.parametrize("path", PRIVATE)
def test_other_machines_reach_the_nodes_api_alone_whatever_they_know(path: str) -> None:
    stranger = ("10.0.0.9", 5000)
    assert status(path, stranger) == 403
    assert status(path, stranger, [*PROVEN, (b"x-forwarded-for", b"127.0.0.1")]) == 403
    assert status("/v1/fleet/pull-messages", stranger, []) == 200
    assert status("/health", stranger, [], method="GET") == 200
    assert status("/health", stranger, []) == 403


@pytest.mark.parametrize("path", PRIVATE)
def test_this_machine_reaches_everything_with_the_proof_alone(path: str) -> None:
    here = [
        ("127.0.0.1", 5000),
        ("::1", 5000),
        ("::ffff:127.0.0.1", 5000),
        ("10.0.0.5", 5000),
        ("::ffff:10.0.0.5", 5000),
    ]
    for client in here:
        assert status(path, client) == 200
        assert status(path, client, []) == 403
        assert status(path, client, [(HEADER.encode(), proof(b"a guess").encode())]) == 403
        assert status(path, client, PROVEN * 2) == 403


@given(
    client=st.none() | st.tuples(st.text(max_size=40), st.integers(0, 65535)) | st.just(()),
    path=st.text(max_size=40).map(lambda end: f"/v1/control/{end}"),
)
@settings(max_examples=60, deadline=None)
def test_a_peer_whose_address_is_not_known_is_no_neighbour(client: object, path: str) -> None:
    assert status(path, client, server=None) == 403


def test_a_websocket_is_closed() -> None:
    sent: list[dict] = []

    async def send(event) -> None:
        sent.append(event)

    scope = {"type": "websocket", "path": "/v1/fleet/x", "client": ("127.0.0.1", 1), "server": None, "headers": PROVEN}
    door = Door(None, SECRET, Strangers(), lambda headers: False, lambda: 0)  # type: ignore[arg-type]
    asyncio.run(door(scope, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


# What is wrong

CONNECTION = "Exit Code: 305\nFailed to initialize the connection to the SuperLink.\n"
TRY = "WARNING : Connection attempt failed, retrying in 0.28 seconds\n"
GOODBYE = "INFO : SuperNode terminated gracefully.\nINFO: Shutting down"


@pytest.mark.parametrize(
    ("log", "returncode", "said"),
    [
        (f"{CONNECTION}[code: 2004] Failed to activate SuperNode.", 1, "does not know this client's key"),
        (f"{CONNECTION}CERTIFICATE_VERIFY_FAILED] unable to get local issuer certificate", 1, "not signed by this CA"),
        (f"{CONNECTION}CERTIFICATE_VERIFY_FAILED] certificate has expired (_ssl.c:1006)", 1, "has expired"),
        (
            f"{CONNECTION}CERTIFICATE_VERIFY_FAILED] Hostname mismatch, certificate is not valid",
            1,
            "does not name the host",
        ),
        (f"{TRY}{GOODBYE}", 0, "does not know this client any more"),
        ("Exit Code: 302\nUnable to parse the private key file.", 1, "private key cannot be read"),
        ("[Errno 98] error while attempting to bind on address: address already in use", 1, "port is taken"),
        (TRY, None, "still trying"),
    ],
)
def test_what_flower_logs_is_told_in_one_line(log: str, returncode: int | None, said: str) -> None:
    line = diagnose(log, returncode)
    assert line is not None
    assert said in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("log", "returncode"),
    [("Segmentation fault", -11), ("", 0), (f"{TRY}Connection successful after 3.0 seconds", None), (GOODBYE, -15)],
)
def test_nothing_is_made_up_where_nothing_is_known(log: str, returncode: int | None) -> None:
    assert diagnose(log, returncode) is None


@contextmanager
def answering(code: int, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_probe_tells_what_is_in_the_way() -> None:
    with answering(200) as port:
        assert probe("127.0.0.1", port) is None
    assert "nobody listens" in (probe("127.0.0.1", port) or "")
    with answering(404) as port:
        assert "HTTP 404" in (probe("127.0.0.1", port) or "")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "does not answer" in (probe("127.0.0.1", silent.getsockname()[1], timeout=0.1) or "")
    with socket.create_server(("127.0.0.1", 0)) as rude:
        threading.Thread(target=lambda: [rude.accept()[0].close() for _ in range(2)]).start()
        assert "hangs up" in (probe("127.0.0.1", rude.getsockname()[1]) or "")


def test_a_probe_tells_which_side_lacks_tls(tmp_path: Path) -> None:
    """Waiting mends neither, so `join` ends with the line."""
    make(tmp_path, ["127.0.0.1"], 1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server" / "server.pem", tmp_path / "server" / "server.key")
    with answering(200) as port:
        plain = probe("127.0.0.1", port, tmp_path / "server" / "ca.crt") or ""
    with answering(200, context) as port:
        secret = probe("127.0.0.1", port) or ""
        assert probe("127.0.0.1", port, tmp_path / "server" / "ca.crt") is None
    assert "the server speaks plain text, not TLS: start it with --tls, or join it without" in plain
    assert "the server speaks TLS: join with --tls" in secret
    assert hopeless(plain)
    assert hopeless(secret)


# The bundle

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=200)


@given(scenario=TEXT, number=st.integers(-(2**62), 2**62))
@settings(max_examples=60, deadline=None)
def test_a_bundle_brings_any_configuration_through_and_no_code(scenario: str, number: int) -> None:
    app = get_fab_config(bundle({"scenario": scenario, "number": number}))
    assert app["tool"]["flwr"]["app"]["config"] == {"scenario": scenario, "number": number}
    assert app["tool"]["flwr"]["app"]["components"]["clientapp"] == "splitfed.clients.app:app"
    assert app["project"]["dependencies"] == []


def test_the_same_configuration_makes_the_same_bundle() -> None:
    assert bundle({"scenario": "a: 1\nb: 2\n"}) == bundle({"scenario": "a: 1\nb: 2\n"})


def test_sigterm_is_what_a_child_hears_first(tmp_path: Path) -> None:
    polite = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); "
    code = polite + "print('up', flush=True); time.sleep(60)"
    with python(code, tmp_path) as child:
        assert eventually(lambda: "up" in child.tail())
        child.stop()
    assert child.returncode == 7
    assert not running(child.pid)
