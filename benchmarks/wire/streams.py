"""Many clients at once: exchanges/s of 64 gRPC streams, and how even their shares are.

    python benchmarks/wire/streams.py [--streams 64] [--processes 4] [--wave 8] [--seconds 5] [--size 100000]
        [--threads 1]

One server process and at most four client processes. First in waves, as rounds go whose clients come a few at a time:
`--wave` streams open, exchange, and close before the next ones; then all together. Every stream exchanges frames of
`--size` bytes each way for as long as the others do. Printed are exchanges/s of all, and the share of the slowest
stream in what an even split would give it, 1.00 being perfectly fair.
"""

import argparse
import math
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from threading import Barrier

import torch

from splitfed.clients.connect import Reach, connect
from splitfed.server.back.turns import Turns
from splitfed.server.deployment.grpc_listener import GrpcListener
from splitfed.wire.channel import Invitation

REACH = Reach("127.0.0.1", deadline=120.0)


class Trainer:
    """Answers each frame with itself, one at a time and in turn, as a server with one back does."""

    most_bytes = 1 << 24

    def __init__(self) -> None:
        self._turns = Turns(1)

    def open(self, client: int, round: int) -> "Trainer":
        return self

    def handle(self, buffer: bytes) -> bytes:
        with self._turns:
            return buffer

    def close(self) -> None:
        pass


def serve(pipe: Connection, streams: int) -> None:
    """Listen until told to stop; tell the invitations first."""
    with GrpcListener(
        Trainer(), host="127.0.0.1", port=0, tls=None, run="streams", attempt=1, streams=streams, deadline=120.0,
        public=None,
    ) as listener:  # fmt: skip
        pipe.send([listener.invite(client, 1) for client in range(streams)])
        pipe.recv()


def run(pipe: Connection) -> None:
    """Exchange on the streams that are asked for, each in a thread, and tell how often each did; None ends it."""
    while (asked := pipe.recv()) is not None:
        invitations, size, seconds = asked
        pipe.send(_wave(invitations, size, seconds, pipe))


def _wave(invitations: list[tuple[int, Invitation]], size: int, seconds: float, pipe: Connection) -> list[int]:
    frame, opened = bytes(size), Barrier(len(invitations) + 1)

    def one(invited: tuple[int, Invitation]) -> int:
        client, invitation = invited
        with connect(invitation, client, 1, REACH) as stream:
            opened.wait()
            opened.wait()
            count, until = 0, time.monotonic() + seconds
            while time.monotonic() < until:
                stream.exchange(frame)
                count += 1
            return count

    with ThreadPoolExecutor(len(invitations)) as pool:
        counts = [pool.submit(one, invited) for invited in invitations]
        opened.wait()
        pipe.send("open")
        pipe.recv()  # all processes are
        opened.wait()
        return [count.result() for count in counts]


def measure(pipes: list[Connection], invitations: list[tuple[int, Invitation]], size: int, seconds: float) -> list[int]:
    """Let these streams run at the same time, spread over the processes; return the exchanges of each."""
    shares = [(pipe, invitations[number :: len(pipes)]) for number, pipe in enumerate(pipes)]
    shares = [(pipe, share) for pipe, share in shares if share]
    for pipe, share in shares:
        pipe.send((share, size, seconds))
    for pipe, _ in shares:
        pipe.recv()
    for pipe, _ in shares:
        pipe.send("go")
    return [count for pipe, _ in shares for count in pipe.recv()]


def main() -> None:
    """Print one line for waves and one for all together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--processes", type=int, default=4, choices=range(1, 5))
    parser.add_argument("--wave", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each case, all its waves together")
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    context = multiprocessing.get_context("spawn")
    (door, theirs), lines = context.Pipe(), [context.Pipe() for _ in range(options.processes)]
    processes = [context.Process(target=serve, args=(theirs, options.streams))]
    processes += [context.Process(target=run, args=(line[1],)) for line in lines]
    for process in processes:
        process.start()
    invitations, pipes = list(enumerate(door.recv())), [line[0] for line in lines]
    measure(pipes, invitations, options.size, 0.2)  # the first of each process loads what it needs
    for name, wave in ((f"waves of {options.wave}", options.wave), ("all together", options.streams)):
        waves = math.ceil(options.streams / wave)
        counts, slowest = [], 1.0
        began = time.monotonic()
        for start in range(0, options.streams, wave):
            found = measure(pipes, invitations[start : start + wave], options.size, options.seconds / waves)
            slowest = min(slowest, min(found) * len(found) / sum(found))
            counts += found
        rate = sum(counts) / (time.monotonic() - began)
        print(f"{name}: {options.streams} streams, {rate:.0f} exchanges/s, slowest share {slowest:.2f}", flush=True)
    for pipe in (*pipes, door):
        pipe.send(None)
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
