"""Somebody without a key, and clients that are there but do nothing: the run goes on, at little cost."""

import re
import signal
import socket
import sqlite3
import time
from base64 import b64encode
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from deployed import deployment, descendants
from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message
from helpers import small

from splitfed.server.deployment.nodes import SPARE

pytestmark = pytest.mark.long


def rounds(folder: Path) -> int:
    file = folder / "metrics.csv"
    return len(file.read_text().splitlines()) - 1 if file.exists() else 0


def hung_up(one: socket.socket) -> bool:
    """Wait until the other end hangs up, whatever it says before."""
    try:
        while one.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def memory(pid: int) -> int:
    """Return how many bytes a process has had in memory at most."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024  # type: ignore[index]


def superlink(pid: int) -> int:
    found = [one for one in descendants(pid) if b"deployment.superlink" in Path(f"/proc/{one}/cmdline").read_bytes()]
    return found[0]


def new_node(port: int) -> bool:
    """Make a node with a key of its own, as anybody may where there are no others; return whether that was let."""
    private, public = generate_key_pairs()
    key, time = public_key_to_bytes(public), now().isoformat()
    headers = {
        "flwr-public-key": b64encode(key).decode(), "flwr-timestamp": time,
        "flwr-signature": b64encode(sign_message(private, time.encode())).decode(),
        "content-type": "application/protobuf",
    }  # fmt: skip
    asked = RegisterNodeFleetRequest(public_key=key).SerializeToString()
    where = f"http://127.0.0.1:{port}/v1/fleet/register-node"
    return httpx.post(where, content=asked, headers=headers, timeout=60, trust_env=False).status_code == 200


BIG = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 629145600\r\n\r\n"
CHUNKED = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n"
SLOW = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nfew"
HEADS = b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-More: " + b"a" * 20_000_000


def test_strangers_at_both_ports_cost_little_and_go(tmp_path):
    scenario = small(
        "federation.clients=1", "federation.rounds=400", "federation.local_epochs=null", "federation.local_steps=20",
        "engine={kind: deployment, threads: 1}",
    )  # fmt: skip
    with deployment(tmp_path) as here, ExitStack() as stack:
        server = here.serve(scenario)
        here.join(0)
        server.shows("  2/400 ")

        def connect(port: int, says: bytes = b"") -> socket.socket:
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            one.settimeout(90)
            with suppress(ConnectionError):  # it may hang up before it has all
                one.sendall(says)
            return one

        link = superlink(server.pid)
        before, done = memory(link) + memory(server.pid), rounds(here.runs[0])
        crowd = [connect(port) for _ in range(300) for port in (here.port, here.split_port)]
        crowd += [connect(here.port, SLOW) for _ in range(50)]
        crowd += [connect(here.split_port, b"PRI * HTTP/2.0\r\n") for _ in range(50)]
        for _ in range(5):
            crowd += [connect(here.port, says) for says in (BIG + bytes(1 << 24), CHUNKED + bytes(1 << 24), HEADS)]
        assert all(map(hung_up, crowd))
        made = [new_node(here.port) for _ in range(SPARE + 20)]
        database = sqlite3.connect(f"file:{here.runs[0] / 'flower' / 'state.db'}?mode=ro", uri=True)
        assert all(made)
        assert database.execute("select count(*) from node").fetchone()[0] <= SPARE + 1
        assert memory(link) + memory(server.pid) - before < 100e6
        limit = time.monotonic() + 200
        while rounds(here.runs[0]) < done + 3 and time.monotonic() < limit:
            time.sleep(0.2)
        assert rounds(here.runs[0]) >= done + 3, server.text
        assert "is lost" not in server.text
        private = [file for file in (here.runs[0] / "flower").iterdir() if file.is_file()]
        assert {"state.db", "superlink.log"} <= {file.name for file in private}
        assert {file.stat().st_mode & 0o777 for file in private} == {0o600}


def test_a_client_that_is_stopped_is_lost_to_its_round_and_comes_back(tmp_path):
    scenario = small(
        "federation.clients=2", "federation.rounds=400", "federation.local_epochs=null", "federation.local_steps=20",
        "engine={kind: deployment, threads: 1, silence: 25}",
    )  # fmt: skip
    with deployment(tmp_path) as here:
        server = here.serve(scenario)
        clients = [here.join(client) for client in range(2)]
        clients[0].shows("round 2:")
        clients[0].kill(signal.SIGSTOP)
        server.shows(r"still waiting for clients that have sent nothing yet: 0|round \d+: client 0 is lost")
        lost = server.shows(r"round \d+: client 0 is lost")
        number = int(lost.split()[1].removesuffix(":"))
        server.shows(rf" {number + 1}/400 ")
        clients[0].kill(signal.SIGCONT)
        server.shows("client 0 joined with .*[^$]*client 0 joined with ")
        last = clients[0].text.count("steps, loss")
        limit = time.monotonic() + 200
        while clients[0].text.count("steps, loss") < last + 2 and time.monotonic() < limit:
            time.sleep(0.2)
        assert clients[0].text.count("steps, loss") >= last + 2, (server.text, clients[0].text)
