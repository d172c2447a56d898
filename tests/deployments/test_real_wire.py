"""The ledger beside what interfaces count: three hosts in network namespaces, MTU 1500, no offloads."""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import PLAIN, small
from network import wire_host
from network.netns import Counts, Network, answer, or_skip, tell
from network.wire_host import CARRIERS

from splitfed.engines.deployment.certificates import make
from splitfed.run.ledger import Row, read_rows

CLIENTS = ("client-0", "client-1")
# Headers are 66 of every 1,514 bytes, acknowledgements of the other direction come on top, then HTTP/2 and TLS.
MOST = 1.12
# 17 tokens of 192 features for 16 images: 209 kB a frame, without labels and envelope.
LARGE = (
    "model.args={patch_size: 2, embed_dim: 192, depth: 2, num_heads: 3}", "data.limit=400", "federation.clients=2",
    "federation.mode=sfl-v1", "federation.local_epochs=null", *PLAIN,
)  # fmt: skip
ORPHAN = """
import subprocess, sys
print(subprocess.Popen(["sleep", "60"], start_new_session=True).pid, flush=True)
"""


@pytest.fixture
def network():
    with or_skip(Network("server", *CLIENTS)) as made:
        yield made


@pytest.mark.slow
def test_interfaces_count_little_more_than_the_data_plane(network, tmp_path):
    """The channel alone, without Flower: one round in plain text and one over TLS."""
    scenario = small(*LARGE, "federation.local_steps=6")
    where = network.addresses["server"]
    make(tmp_path / "tls", [where], len(CLIENTS))
    task = json.dumps({"scenario": scenario.to_yaml(), "folder": str(tmp_path), "host": where})
    server, *clients = [
        network.start(host, sys.executable, wire_host.__file__, *part, task, log=tmp_path / f"{host}.log")
        for host, part in (("server", ["server"]), *((name, ["client", name[-1]]) for name in CLIENTS))
    ]
    before, seen = counts(network), {}
    for round in CARRIERS:
        line = answer(server)
        assert line, logs(tmp_path)
        invitations = json.loads(line)
        for client, invitation in zip(clients, invitations, strict=True):
            tell(client, json.dumps([round, *invitation]))
        assert [answer(client) for client in clients] == ["done"] * len(clients), logs(tmp_path)
        tell(server, "next")
        now = settled(network)
        seen[round], before = {host: now[host] - before[host] for host in now}, now
    assert [process.wait(30) for process in (server, *clients)] == [0] * 3, logs(tmp_path)

    rows = list(read_rows(tmp_path / "ledger.csv"))
    frames = [row.sizes.sent for row in rows if row.role in ("smashed", "cut_gradient")]
    assert len(frames) == len(CARRIERS) * 2 * len(CLIENTS) * 6
    assert min(frames) > 100_000
    for round in CARRIERS:
        check(seen[round], [row for row in rows if row.round == round], CARRIERS[round])


@pytest.mark.long
def test_interfaces_count_little_more_than_a_deployment(network, tmp_path):
    """`serve` and `join` with TLS, from the first packet to the last: both planes, and what was sent in vain."""
    (tmp_path / "scenario.yaml").write_text(small(*LARGE, "federation.local_steps=12").to_yaml())
    where = network.addresses["server"]
    make(tmp_path / "tls", [where], len(CLIENTS))
    commands = {"server": ["serve", "scenario.yaml", "--host", where, "--tls", "tls", "--runs", "runs"]}
    for number, name in enumerate(CLIENTS):
        commands[name] = ["join", where, "--tls", f"tls/{name}", "--partition", str(number), "--state", name]
    before = counts(network)
    processes = [
        network.start(host, sys.executable, "-m", "splitfed", *command, log=tmp_path / f"{host}.log", cwd=tmp_path)
        for host, command in commands.items()
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, (said, logs(tmp_path))
    now = settled(network)
    (run,) = (tmp_path / "runs").iterdir()
    rows = [*read_rows(run / "ledger.csv"), *read_rows(run / "wasted.csv")]
    assert {row.plane for row in rows} == {"data", "control"}
    check({host: now[host] - before[host] for host in now}, rows, "deployment")


def test_hosts_leave_nothing_behind(network):
    """Not even where what was done with them failed, and a grandchild is still there."""
    before = listed()
    with suppress(ZeroDivisionError), Network("one", "other") as short:
        orphan = answer(short.start("one", sys.executable, "-c", ORPHAN))
        assert set(before) < set(listed())
        raise ZeroDivisionError
    assert listed() == before
    command = Path(f"/proc/{orphan}/cmdline")
    assert not command.exists() or not command.read_bytes()  # a zombie's is empty


def listed() -> list[str]:
    """Return the namespaces that this process has made."""
    return sorted(path.name for path in Path("/run/netns").glob(f"splitfed-{os.getpid()}-*"))


def check(seen: dict[str, Counts], rows: list[Row], carrier: str) -> None:
    """Hold each interface's bytes against the ledger's: never fewer, and little more."""
    for host, counted in seen.items():
        ours = [row for row in rows if host in ("server", f"client-{row.client}")]
        up, down = (sum(row.sizes.sent for row in ours if row.direction == way) for way in ("up", "down"))
        ways = (counted.received, counted.sent) if host == "server" else (counted.sent, counted.received)
        for way, wire, ledger in zip(("up", "down"), ways, (up, down), strict=True):
            told = f"{carrier}, {host}, {way}: {wire} bytes on the wire, {ledger} in the ledger ({wire / ledger:.4f})"
            print(told)
            assert ledger <= wire <= MOST * ledger, told


def counts(network: Network) -> dict[str, Counts]:
    return {host: network.counts(host) for host in network.addresses}


def settled(network: Network) -> dict[str, Counts]:
    """Return the counts when nothing is on its way any more."""
    before: dict[str, Counts] = {}
    while before != (now := counts(network)):
        before = now
        time.sleep(0.3)
    return now


def logs(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.log")}
