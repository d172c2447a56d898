"""Thousands of requests on many streams while the model is exchanged, a client is killed and another sends garbage."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import pytest
import torch
from deployed import Process
from PIL import Image

from splitfed import Predictor, RemotePredictor
from splitfed.cli import main as cli
from splitfed.data.sources.base import open_digits
from splitfed.engines.deployment.processes import free_port
from splitfed.inference.asking import Asking
from splitfed.inference.remote.bundle import Bundle, read_bundle
from splitfed.inference.remote.dialling import Dialler
from splitfed.inference.remote.line import Line
from splitfed.inference.service.serve import Service
from splitfed.seeds import Key
from splitfed.wire.answers import ASK, BUSY, DEADLINE_KEY, RATE_KEY, path

PLAIN = ["plain={reducer: none, smashed: {codec: float32}}"]
STREAMS, EACH, IMAGES = 32, 320, 16
MIB = 1 << 20


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def asking(bundle: Bundle) -> Asking:
    geometry = bundle.trunk.front.geometry(1, len(bundle.classes))
    return Asking(bundle.rates[0].compression, bundle.trunk, geometry, bundle.device)


def tokens_of(bundle: Bundle, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return bundle.trunk.go_on(0, bundle.trunk.begin(images), bundle.trunk.cut)


def doomed(pipe: Connection, port: int, folder: str) -> None:
    """Ask without end, until killed."""
    torch.set_num_threads(1)
    with RemotePredictor(f"127.0.0.1:{port}", state=folder, client=77, batch=1) as predictor:
        while True:
            predictor.predict([Image.new("RGB", (8, 8))] * 20)
            pipe.send(True)


def garbage(port: int, over: threading.Event) -> Iterator[None]:
    """Open streams and send what is no frame."""
    dialler = Dialler("127.0.0.1", port, None, 78)
    while not over.is_set():
        channel = dialler.channel(MIB)
        try:
            metadata = (*dialler.proof(channel, 10), (RATE_KEY, "plain"), (DEADLINE_KEY, "9"))
            list(channel.stream_stream(path(ASK))(iter([os.urandom(300)]), metadata=metadata))
        except grpc.RpcError:
            yield
        finally:
            channel.close()


@pytest.mark.long
def test_none_is_lost_and_none_is_wrong(copied: Path, tmp_path: Path) -> None:
    later = copied / "checkpoints" / "round-000008"
    later.rename(tmp_path / "later")
    images = torch.randn(IMAGES, 3, 8, 8, generator=Key(0).generator())
    wrong: list[str] = []
    counted: dict[int, int] = {}
    with Service(copied, port=0, metrics_port=0, rates=PLAIN, keep_old=600, queue=100) as service:
        (tmp_path / "bundle").write_bytes(service.backs.now.bundle)
        bundle = read_bundle(tmp_path / "bundle")
        one, tokens = asking(bundle), tokens_of(bundle, images)
        with torch.no_grad():
            right = Predictor(copied).model.parts.whole()(images)

        def ask(client: int) -> None:
            sent = 0

            def hear(direction: str, role: str, size: int) -> None:
                nonlocal sent
                sent += size

            line = Line(
                Dialler("127.0.0.1", service.port, None, client), "plain", 60, one.expected_answers(1), MIB, hear
            )  # fmt: skip
            for number in range(1, EACH + 1):
                row = (client + number) % IMAGES
                packed = one.pack(tokens[row : row + 1], 2, Key(number), number=number, model=bundle.name)
                while True:
                    line.ready(30)
                    header, buffer = line.send(number, packed).result(60)
                    if header.kind != BUSY:
                        break
                    time.sleep(0.01)
                found = one.unpack_answer(buffer, number, 1).logits[0]
                if not torch.allclose(found, right[row], atol=1e-4):
                    wrong.append(f"client {client}, request {number}")
            counted[client] = sent
            line.close()

        over = threading.Event()
        bad = threading.Thread(target=lambda: list(garbage(service.port, over)))
        bad.start()
        here, there = multiprocessing.Pipe()
        victim = multiprocessing.get_context("spawn").Process(
            target=doomed, args=(there, service.port, str(tmp_path / "state"))
        )  # fmt: skip
        victim.start()
        threads = [threading.Thread(target=ask, args=(client,)) for client in range(STREAMS)]
        for thread in threads:
            thread.start()
        while not service.tally.sums().get((0, "down", "answer")):
            time.sleep(0.05)
        before = resident()
        (tmp_path / "later").rename(later)
        assert service.reload() == "round 8 is served"
        if here.poll(60):  # it has begun: now it ends in the midst of it
            os.kill(victim.pid or 0, signal.SIGKILL)
        for thread in threads:
            thread.join()
        over.set()
        bad.join()
        victim.kill()
        victim.join()
        grown = resident() - before
        sums = service.tally.sums()
    assert not wrong
    assert len(counted) == STREAMS
    for client, sent in counted.items():
        assert sum(size for (who, _, _), (_, size) in sums.items() if who == client) == sent
        assert sums[client, "down", "answer"][0] == EACH
    assert sums[78, "up", "envelope"][0] > 0
    assert grown < 100 * MIB


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_end(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:  # fmt: skip
    later = copied / "checkpoints" / "round-000008"
    later.rename(tmp_path / "later")
    port, other = free_port(), free_port()
    monkeypatch.chdir(tmp_path)
    open_digits()[0].image(0).save("one.png")
    server = Process(tmp_path / "log", "serve-model", copied, "--port", port, "--metrics-port", other, "--watch", "0.5")
    try:
        server.shows("serving     round 7 of ")
        words = ["predict", f"127.0.0.1:{port}", "one.png", "--json"]
        monkeypatch.setattr("sys.argv", ["splitfed", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        assert '"exit": null' in capsys.readouterr().out
        server.kill(signal.SIGHUP)
        server.shows("round 7 is served, as before")
        (tmp_path / "later").rename(later)
        server.shows("round 8 is served$")
        server.kill(signal.SIGTERM)
        assert server.end() == 130
    finally:
        server.kill()
    assert "Traceback" not in server.text
    (ledger,) = (copied / "service").glob("*.csv")
    assert ",down,answer,1,40\n" in ledger.read_text()
