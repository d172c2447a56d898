"""Answers over hosts whose IP packets pass a forwarder: `-s` prints the figures of docs/inference.md."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from statistics import fmean, median

import pytest
from helpers import PLAIN, small
from network.forwarder import Shape
from network.netns import answer, or_skip, tell
from network.shaped import Shaped

from splitfed import simulate
from splitfed.engines.deployment.certificates import make
from splitfed.link.connection import SEGMENT
from splitfed.link.trace import PACKET

PORT, BATCH = 9094, 16
LARGE = ("model.args={patch_size: 2, embed_dim: 96, depth: 2, num_heads: 3}", "federation.local_epochs=null", *PLAIN)
RATES = {"float32": "float32", "4 bits": "{kind: uniform, bits: 4}"}
PAYLOAD = SEGMENT / PACKET  # of a rate: what a speed test tells
# A line of input says how to ask, and for how many mini-batches; then it says how long each of them took, what crossed
# by direction, and how many images were answered without the server.
ASK = """
import json, sys, time
import numpy as np
import torch
from PIL import Image
from splitfed import RemotePredictor
torch.set_num_threads(1)
numbers = np.random.default_rng(0)
images = [Image.fromarray(numbers.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(int(sys.argv[2]))]
for line in sys.stdin:
    how, count = json.loads(line)
    with RemotePredictor(sys.argv[1], tls="tls/client-0", state="state", batch=len(images), deadline=60, **how) as asks:
        asks.predict(images)
        before, took, alone = asks.bytes, [], 0
        for _ in range(count):
            began = time.monotonic()
            alone += sum(bool(one.alone) for one in asks.predict(images))
            took.append(time.monotonic() - began)
        sent = {way: sum(n - before[k] for k, n in asks.bytes.items() if k[0] == way) for way in ("up", "down")}
    print(json.dumps([took, sent, alone]), flush=True)
"""


@pytest.fixture(scope="module")
def network() -> Iterator[Shaped]:
    with or_skip(Shaped("server", "client-0")) as made:
        yield made


@pytest.fixture(scope="module")
def ask(network: Shaped, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:
    """Asks a service with TLS on the other host: seconds of each mini-batch, bytes by direction, answered alone."""
    folder = tmp_path_factory.mktemp("line")
    steps = ("federation.clients=1", "federation.local_steps=2", "federation.rounds=1", "data.test_limit=16")
    run = simulate(small(*LARGE, *steps), runs=folder).folder
    where = network.addresses["server"]
    make(folder / "tls", [where], 1)
    rates = [f"{name}={{reducer: none, smashed: {{codec: {codec}, lossless: none}}}}" for name, codec in RATES.items()]
    network.shape(Shape(), Shape())
    serve = ["serve-model", str(run), "--host", where, "--tls", "tls", "--batch", str(BATCH)]
    serve += [part for rate in rates for part in ("--rate", rate)]
    python, log = (sys.executable, "-m", "splitfed"), folder / "server.log"
    with network.start("server", *python, *serve, log=log, cwd=folder) as server:
        assert server.stdout
        while not re.search(rf"{where}:{PORT}", line := server.stdout.readline()):
            assert line, log.read_text()
        with network.start("client-0", sys.executable, "-c", ASK, where, str(BATCH), cwd=folder) as client:

            def asked(count: int, **how: object) -> tuple[list[float], dict[str, int], int]:
                tell(client, json.dumps([how, count]))
                return tuple(json.loads(answer(client)))  # type: ignore[return-value]

            yield asked
            client.kill()
        server.kill()


@pytest.mark.long
@pytest.mark.parametrize("mbit", [2, 5, 20])
def test_an_answer_takes_what_its_bytes_take(mbit: int, network: Shaped, ask: Callable) -> None:
    """And one way there and one back, beside what it takes over a line that takes no time."""
    for rate in RATES:
        network.shape(Shape(), Shape())
        free, *_ = ask(20, rate=rate)
        for latency in (0.005, 0.03, 0.08):
            network.shape(Shape(1e6 * mbit, latency), Shape(2e6 * mbit, latency))
            took, sent, alone = ask(20, rate=rate)
            up, down = (8 * sent[way] / 20 / PAYLOAD / 1e6 / mbit for way in ("up", "down"))
            told, real = median(free) + 2 * latency + up + down / 2, median(took)
            print(
                f"{mbit} Mbit/s, {1000 * latency:g} ms, {rate}: {sent['up'] / 20 / BATCH / 1e3:.2f} kB an image, "
                f"{1000 * real:.0f} ms (p90 {1000 * sorted(took)[17]:.0f}), foretold {1000 * told:.0f} ms"
            )
            assert not alone
            assert real == pytest.approx(told, rel=0.2, abs=0.01)


@pytest.mark.long
def test_a_target_in_seconds_holds_over_a_slow_line(network: Shaped, ask: Callable) -> None:
    """Float32 alone takes more, 4 bits alone less: what is chosen comes between."""
    network.shape(Shape(5e6, 0.03), Shape(10e6, 0.03))
    means = {rate: fmean(ask(20, rate=rate)[0]) for rate in RATES}
    assert means["4 bits"] < 0.15 < means["float32"]
    took, _, alone = ask(150, target="150ms")
    each = ", ".join(f"{rate} {1000 * mean:.0f} ms" for rate, mean in means.items())
    print(f"{each}; for a target of 150 ms: {1000 * fmean(took):.0f} ms", flush=True)
    assert not alone
    assert fmean(took) == pytest.approx(0.15, rel=0.1)
