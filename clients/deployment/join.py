"""Joins a server as a client: a SuperNode as a child, and the ClientApp in this process, warm between rounds."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitfed.clients.deployment.pulse import beating
from splitfed.clients.deployment.scratch import scratch
from splitfed.clients.deployment.uncompiled import leave_out_compiler
from splitfed.engines.deployment.diagnosis import hopeless, probe, proxies
from splitfed.engines.deployment.processes import (
    Child,
    ChildError,
    free_port,
    is_loopback,
    parse,
    supernode_command,
    wait_until_healthy,
)
from splitfed.engines.deployment.proof import make_secret
from splitfed.engines.deployment.tls import ClientFiles, read_client
from splitfed.errors import RunError
from splitfed.files import expanded
from splitfed.wire.messages import (
    ALIGN,
    DONE,
    GOODBYE,
    REFUSED,
    EvaluateMetrics,
    Identity,
    Order,
    Refusal,
    TrainMetrics,
)
from splitfed.wire.records import shown

if TYPE_CHECKING:
    from splitfed.clients.deployment.tasks import TaskEvent

PORT = 9092
_RETRY_SECONDS, _LOOK_SECONDS = 5.0, 5.0
# A client that was killed is refused for as long as its SuperLink takes it for alive, which is up to a minute.
_GIVE_UP_SECONDS = 100.0
_ANSWER_SECONDS = 5.0
# A client that cannot take part leaves when the server has said that it knows, or after so long: Flower's server throws
# away what a node has answered that is gone.
_LEAVE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Joining:
    """What a client machine decides for itself: its number, where its images are, what it trains on and writes to,
    which of the scenario's profiles it is of, and of how many images at a time its memory holds what is computed.

    With `own`, the images at `data` are this client's; otherwise it takes its share of the scenario's data set, which
    lies at `data` if that is given. `weights` is the file that it loads, where the scenario has clients load theirs.
    """

    client: int
    own: bool
    data: Path | None = None
    device: str | None = None
    threads: int | None = None
    state: Path = Path("splitfed-client")
    weights: Path | None = None
    profile: str | None = None
    chunk: int | None = None

    def node_config(self, host: str, ca: Path | None) -> dict[str, Any]:
        """Return what the ClientApp reads as `Settings`."""
        settings = {
            "splitfed-data": self.data if self.own else None,
            "splitfed-data-path": None if self.own else self.data,
            "splitfed-device": self.device,
            "splitfed-threads": self.threads,
            "splitfed-states": self.state.resolve(),
            "splitfed-host": host,
            "splitfed-ca": ca,
            "splitfed-weights": self.weights,
            "splitfed-profile": self.profile,
            "splitfed-chunk": self.chunk,
        }
        kept = {key: value for key, value in settings.items() if value is not None}
        texts = {key: value if isinstance(value, int) else str(value) for key, value in kept.items()}
        return {"partition-id": self.client, **texts}


def join(
    server: str, *, tls: Path | None = None, insecure: bool = False, client: int | None = None,
    partition: int | None = None, data: Path | None = None, device: str | None = None, threads: int | None = None,
    state: Path = Path("splitfed-client"), stay: bool = False, say: Callable[[str], None] = print,
    weights: Path | None = None, profile: str | None = None, chunk: int | None = None,
) -> None:  # fmt: skip
    """Train for the server at `server` (host or host:port) until its run is over; with `stay`, for the next one too.

    `tls` is the folder of one client that `splitfed certs` made. `say` gets one line for whatever happens. Raises a
    SplitfedError for what waiting would not mend, and KeyboardInterrupt.
    """
    host, port = parse(server, PORT)
    if not is_loopback(host) and (names := proxies(host)):
        say(
            f"{' and '.join(names)}: no proxy is used, {host} is asked directly. Where there is no direct way, forward "
            f"its ports, with ssh -L {port}:{host}:{port} and -L for that of the mini-batches, and join 127.0.0.1"
        )
    if tls is None and not is_loopback(host) and not insecure:
        raise RunError(
            f"joining {host} without --tls: all would cross in plain text, to a server that proves nothing. Add --tls "
            f"with the folder of this client that 'splitfed certs' made, or say --insecure"
        )
    files = read_client(tls) if tls is not None else None
    number = _number(files, client, partition)
    if partition is None and data is None:
        raise RunError(
            "no data: name this client's images with --data, or train on a share of the scenario's data set: "
            f"--partition {number}"
        )
    if data is not None and not (data := expanded(data)).exists():
        raise RunError(f"--data {data}: there is no such file or folder")
    if weights is not None and not (weights := expanded(weights)).is_file():
        raise RunError(f"--weights {weights}: there is no such file")
    if profile == "":
        raise RunError("--profile: is empty: name one of the scenario's, or leave it out")
    if chunk is not None and chunk < 1:
        raise RunError(f"--chunk {chunk}: must be a number from 1 on")
    joining = Joining(number, partition is None, data, device, threads, state, weights, profile, chunk)
    _Client(host, port, files, joining, stay, say).run()


def _number(files: ClientFiles | None, client: int | None, partition: int | None) -> int:
    said = {n for n in (client, partition) if n is not None}
    if len(said) > 1:
        raise RunError(f"--client {client} and --partition {partition}: a client takes the share of its own number")
    if files is not None:
        if said - {files.client}:
            raise RunError(f"this is the key of client {files.client}, not of client {said.pop()}")
        return files.client
    if not said:
        raise RunError("which client is this? Say --partition, or --client with --data; clients are numbered from 0")
    return said.pop()


class _Client:
    def __init__(
        self, host: str, port: int, files: ClientFiles | None, joining: Joining, stay: bool, say: Callable[[str], None]
    ) -> None:
        self.host, self.port, self.files, self.joining, self.stay = host, port, files, joining, stay
        self.say = lambda text: say(shown(text))  # much of it has words of the server's in it
        self.ca = files.ca if files else None
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.over = threading.Event()
        self.problem: str | None = None
        self.failing = 0.0  # since when, without a message in between

    def run(self) -> None:
        """Keep a SuperNode at the server until the run is over."""
        logging.getLogger("flwr").setLevel(logging.CRITICAL)  # what concerns the user is said by us
        with scratch() as private:
            while not self.over.is_set():
                self._await_server()
                problem = self._attend(private)
                if problem is None:
                    continue
                self.failing = self.failing or time.monotonic()
                if hopeless(problem) or time.monotonic() - self.failing > _GIVE_UP_SECONDS:
                    raise RunError(problem)
                self.say(f"{problem}; trying again")
                self.over.wait(_RETRY_SECONDS)
        if self.problem is not None:
            raise RunError(self.problem)

    def _await_server(self) -> None:
        """Return when the server can be reached, saying once what is in the way."""
        said = None
        while (problem := probe(self.host, self.port, self.ca)) is not None:
            if hopeless(problem):
                raise RunError(problem)
            if problem != said:
                self.say(f"waiting: {problem}")
            said = problem
            time.sleep(_LOOK_SECONDS)

    def _attend(self, private: Path) -> str | None:
        """Run messages until the run is over or the SuperNode ends; return why it did."""
        secret, port, home = make_secret(private / "secret"), free_port(), private / "home"
        command = supernode_command(
            self.address, port, secret_file=private / "secret", ca=self.ca, key=self.files.key if self.files else None
        )  # fmt: skip
        with Child("SuperNode", command, private / "supernode.log", home) as child, beating(home):
            leave_out_compiler()
            from splitfed.clients.app import app  # slow: it is loaded while the SuperNode starts
            from splitfed.clients.deployment.tasks import TaskLoop

            try:
                wait_until_healthy(f"http://127.0.0.1:{port}", child)
                self.say(f"client {self.joining.client} is at {self.address}")
                loop = TaskLoop(f"127.0.0.1:{port}", secret, self.joining.node_config(self.host, self.ca))
                with self._watch():
                    loop.run(app, self._on_event, self.over)
            except ChildError as error:
                return str(error)
            if not self.over.is_set():
                return child.why()
            _let_it_answer(child)
            return None

    def _on_event(self, event: "TaskEvent") -> None:
        self.failing = 0.0
        if event.error is not None and event.kind == "failed":
            self.say(" ".join(str(event.error).split()))
        if event.kind != "done" or event.message is None or event.reply is None:
            return
        if event.reply.has_error():  # one that the server knows how to answer
            self.say(str(event.reply.error.reason or "this client lacks what the server's message builds on"))
        elif event.message_type == "train":
            round, trained = Order.read(event.message.content).round, TrainMetrics.read(event.reply.content)
            rate = f", {8e-6 * trained.throughput:.3g} Mbit/s" if trained.throughput else ""
            self.say(f"round {round}: {trained.steps} steps, loss {trained.loss:.4f}, {event.seconds:.1f} s{rate}")
        elif event.message_type == "evaluate":
            round, found = Order.read(event.message.content).round, EvaluateMetrics.read(event.reply.content)
            right = f"{found.accuracy:.1%} of {found.examples} held-out images right"
            self.say(f"round {round}: {right}, {event.seconds:.1f} s")
        elif event.message_type == ALIGN:
            self.say(f"encoder fitted to this client's images, {event.seconds:.1f} s")
        elif event.message_type == REFUSED and self.problem is not None:
            if not self.stay:
                self.over.set()
        elif event.message_type == REFUSED:
            # It is asked again: the server may take it later, for instance when it has missed its crashed forerunner.
            self.say(f"the server does not take this client for now: {Refusal.read(event.message.content).problem}")
        elif event.message_type in (GOODBYE, DONE):
            over = "the run is over" if event.message_type == GOODBYE else "done: the run goes on without this client"
            self.say(over)
            self.problem = None
            if not self.stay:
                self.over.set()
        elif why := Identity.read(event.reply.content, self.joining.client + 1).problem:
            problem = f"client {self.joining.client} cannot take part: {why}"
            if self.stay and problem != self.problem:
                self.say(problem)
            elif self.problem is None:
                leave = threading.Timer(_LEAVE_SECONDS, self._leave)
                leave.daemon = True
                leave.start()
            self.problem = problem
        else:
            self.problem = None

    def _leave(self) -> None:
        if self.problem is not None:  # nothing has mended it in the meantime
            self.over.set()

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """Say when the server is out of reach, and when it is back: a SuperNode tries on and says nothing."""
        ended = threading.Event()

        def look() -> None:
            lost = None
            while not ended.wait(_LOOK_SECONDS):
                problem = probe(self.host, self.port, self.ca)
                if problem != lost:
                    self.say(f"lost the server: {problem}" if problem else f"{self.address} is back")
                lost = problem

        watcher = threading.Thread(target=look, name="watch-server", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()


def _let_it_answer(child: Child) -> None:
    """Give the SuperNode time to send the last reply: it takes it over before it passes it on."""
    end = time.monotonic() + _ANSWER_SECONDS
    while child.alive and time.monotonic() < end:
        log = child.tail()
        if log.rfind("Sent successfully") > max(log.rfind("Receiving:"), log.rfind("Sending:")):
            return
        time.sleep(0.1)
