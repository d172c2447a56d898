"""Hosts whose IP packets pass a forwarder: what it promises, and how long a deployment takes there, by the clock on the
wall and by that of a simulation. `-s` prints the figures of docs/links.md."""

import json
import re
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

import pytest
from helpers import PLAIN, small, table
from network import mirror
from network.forwarder import Shape
from network.mirror import Errand
from network.netns import answer, or_skip
from network.shaped import Shaped
from outcomes import same
from waiting import until

from splitfed import Scenario, simulate
from splitfed.engines.deployment.certificates import make
from splitfed.link.connection import SEGMENT
from splitfed.link.trace import PACKET

CLIENTS = ("client-0", "client-1")
# It takes datagrams until the last, and says which came, when each was sent, and when it arrived.
CATCH = """
import json, socket, sys, time
catcher = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
catcher.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
catcher.bind((sys.argv[1], 7000))
catcher.settimeout(20)
print("ready", flush=True)
came = []
while (number := int.from_bytes((datagram := catcher.recv(2000))[:4], "big")) < int(sys.argv[2]):
    came.append((number, float(datagram[4:32]), time.monotonic()))
print(json.dumps(came), flush=True)
"""
THROW = """
import socket, sys, time
thrower, to = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), (sys.argv[1], 7000)
for number in range(int(sys.argv[2])):
    thrower.sendto((number.to_bytes(4, "big") + b"%28.9f" % time.monotonic()).ljust(972), to)
time.sleep(1)
for _ in range(int(sys.argv[3])):
    thrower.sendto(int(sys.argv[2]).to_bytes(4, "big"), to)
"""
ENDS = 20  # datagrams that say that all have been sent, since a line may lose some
HEADERS = 28  # of IP and UDP


@pytest.fixture(scope="module")
def network() -> Iterator[Shaped]:
    with or_skip(Shaped("server", *CLIENTS)) as made:
        yield made


def thrown(network: Shaped, host: str, to: str, packets: int) -> list[tuple[int, float, float]]:
    """Send datagrams of 1,000 bytes with their headers, all at once; when none is on its way any more, return which
    have come, and in which seconds each was sent and arrived."""
    where, way = network.addresses[to], f"{to} down" if host == "server" else f"{host} up"
    before = network.counted()[way].taken
    with network.start(to, sys.executable, "-c", CATCH, where, str(packets)) as catcher:
        assert answer(catcher) == "ready"
        network.start(host, sys.executable, "-c", THROW, where, str(packets), str(ENDS)).wait(30)
        came = json.loads(answer(catcher))
    until(lambda: network.counted()[way].taken >= before + packets + ENDS)
    return came


def test_each_way_has_a_rate_and_a_latency_of_its_own(network) -> None:
    network.shape(Shape(rate=1e6, latency=0.2), Shape(rate=8e6, latency=0.05))
    for ends, rate, latency in (((CLIENTS[0], "server"), 1e6, 0.2), (("server", CLIENTS[0]), 8e6, 0.05)):
        came = thrown(network, *ends, packets=40)
        assert [number for number, _, _ in came] == list(range(40))
        (_, first, there), (_, _, last) = came[0], came[-1]
        assert there - first >= latency + 8000 / rate
        assert last - first >= latency + 40 * 8000 / rate


def test_jitter_changes_no_order(network) -> None:
    network.shape(Shape(rate=8e6, latency=0.05, jitter=0.05), Shape())
    came = thrown(network, CLIENTS[0], "server", packets=60)
    assert [number for number, _, _ in came] == list(range(60))
    assert len({round(there - sent, 2) for _, sent, there in came}) > 3


def test_what_finds_the_queue_full_is_dropped(network) -> None:
    before = network.counted()
    network.shape(Shape(rate=1e5, queue=10_000), Shape())
    came = thrown(network, CLIENTS[1], "server", packets=100)
    # Ten fit; one more for each that leaves while others come.
    assert [number for number, _, _ in came[:10]] == list(range(10))
    assert 10 <= len(came) < 50
    now = network.counted()
    assert now["client-1 up"].dropped - before["client-1 up"].dropped >= 100 - len(came)
    assert now["client-0 up"] == before["client-0 up"]


def test_the_seed_decides_which_packets_are_lost(network) -> None:
    lost = []
    for seed in (1, 1, 5):
        network.shape(Shape(loss=0.2, seed=seed), Shape())
        came = {number for number, _, _ in thrown(network, CLIENTS[0], "server", packets=200)}
        lost.append(sorted(set(range(200)) - came))
    assert lost[0] == lost[1] != lost[2]
    assert 15 <= len(lost[0]) <= 70  # 40 are to be expected


# Frames of 104 kB, and next to no computing.
LARGE = ("model.args={patch_size: 2, embed_dim: 96, depth: 2, num_heads: 3}", "federation.local_epochs=null", *PLAIN)
LATENCIES, FREE = (0.005, 0.03, 0.08), 4
PAYLOAD = SEGMENT / PACKET  # of a rate: what a speed test tells


@pytest.mark.long
@pytest.mark.parametrize(
    ("mbit", "steps"),
    [(2, 30), (5, 60), (20, 160)],
)
def test_a_simulated_round_takes_as_long_as_a_real_one(mbit: int, steps: int, network, tmp_path) -> None:
    """The line has twice the rate down. Rounds over a line that takes no time come first: they tell, but for the first,
    what a mini-batch takes to compute, and what else a round takes, which the simulation is told."""
    rounds = FREE + len(LATENCIES)
    scenario = small(*LARGE, "federation.clients=1", f"federation.local_steps={steps}", f"federation.rounds={rounds}")
    lines = [(Shape(), Shape())] * FREE
    lines += [(Shape(1e6 * mbit, latency), Shape(2e6 * mbit, latency)) for latency in LATENCIES]
    folder, (said,) = deployed(network, scenario, 1, tmp_path, lines)
    ends = [0.0, *(float(row["seconds"]) for row in table(folder / "metrics.csv"))]
    seconds = [end - begin for begin, end in pairwise(ends)]
    trained = [float(found) for found in re.findall(r"^round \d+: .*loss [^,]+, ([0-9.]+) s\b", said, re.MULTILINE)]
    step = fmean(trained[1:FREE]) / steps
    late = fmean(seconds[1:FREE]) - step * steps
    for latency, real in zip(LATENCIES, seconds[FREE:], strict=True):
        told = small(
            *LARGE, "federation.clients=1", f"federation.local_steps={steps}", "federation.rounds=1",
            f"link={{kind: fixed, up: {PAYLOAD * mbit}Mbit, down: {2 * PAYLOAD * mbit}Mbit, latency: {latency}}}",
            f"federation.availability={{kind: drawn, late: {late:.3f}, step_seconds: {step:.5f}}}",
        )  # fmt: skip
        simulated = simulate(told, runs=tmp_path / "simulated").rounds[0].simulated_seconds
        line = f"{mbit} Mbit/s, {1000 * latency:g} ms: {real:.1f} s, simulated {simulated:.1f} s"
        print(f"{line} ({simulated / real:.2f}); beside {late:.1f} s, computing {step * steps:.1f} s", flush=True)
        assert simulated == pytest.approx(real, rel=0.15), line


def deployed(
    network: Shaped, scenario: Scenario, clients: int, folder: Path, lines: list[tuple[Shape, Shape]]
) -> tuple[Path, list[str]]:
    """Run a scenario, over TLS, with a line for each round, the last for all that follow; return the run's folder and
    what each client said."""
    (folder / "scenario.yaml").write_text(scenario.to_yaml())
    where = network.addresses["server"]
    make(folder / "tls", [where], clients)

    def start(host: str, *command: str):
        log = folder / f"{host}.log"
        return network.start(host, sys.executable, "-m", "splitfed", *command, log=log, cwd=folder)

    network.shape(*lines[0])
    server = start("server", "serve", "scenario.yaml", "--host", where, "--tls", "tls", "--runs", "runs")
    joined = [
        start(name, "join", where, "--tls", f"tls/{name}", "--partition", str(number), "--state", name)
        for number, name in enumerate(CLIENTS[:clients])
    ]
    watch = threading.Timer(900, server.kill)
    watch.start()
    assert server.stdout
    for line in server.stdout:
        if found := re.match(rf" *(\d+)/{scenario.federation.rounds} ", line):
            network.shape(*lines[min(int(found[1]), len(lines) - 1)])
    watch.cancel()
    said = [client.communicate(timeout=60)[0] for client in joined]
    logs = {path.name: path.read_text() for path in folder.glob("*.log")}
    assert [process.wait(60) for process in (server, *joined)] == [0] * (1 + clients), (said, logs)
    (run,) = (folder / "runs").iterdir()
    return run, said


@pytest.mark.long
def test_a_deployment_over_a_bad_line_ends_as_it_would_without(network, tmp_path) -> None:
    """A round trip of 200 ms and 2 % of packets lost, each way."""
    scenario = small(*LARGE, "federation.local_steps=3", "federation.clients=2", "training.client_state=keep")
    expected = simulate(scenario, runs=tmp_path / "inline")
    before, bad = network.counted(), Shape(rate=5e6, latency=0.1, loss=0.02, seed=3)
    folder, _ = deployed(network, scenario, 2, tmp_path, [(bad, bad)])
    same(expected.folder, folder)
    for way, counted in network.counted().items():
        assert counted.lost > before[way].lost, way


# What gRPC is told beside our options.
CARRIERS = {
    "TCP": ("tcp", ()),
    "as it is": ("grpc", ()),
    "windows of 8 MiB": ("grpc", (("grpc.http2.lookahead_bytes", 8 << 20),)),
    "written in 4 MiB": ("grpc", (("grpc.http2.write_buffer_size", 4 << 20),)),
    "HTTP/2 frames of 1 MiB": ("grpc", (("grpc.http2.max_frame_size", 1 << 20),)),
    "no probing": ("grpc", (("grpc.http2.bdp_probe", 0),)),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("mbit", "size"),
    [(10, 800_000), (50, 800_000), (50, 4_000_000)],
)
def test_a_stream_is_as_fast_as_tcp_on_a_long_line(mbit: int, size: int, network) -> None:
    """100 ms there and back. The windows of HTTP/2 begin with 64 kB, which would be 5 Mbit/s."""
    line = Shape(rate=mbit * 1e6, latency=0.05, queue=1 << 24)
    network.shape(line, line)
    found = {name: exchanges(network, *told, size) for name, told in CARRIERS.items()}
    for name, (first, later) in found.items():
        rate = 16 * size / later / 1e6
        print(f"{mbit} Mbit/s, {size // 1000} kB, {name}: first {first:.2f} s, then {later:.2f} s ({rate:.1f} Mbit/s)")
    _, bare = found["TCP"]
    assert found["as it is"][1] < 1.15 * bare
    assert found["no probing"][1] > found["as it is"][1]


def exchanges(network: Shaped, carrier: str, more: tuple, size: int) -> tuple[float, float]:
    """Return the seconds of the first exchange, and of those that follow."""
    errand = {"server": network.addresses["server"], "carrier": carrier, "size": size, "exchanges": 7, "more": more}
    with network.start("server", sys.executable, mirror.__file__, Errand("server", **errand).text()) as server:
        errand["invitation"] = json.loads(answer(server))
        with network.start(CLIENTS[0], sys.executable, mirror.__file__, Errand("visitor", **errand).text()) as visitor:
            first, *later = json.loads(answer(visitor))
        server.kill()
    return first, median(later)
