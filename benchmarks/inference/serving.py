"""What `serve-model` costs over a bare gRPC server with the same back: latency and requests a second.

    python benchmarks/inference/serving.py [RUN] [--clients 1,8,32] [--seconds 3] [--repeats 3] [--threads 1]
        [--rate RATE]

RUN is a run's folder; without it a small one is made. Three servers, a process each, are asked alternately by as many
streams as are named, in one more process, each with one request under way, of one image: `bare` takes float32 tokens as
they are, one by one; `alone` is `serve-model --batch 1`; `together` computes the requests of several clients at once.
Printed are the medians over the repeats of requests a second and of latencies, and their ratios to those of `bare`.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

import grpc
import torch

from splitfed import Scenario, simulate
from splitfed.inference.asking import Asking
from splitfed.inference.remote.bundle import read_bundle
from splitfed.inference.remote.dialling import Dialler
from splitfed.inference.run_model import RunModel
from splitfed.inference.service.serve import Service
from splitfed.seeds import Key
from splitfed.wire.answers import ASK, DEADLINE_KEY, RATE_KEY, path

PLAIN = "plain={reducer: none, smashed: {codec: float32, lossless: none}}"
MOST = 1 << 26


def bare(pipe: Connection, run: str, threads: int) -> None:
    """Go on with float32 tokens of one image, as they come."""
    torch.set_num_threads(threads)
    model = RunModel.read(run)
    trunk = model.trunk
    geometry = trunk.front.geometry(1, len(model.classes))
    one = ThreadPoolExecutor(1)

    @torch.no_grad()
    def answer(buffer: bytes) -> bytes:
        tokens = torch.frombuffer(bytearray(buffer), dtype=torch.float32).view(1, geometry.tokens, geometry.width)
        return trunk.end(trunk.go_on(trunk.cut, trunk.cross(tokens))).float().numpy().tobytes()

    async def ask(requests, context):
        async for buffer in requests:
            yield await asyncio.get_running_loop().run_in_executor(one, answer, buffer)

    async def serve() -> None:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", MOST)])
        handler = {"Ask": grpc.stream_stream_rpc_method_handler(ask)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bare", handler),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        pipe.send((port, b""))
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        await server.stop(0)

    asyncio.run(serve())


def served(pipe: Connection, run: str, threads: int, batch: int, rate: str, ledger: str) -> None:
    """Serve as `serve-model` does."""
    torch.set_num_threads(threads)
    how = {"rates": [rate], "batch": batch, "ledger": Path(ledger)}
    with Service(run, port=0, metrics_port=0, **how) as service:
        pipe.send((service.port, service.backs.now.bundle))
        pipe.recv()


def streams(port: int, buffer: bytes, rate: str | None, count: int, seconds: float) -> list[float]:
    """Ask on so many streams, for so many seconds, and return how many each request took."""
    found: list[float] = []
    until = 0.0
    ready = threading.Barrier(count + 1)

    def ask(number: int) -> None:
        dialler = Dialler("127.0.0.1", port, None, number)
        channel = dialler.channel(MOST)
        requests: SimpleQueue[bytes | None] = SimpleQueue()
        if rate is None:
            call = channel.stream_stream("/Bare/Ask")(iter(requests.get, None))
        else:
            metadata = (*dialler.proof(channel, 30), (RATE_KEY, rate), (DEADLINE_KEY, "60"))
            call = channel.stream_stream(path(ASK))(iter(requests.get, None), metadata=metadata)
        requests.put(buffer)
        next(call)
        ready.wait()
        while (begun := time.perf_counter()) < until:
            requests.put(buffer)
            next(call)
            found.append(time.perf_counter() - begun)
        requests.put(None)
        channel.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    until = time.perf_counter() + 3600
    ready.wait()
    until = time.perf_counter() + seconds
    for thread in threads:
        thread.join()
    return found


def asked(pipe: Connection) -> None:
    """Ask as is told, until None is."""
    while (told := pipe.recv()) is not None:
        pipe.send(streams(*told))


def started(target: Callable, *given: object) -> Iterator[Connection]:
    """Start a process and yield the way to it."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(there, *given))
    process.start()
    yield here
    here.send(None)
    process.join()


def small(folder: Path) -> Path:
    """Make a run of the digits."""
    scenario = Scenario.load("digits", ["federation.rounds=1", "data.limit=200"])
    return simulate(scenario, runs=folder).folder


def request(run: str, bundle: bytes, folder: Path) -> tuple[bytes, bytes]:
    """Return a request for one image as a client of `serve-model` packs it, and as the bare server takes it."""
    (folder / "bundle").write_bytes(bundle)
    read = read_bundle(folder / "bundle")
    size = read.scenario.model.image_size
    with torch.no_grad():
        tokens = read.trunk.begin(torch.rand(1, 3, size, size))
        for block in range(1, read.trunk.cut + 1):
            tokens = read.trunk.block(block, tokens)
    geometry = read.trunk.front.geometry(1, len(read.classes))
    asking = Asking(read.rates[0].compression, read.trunk, geometry, read.device)
    packed = asking.pack(tokens, read.trunk.cut, Key(0), number=1, model=read.name)
    return packed.buffer, tokens.numpy().tobytes()


def numbers(text: str) -> list[int]:
    """Read whole numbers with commas between them."""
    return [int(one) for one in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--clients", type=numbers, default="1,8,32")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rate", default=PLAIN)
    told = parser.parse_args()
    rate = told.rate.partition("=")[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run = told.run or str(small(folder))
        ways = [
            started(bare, run, told.threads), started(served, run, told.threads, 1, told.rate, str(folder / "alone")),
            started(served, run, told.threads, 32, told.rate, str(folder / "together")), started(asked),
        ]  # fmt: skip
        (*servers, client) = [next(way) for way in ways]
        places = [server.recv() for server in servers]
        frame, plain = request(run, places[1][1], folder)
        print("clients  server     requests/s   of bare   p50 ms   of bare   p99 ms   of bare")
        for count in told.clients:
            found: dict[str, list[tuple[float, float, float]]] = {"bare": [], "alone": [], "together": []}
            for _ in range(told.repeats):
                for name, (port, _) in zip(found, places, strict=True):
                    sent = (plain, None) if name == "bare" else (frame, rate)
                    client.send((port, *sent, count, told.seconds))
                    took = sorted(client.recv())
                    rank = [1e3 * took[int(share * (len(took) - 1))] for share in (0.5, 0.99)]
                    found[name].append((len(took) / told.seconds, rank[0], rank[1]))
            medians = {
                name: [statistics.median(one) for one in zip(*rows, strict=True)] for name, rows in found.items()
            }
            for name, (speed, half, most) in medians.items():
                of = medians["bare"]
                print(
                    f"{count:7}  {name:9}  {speed:10.0f}  {speed / of[0]:8.2f}  {half:7.2f}  {half / of[1]:8.2f}  "
                    f"{most:7.2f}  {most / of[2]:8.2f}",
                    flush=True,
                )
        for way in ways:
            next(way, None)


if __name__ == "__main__":
    main()
