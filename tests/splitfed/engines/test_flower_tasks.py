"""Flower's tasks in processes of ours: a SuperLink, a SuperNode and a warm worker on this machine, with tiny apps."""

import http.client
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.fleet_pb2 import ActivateNodeRequest, RegisterNodeFleetRequest
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from waiting import eventually, running

import splitfed.clients.deployment.tasks
from splitfed.clients.deployment.tasks import TaskLoop, reason
from splitfed.engines.deployment.certificates import make
from splitfed.engines.deployment.flower_tasks import ApiError, TaskEnded, bundle
from splitfed.engines.deployment.processes import (
    Child,
    free_port,
    superlink_command,
    supernode_command,
    wait_until_healthy,
)
from splitfed.engines.deployment.proof import HEADER, make_secret, proof
from splitfed.engines.deployment.tls import read_client, read_server
from splitfed.errors import DataError, RunError
from splitfed.server.deployment.superlink_control import Control
from splitfed.server.deployment.task import run_server_app

WORKER = """
import os, sys
from pathlib import Path
from splitfed.engines.deployment.processes import follow_parent
follow_parent()
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from splitfed.clients.deployment.tasks import TaskLoop
from splitfed.errors import DataError

app = ClientApp()

@app.query()
def query(message, context):
    what = message.content.config_records["what"]["what"]
    if what == "mistake":
        raise DataError("no data: name this client's images with --data")
    if what == "bug":
        raise ValueError("two\\nlines")
    if what == "interrupt":
        raise KeyboardInterrupt
    seen = context.state.config_records.setdefault("seen", ConfigRecord({"count": 0}))
    seen["count"] += 1
    answer = {"pid": os.getpid(), "count": seen["count"], "scenario": context.run_config["scenario"]}
    answer |= {"settings": sorted(context.node_config), "extra": type(context.node_config["thing"]).__name__}
    return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)

address, secret = sys.argv[1:]
TaskLoop(address, Path(secret).read_bytes(), {"thing": object()}).run(app, lambda e: print(e.kind, e.error, flush=True))
print("the loop ended", flush=True)
"""


@dataclass
class Deployed:
    folder: Path
    port: int
    node_port: int
    secret: bytes
    link: Child
    node: Child
    worker: Child
    ca: Path | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def control(self) -> Control:
        return Control(self.address, self.ca, self.secret)

    def run(self, main: Callable[[Grid, Any], None], run_id: int | None = None) -> int:
        """Run a ServerApp of this main function, as a new run if none is given; return the run's id."""
        app = ServerApp()
        app.main()(main)
        if run_id is None:
            with self.control() as control:
                run_id = control.start_run(bundle({"scenario": SCENARIO}))
        here = {"address": self.address, "ca": self.ca, "secret": self.secret, "run_id": run_id}
        run_server_app(app, **here, run_config={"scenario": "the server's"})  # type: ignore[arg-type]
        return run_id


SCENARIO = 'a: 1\nb: "x\\y"\n# é 😀 \x7f\n'


def start_worker(folder: Path, address: str) -> Child:
    command = [sys.executable, "-c", WORKER, address, str(folder / "secret")]
    return Child("worker", command, folder / "worker.log", folder / "flower")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder, home = tmp_path_factory.mktemp("deployed"), tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for name in ("HTTP_PROXY", "http_proxy"):  # nothing of this may take the way through a proxy
            patch.setenv(name, "http://127.0.0.1:9")
        for name in ("ALL_PROXY", "all_proxy"):  # which httpx alone cannot even read
            patch.setenv(name, "socks5://127.0.0.1:9")
        secret, port, node_port = make_secret(folder / "secret"), free_port(), free_port()
        link_command = superlink_command(
            "127.0.0.1", port, secret_file=folder / "secret", database=folder / "state.db"
        )  # fmt: skip
        node_command = supernode_command(f"127.0.0.1:{port}", node_port, secret_file=folder / "secret")
        with Child("SuperLink", link_command, folder / "superlink.log", folder / "flower") as link:
            wait_until_healthy(f"http://127.0.0.1:{port}", link)
            with Child("SuperNode", node_command, folder / "supernode.log", folder / "flower") as node:
                wait_until_healthy(f"http://127.0.0.1:{node_port}", node)
                with start_worker(folder, f"127.0.0.1:{node_port}") as worker:
                    made = Deployed(folder, port, node_port, secret, link, node, worker)
                    yield made
                    with made.worker:
                        node.stop()
                        assert eventually(lambda: not made.worker.alive)
                        assert "the loop ended" in made.worker.tail()
        pids = [child.pid for child in (link, node, worker, made.worker)]
        assert not any(running(pid) for pid in pids)
        # Whatever came with the runs was not unpacked, and nothing was written outside the private folder.
        assert not list((folder / "flower").rglob("pyproject.toml"))
        assert not list(home.rglob("*"))


def ask(grid: Grid, what: str) -> Message:
    """Ask the one node and return its reply."""
    assert eventually(lambda: list(grid.get_node_ids()))
    (node,) = grid.get_node_ids()
    content = RecordDict({"what": ConfigRecord({"what": what})})
    numbers = list(grid.push_messages([Message(content, node, "query")]))
    replies: list[Message] = []
    assert eventually(lambda: replies.extend(grid.pull_messages(numbers)) or replies)
    return replies[0]


def test_messages_run_in_one_warm_process_that_knows_the_runs_configuration(deployed: Deployed) -> None:
    replies: list[Message] = []
    configs: list[dict] = []

    def main(grid: Grid, context: Any) -> None:
        configs.append(dict(context.run_config))
        replies.extend(ask(grid, "who") for _ in range(2))

    run = deployed.run(main)
    answers = [dict(reply.content.config_records["answer"]) for reply in replies]
    assert configs == [{"scenario": "the server's"}]
    assert [answer["pid"] for answer in answers] == [deployed.worker.pid] * 2
    assert [answer["count"] for answer in answers] == [1, 2]  # Flower keeps a node's state
    assert {answer["scenario"] for answer in answers} == {SCENARIO}
    assert answers[0]["extra"] == answers[1]["extra"] == "object"
    with deployed.control() as control:
        assert run not in control.open_runs()


def test_a_clients_error_reaches_the_server_in_one_line_and_the_worker_goes_on(deployed: Deployed) -> None:
    replies: list[Message] = []
    deployed.run(lambda grid, _: replies.extend(ask(grid, what) for what in ("mistake", "bug", "who")))
    assert [reply.has_error() for reply in replies] == [True, True, False]
    assert replies[0].error.reason == "no data: name this client's images with --data"
    assert replies[1].error.reason == "ValueError: two lines"
    assert deployed.worker.alive


def test_a_ServerApps_exceptions_come_through_and_end_its_run(deployed: Deployed) -> None:
    for error in (DataError("no such data"), KeyboardInterrupt(), SystemExit(3)):

        def main(grid: Grid, context: Any, error: BaseException = error) -> None:
            raise error

        with deployed.control() as control:
            run = control.start_run(bundle({}))
            with pytest.raises(type(error)) as raised:
                deployed.run(main, run)
            assert raised.value is error
            assert run not in control.open_runs()


def test_a_run_that_nobody_serves_any_more_does_not_stand_in_the_way(deployed: Deployed) -> None:
    with deployed.control() as control:
        stale, run = control.start_run(bundle({})), control.start_run(bundle({}))
        assert control.open_runs() == {stale, run}
        served: list[int] = []
        deployed.run(lambda _, context: served.append(context.run_id), run)
        assert served == [run]
        assert control.open_runs() == set()


def test_a_stopped_run_ends_its_ServerApp(deployed: Deployed) -> None:
    with deployed.control() as control:
        run = control.start_run(bundle({}))

        def main(grid: Grid, context: Any) -> None:
            control.stop_run(run)
            grid.get_node_ids()

        with pytest.raises(TaskEnded):
            deployed.run(main, run)
        control.stop_run(run)  # which is over: nothing to do


def test_a_run_cannot_be_served_twice(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitfed.server.deployment.task.CLAIM_SECONDS", 0.5)
    run = deployed.run(lambda grid, context: None)
    with pytest.raises(RunError, match="has no task"):
        deployed.run(lambda grid, context: None, run)


def test_neither_superlink_nor_supernode_hands_out_work_without_the_secret(deployed: Deployed) -> None:
    with Control(deployed.address, None, b"a guess") as stranger, pytest.raises(ApiError):
        stranger.open_runs()
    with pytest.raises(ApiError):
        TaskLoop(f"127.0.0.1:{deployed.node_port}", b"a guess").run(None)  # type: ignore[arg-type]
    connection = http.client.HTTPConnection("127.0.0.1", deployed.port, timeout=60)
    answers = {}
    for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task", "/openapi.json"):
        connection.request("POST", path)
        answers[path] = connection.getresponse().status
        connection.close()
    assert set(answers.values()) == {403}
    # The proof opens the door, but a task needs a signature by the secret itself.
    headers = {HEADER: proof(deployed.secret), "content-type": PROTOBUF_MEDIA_TYPE}
    connection.request("POST", "/v1/runtime/acquire-task", headers=headers)
    assert connection.getresponse().status == 401
    connection.close()


def test_an_interrupted_worker_tells_the_server_and_a_new_one_takes_over(deployed: Deployed) -> None:
    replies: list[Message] = []

    def main(grid: Grid, context: Any) -> None:
        replies.append(ask(grid, "interrupt"))
        assert eventually(lambda: not deployed.worker.alive)
        deployed.worker = start_worker(deployed.folder, f"127.0.0.1:{deployed.node_port}")
        replies.append(ask(grid, "who"))

    deployed.run(main)
    assert replies[0].error.reason == "the client was stopped by its user"
    assert not replies[1].has_error()


def test_the_loop_ends_with_its_supernode_and_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitfed.clients.deployment.tasks, "PATIENCE_SECONDS", 0.2)
    TaskLoop(f"127.0.0.1:{free_port()}", b"secret").run(None)  # type: ignore[arg-type]
    stop = threading.Event()
    stop.set()
    TaskLoop(f"127.0.0.1:{free_port()}", b"secret").run(None, stop=stop)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataError("no data:\n name it"), "no data: name it"),
        (ValueError("a\nb"), "ValueError: a b"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_reason_is_one_line(error: Exception, said: str) -> None:
    assert reason(error) == said


def taken(address: str, ca: Path, key: Any, kind: Any, **more: Any) -> bool:
    """Ask a SuperLink as a SuperNode with this key does; tell whether it does what it is asked for."""
    signs = NodeAuthHttpInterceptor(key, key.public_key())
    with FleetHttpClient.from_server_address(address, False, str(ca), interceptors=[signs]) as client:
        call = client.RegisterNode if kind is RegisterNodeFleetRequest else client.ActivateNode
        try:
            call(kind(public_key=public_key_to_bytes(key.public_key()), **more))
        except httpx.HTTPStatusError:
            return False
        return True


@pytest.mark.slow
def test_with_tls_a_superlink_knows_its_clients_by_their_keys_also_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):  # of `deployed`, as long as that is there
        monkeypatch.delenv(name, raising=False)
    for name in ("tls", "other"):
        make(tmp_path / name, ["localhost"], 2)
    files, clients = read_server(tmp_path / "tls/server"), [read_client(tmp_path / f"tls/client-{n}") for n in (0, 1)]
    secret, port = make_secret(tmp_path / "secret"), free_port()

    def superlink(number: int) -> Child:
        command = superlink_command(
            "127.0.0.1", port, secret_file=tmp_path / "secret", database=tmp_path / "db", tls=files.tls, ca=files.ca
        )
        link = Child("SuperLink", command, tmp_path / f"superlink-{number}.log", tmp_path / "flower")
        wait_until_healthy(f"https://127.0.0.1:{port}", link, files.ca)
        return link

    def supernode(client: int, node_port: int, ca: Path) -> Child:
        key = clients[client].key
        command = supernode_command(f"localhost:{port}", node_port, secret_file=tmp_path / "secret", ca=ca, key=key)
        return Child("SuperNode", command, tmp_path / f"supernode-{client}.log", tmp_path / "flower")

    with Control(f"127.0.0.1:{port}", files.ca, secret) as control, superlink(1) as link:
        node_id = control.register(files.clients[0])
        assert control.register(files.clients[0]) == node_id
        with pytest.raises(RunError, match="not a public key"):
            control.register("nonsense")
        for client, ca, said in (
            (1, files.ca, "this client's key"),
            (0, read_server(tmp_path / "other/server").ca, "by this CA"),
        ):
            with supernode(client, free_port(), ca) as node:
                assert eventually(lambda node=node: not node.alive, 60)
                assert said in node.why()
        node_port = free_port()
        with supernode(0, node_port, files.ca) as node:
            wait_until_healthy(f"http://127.0.0.1:{node_port}", node)
            with start_worker(tmp_path, f"127.0.0.1:{node_port}") as worker:
                place = Deployed(tmp_path, port, node_port, secret, link, node, worker, files.ca)
                replies: list[Message] = []
                place.run(lambda grid, _: replies.append(ask(grid, "who")))
                assert control.online() == {node_id}
                link.stop()
                with superlink(2):
                    assert control.register(files.clients[0]) == node_id
                    place.run(lambda grid, _: replies.append(ask(grid, "who")))
                    other = control.register(files.clients[1])
                    control.keep({node_id, other})
                    assert eventually(lambda: control.online() == {node_id})
                    # Whoever has a key has one node, and makes no other, with that key or one of its own.
                    key, own = load_ssh_private_key(clients[1].key.read_bytes(), None), generate_key_pairs()[0]
                    at = f"localhost:{port}", files.ca
                    assert not any(taken(*at, one, RegisterNodeFleetRequest) for one in (key, own))
                    assert not taken(*at, own, ActivateNodeRequest, heartbeat_interval=30)
                    assert not taken(*at, key, ActivateNodeRequest, heartbeat_interval=1800)
                    assert taken(*at, key, ActivateNodeRequest, heartbeat_interval=30)
                    control.keep({node_id})
                    assert control.online() == {node_id}
                    assert not taken(*at, key, ActivateNodeRequest, heartbeat_interval=30)
                    with pytest.raises(RunError, match="taken out of the run before"):
                        control.register(files.clients[1])
                assert [reply.has_error() for reply in replies] == [False, False]
                assert node.alive
    assert not any(running(child.pid) for child in (link, node, worker))
