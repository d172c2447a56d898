"""Real deployments on this machine: `splitfed serve` and `splitfed join` as processes of their own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from network.crowd import Crowd
from places import python_path

from splitfed import Scenario
from splitfed.engines.deployment.processes import free_port

SUPPORT = Path(__file__).parent


class Process:
    """A splitfed command, with all that it prints in a file; `before` is Python that runs first in it."""

    def __init__(self, log: Path, *arguments: object, before: str = "") -> None:
        self.log = log
        start = f"{before}\nfrom splitfed.cli.main import main\nmain()"
        self._start("-c", start, *map(str, arguments))

    def _start(self, *command: str, **environment: str) -> None:
        with open(self.log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def text(self) -> str:
        return self.log.read_text()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def end(self, seconds: float = 300.0) -> int:
        """Wait until it ends by itself."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.log.name} did not end:\n{self.text}") from None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send this process, and none of its children, a signal."""
        if self.running:
            os.kill(self.pid, number)

    def shows(self, pattern: str, seconds: float = 200.0) -> str:
        """Wait until it prints this."""
        limit = time.monotonic() + seconds
        while (found := re.search(pattern, self.text, re.MULTILINE)) is None:
            assert self.running, f"{self.log.name} ended without {pattern!r}:\n{self.text}"
            assert time.monotonic() < limit, f"{self.log.name} did not show {pattern!r}:\n{self.text}"
            time.sleep(0.05)
        return found.group(0)


class Many(Process):
    """Many clients in one process."""

    def __init__(self, log: Path, crowd: Crowd) -> None:
        self.log = log
        self._start("-m", "network.crowd", crowd.text(), PYTHONPATH=python_path(SUPPORT, *filter(None, sys.path)))


class Deployment:
    """A server and its clients; `host` is where the clients look for it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.host = folder, "127.0.0.1"
        self.port, self.split_port = free_port(), free_port()
        self.processes: list[Process] = []

    @property
    def runs(self) -> list[Path]:
        return sorted((self.folder / "runs").iterdir())

    def _start(self, name: str, *arguments: object, before: str = "") -> Process:
        number = sum(process.log.stem.startswith(name) for process in self.processes)
        self.processes.append(Process(self.folder / f"{name}-{number}.log", *arguments, before=before))
        return self.processes[-1]

    def serve(self, scenario: Scenario | None, *more: object) -> Process:
        """Start a server."""
        ports = ["--port", self.port, "--split-port", self.split_port]
        if scenario is None:
            return self._start("serve", "serve", *ports, *more)
        file = self.folder / f"{scenario.name}.yaml"
        file.write_text(scenario.to_yaml())
        return self._start("serve", "serve", file, *ports, "--runs", self.folder / "runs", *more)

    def join(self, client: int, *more: object, before: str = "") -> Process:
        """Start a client with its share of the scenario's data."""
        own = ["--partition", client, "--state", self.folder / f"state-{client}"]
        return self._start(f"join{client}", "join", f"{self.host}:{self.port}", *own, *more, before=before)

    def join_with(self, client: int, images: Path, *more: object, before: str = "") -> Process:
        """Start a client with images of its own."""
        own = ["--client", client, "--data", images, "--state", self.folder / f"state-{client}"]
        return self._start(f"join{client}", "join", f"{self.host}:{self.port}", *own, *more, before=before)

    def crowd(self, crowd: Crowd) -> Process:
        """Start many clients in one process."""
        number = sum(process.log.stem.startswith("crowd") for process in self.processes)
        self.processes.append(Many(self.folder / f"crowd-{number}.log", crowd))
        return self.processes[-1]


@contextmanager
def deployment(folder: Path) -> Iterator[Deployment]:
    """Deploy below a folder; whatever still runs afterwards is killed, with what it started."""
    here = Deployment(folder)
    try:
        yield here
    finally:
        for process in here.processes:
            process.kill(signal.SIGTERM)
        limit = time.monotonic() + 10
        for process in here.processes:
            while process.running and time.monotonic() < limit:
                time.sleep(0.05)
            process.kill()


def descendants(pid: int) -> set[int]:
    """Return the processes that a process started, and those that they did."""
    found: set[int] = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if parent == pid:
            child = int(status.parent.name)
            found |= {child} | descendants(child)
    return found
