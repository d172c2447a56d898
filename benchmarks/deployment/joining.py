"""What a client takes: seconds until it has joined, and the memory of its two processes, then and at its most.

    python benchmarks/deployment/joining.py [--sizes 96 224] [--batch 32] [--cut 3] [--times 3] [--other CHECKOUT]

A real server and a real client over loopback: DeiT-Tiny in float32, uncompressed, one thread, a round of five
mini-batches of images of the client's own. The server is there before the client starts, and `joined` is when it says
that the client is. `cpu` are the seconds of processor that both of the client's processes, `join` and its SuperNode,
have taken until then: they tell more than the clock on a machine that does other things too. Memory is the most that
each process held in RAM, pages of files included (`VmHWM`), so that what both map, such as the interpreter, counts
twice.

With `--other`, another checkout is measured in turn with this one, and a line shows this one over it. Only the command
line is used, so that any commit will do.
"""

import argparse
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parents[2]
SCENARIO = """
model: {{name: deit_tiny_patch16_224, cut: {cut}, image_size: {size}}}
data: {{path: digits, limit: 64, test_limit: 16}}
federation: {{clients: 1, rounds: 1, local_steps: 5}}
training: {{batch_size: {batch}}}
engine: {{kind: inline, threads: 1}}
"""
START = "import sys; sys.path.insert(0, {!r}); from splitfed.cli.main import main; main()"


@dataclass(frozen=True, slots=True)
class Client:
    """Seconds by the clock and of processor until it has joined; MiB of `join` and its SuperNode then, and at most."""

    joined: float
    cpu: float
    join: float
    supernode: float
    most_join: float
    most_supernode: float


class Command:
    """A splitfed command of a checkout, whose output goes to a file."""

    def __init__(self, checkout: Path, log: Path, *arguments: object) -> None:
        self.log = log
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START.format(str(checkout)), *map(str, arguments)], stdout=output,
                stderr=subprocess.STDOUT, cwd=log.parent, env=os.environ | offline,
            )  # fmt: skip

    def shows(self, pattern: str, seconds: float = 300) -> None:
        """Wait until it prints this."""
        limit = time.monotonic() + seconds
        while not re.search(pattern, self.log.read_text()):
            if self.process.poll() is not None or time.monotonic() > limit:
                raise SystemExit(self.log.read_text())
            time.sleep(0.02)

    def end(self) -> None:
        """Ask it to end, and wait until it has."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()


def measure(checkout: Path, folder: Path, scenario: str) -> Client:
    """Run one server and one client."""
    (folder / "scenario.yaml").write_text(scenario)
    for row in range(40):
        place = folder / "images" / str(row % 10)
        place.mkdir(parents=True, exist_ok=True)
        Image.frombytes("L", (32, 32), random.Random(row).randbytes(1024)).save(place / f"{row}.png")
    ports = [free_port(), free_port()]
    server = Command(
        checkout, folder / "serve.log", "serve", "scenario.yaml", "--port", ports[0], "--split-port", ports[1]
    )
    client = None
    try:
        server.shows("may join")
        time.sleep(2)  # it goes on loading
        began = time.monotonic()
        client = Command(
            checkout, folder / "join.log", "join", f"127.0.0.1:{ports[0]}", "--client", 0, "--data", "images"
        )
        server.shows("client 0 joined|all are there")
        joined, pid = time.monotonic() - began, client.process.pid
        (child,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        cpu, then = seconds(pid) + seconds(child), [most(pid), most(child)]
        peak = list(then)
        while client.process.poll() is None:
            peak = [max(old, most(one)) for old, one in zip(peak, (pid, child), strict=True)]
            time.sleep(0.02)
        if client.process.returncode:
            raise SystemExit(client.log.read_text())
        return Client(joined, cpu, *then, *peak)
    finally:
        for command in filter(None, (client, server)):
            command.end()


def most(pid: int) -> float:
    """Return the most memory that a process has held, in MiB; 0 where it is gone."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


def seconds(pid: int) -> float:
    """Return the seconds of processor that a process has taken."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    """Print a line for each size of image and checkout: medians over the times that it was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 224])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--cut", type=int, default=3)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--other", type=Path)
    options = parser.parse_args()
    checkouts = [HERE, *([options.other.resolve()] if options.other else [])]
    print("pixels  checkout  joined s   cpu s   MiB: join + SuperNode   at most: join + SuperNode")
    for size in options.sizes:
        scenario = SCENARIO.format(cut=options.cut, size=size, batch=options.batch)
        found: dict[Path, list[Client]] = {checkout: [] for checkout in checkouts}
        for _ in range(options.times):
            for checkout in checkouts:
                with tempfile.TemporaryDirectory() as folder:
                    found[checkout].append(measure(checkout, Path(folder), scenario))
        rows = [[statistics.median(one) for one in zip(*map(astuple, all), strict=True)] for all in found.values()]
        for name, row in zip(("this", "other"), rows, strict=False):
            joined, cpu, *then, most_join, most_supernode = row
            print(f"{size:6}  {name:8} {joined:9.1f} {cpu:7.1f}", end="   ")
            print(f"{then[0]:8.0f} + {then[1]:<9.0f} {most_join:11.0f} + {most_supernode:.0f}", flush=True)
        if options.other:
            ours, theirs = ((row[0], row[1], row[2] + row[3], row[4] + row[5]) for row in rows)
            joined, cpu, *memory = (mine / other for mine, other in zip(ours, theirs, strict=True))
            print(f"{size:6}  ratio    {joined:9.2f} {cpu:7.2f}   {memory[0]:11.2f} {memory[1]:20.2f}", flush=True)


if __name__ == "__main__":
    main()
