"""The Ray engine: the same run as in one process, errors that come back, and nothing left behind."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from helpers import ADC, small, table

import splitfed
from splitfed import Scenario, simulate
from splitfed.cli.main import main as cli
from splitfed.engines.ray import cluster as ray_cluster
from splitfed.engines.ray.cluster import connected, host, room
from splitfed.engines.ray.engine import run_ray
from splitfed.engines.runtime import runtime
from splitfed.errors import RunError, ScenarioError
from splitfed.run.observer import Observer
from splitfed.scenario.engine import Deployment, Inline, Ray

CORES = 2


def left_behind(folder: Path) -> list[str]:
    """Return the processes whose command line or open files name a folder, and the folder itself if it is there."""
    found = [str(folder)] if folder.exists() else []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
            words = (process / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if process.name != str(os.getpid()) and any(str(folder) in text for text in (*links, *words)):
            found.append(f"{process.name}: {' '.join(words)[:100]}")
    return found


def until_gone(folder: Path) -> list[str]:
    end = time.monotonic() + 20
    while (found := left_behind(folder)) and time.monotonic() < end:
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def ray_is_up() -> Iterator[Path]:
    """Start Ray once; what is run while it is up uses it and leaves it up."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # an actor cannot import a test
    home = Path.home() / ".ray"
    there = home.exists()
    with connected(None, {}):
        # Ray's public names do not tell the folder.
        folder = Path(ray._private.worker._global_node.get_temp_dir_path())
        assert left_behind(folder)
        yield folder
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert not until_gone(folder)
    assert home.exists() == there


# ---------------------------------------------------------------------------------------------- apps that only answer

client_app = ClientApp()


@client_app.query()
def describe(message: Message, context: Context) -> Message:
    seen = context.state.setdefault("seen", ConfigRecord({"times": 0}))
    seen["times"] += 1
    answer = {
        "client": context.node_config["partition-id"], "of": context.node_config["num-partitions"],
        "said": context.run_config["said"], "times": seen["times"], "process": os.getpid(), "folder": os.getcwd(),
        "threads": torch.get_num_threads(), "omp": os.environ["OMP_NUM_THREADS"],
        "gpus": os.environ["CUDA_VISIBLE_DEVICES"], "splitfed": splitfed.__file__,
    }  # fmt: skip
    return Message(RecordDict({"config": ConfigRecord(answer)}), reply_to=message)


@client_app.query("fail")
def fail(message: Message, context: Context) -> Message:
    if context.node_config["partition-id"] == 0:
        raise RunError("no data at\nthis client")
    raise ValueError("an oversight")


@client_app.query("die")
def die(message: Message, context: Context) -> Message:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def ask(grid: Grid, what: str, nodes: list[int]) -> list[Message]:
    replies = grid.send_and_receive([Message(RecordDict(), node, what) for node in nodes], timeout=100)
    return sorted(replies, key=lambda reply: nodes.index(reply.metadata.src_node_id))


def serve(engine: Ray, clients: int, main) -> None:
    app = ServerApp()
    app.main()(main)
    run_ray(app, client_app, clients, {"said": "this"}, engine)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_is_up")
def test_clients_answer_fail_and_die_without_harm_to_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """More clients than processes; what one of them does must not reach another, nor a later message."""
    clients = CORES + 3
    monkeypatch.chdir(tmp_path)

    def main(grid: Grid, context: Context) -> None:
        assert runtime().public == runtime().host == host() == "127.0.0.1"
        assert context.run_config == {"said": "this"}
        nodes = list(grid.get_node_ids())
        assert len(nodes) == clients
        answers = [reply.content["config"] for reply in ask(grid, "query", nodes)]
        assert sorted(answer["client"] for answer in answers) == list(range(clients))
        expected = {
            "of": clients, "said": "this", "times": 1, "folder": str(tmp_path), "threads": 1, "omp": "1", "gpus": "",
            "splitfed": splitfed.__file__,
        }  # fmt: skip
        for answer in answers:
            assert {key: answer[key] for key in expected} == expected
        processes = {answer["process"] for answer in answers}
        assert os.getpid() not in processes
        assert len(processes) <= CORES

        nodes.sort(key=dict(zip(nodes, (answer["client"] for answer in answers), strict=True)).__getitem__)
        errors = [reply.error for reply in ask(grid, "query.fail", nodes)]
        assert {error.code for error in errors} == {ErrorCode.CLIENT_APP_RAISED_EXCEPTION}
        assert errors[0].reason == "no data at this client"
        assert all(error.reason.startswith("ValueError: an oversight (test_ray.py:") for error in errors[1:])

        (dead,) = ask(grid, "query.die", nodes[:1])
        assert dead.error.code == ErrorCode.CLIENT_APP_CRASHED
        assert "died" in dead.error.reason
        again = [reply.content["config"] for reply in ask(grid, "query", nodes)]
        assert [answer["times"] for answer in again] == clients * [2]  # state outlives the process that made it
        raise KeyError("what the ServerApp raises")

    with pytest.raises(KeyError, match="what the ServerApp raises"):
        serve(Ray(), clients, main)


@pytest.mark.usefixtures("ray_is_up")
def test_a_server_that_waits_for_nobody_is_told(monkeypatch: pytest.MonkeyPatch):
    """Where no client's process can start, the ServerApp does not wait for ever."""
    monkeypatch.setattr("splitfed.engines.ray.engine.room", lambda engine: 2)
    monkeypatch.setattr("splitfed.engines.ray.actors.START_SECONDS", 1.0)
    with pytest.raises(RunError, match="no client's process could start"):
        serve(Ray(client_cpus=1000), 2, lambda grid, context: ask(grid, "query", list(grid.get_node_ids())))


@pytest.mark.usefixtures("ray_is_up")
def test_what_does_not_fit_is_refused():
    with pytest.raises(RunError, match=r"engine.client_cpus: 5000 cores for a client, but .* more than \d+: lower it"):
        serve(Ray(client_cpus=5000), 2, lambda grid, context: None)
    with pytest.raises(RunError, match=r"engine.client_gpus: 100 for a client, but .* lower it; with 0 clients train"):
        serve(Ray(client_gpus=100), 2, lambda grid, context: None)


# ---------------------------------------------------------------------------------------------------------- real runs


def crossed(run: splitfed.Result) -> list[dict[str, str]]:
    """Return what the ledger says of the data plane, in an order of its own: clients that train at once have none."""
    rows = [row for row in table(run.folder / "ledger.csv") if row["plane"] == "data"]
    return sorted(rows, key=lambda row: [*map(int, (row["round"], row["client"], row["step"])), *row.values()])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_is_up")
@pytest.mark.parametrize(
    ("mode", "phases"),
    [
        *(pytest.param(mode, "[]", marks=pytest.mark.long) for mode in ("sfl-v1", "sl", "psl")),
        ("sfl-v2", "[]"),
        ("psl", "[{kind: local, rounds: 1, upload_every: 1, align_every: 2}, gradient]"),
    ],
)
def test_the_same_numbers_as_in_one_process(mode: str, phases: str, tmp_path: Path):
    changes = [*ADC, f"federation.mode={mode}", "training.client_state=keep", "evaluation.held_out=0.2"]
    changes.append(f"phases={phases}")
    if mode == "psl":
        changes.append(f"federation.wave={CORES}")  # clients that wait for each other must all have a place
    here, there = (simulate(small(*changes, f"engine.kind={kind}"), runs=tmp_path) for kind in ("inline", "ray"))
    assert there.summary.engine == "ray"
    assert crossed(here)
    assert crossed(here) == crossed(there)
    assert (here.summary.test_accuracy, here.summary.test_loss) == (
        there.summary.test_accuracy,
        there.summary.test_loss,
    )
    assert [row.eval_loss for row in here.rounds] == [row.eval_loss for row in there.rounds]
    assert (here.folder / "clients.csv").read_text() == (there.folder / "clients.csv").read_text()


@pytest.mark.long
@pytest.mark.usefixtures("ray_is_up")
def test_clients_that_train_a_shared_back_at_once_do_not_wait_for_each_other(tmp_path: Path):
    changes = ["federation.mode=sfl-v2", "federation.order=arrival", "federation.clients=6", "federation.rounds=1"]
    run = simulate(small(*changes, "engine.kind=ray"), runs=tmp_path)
    assert {row["client"] for row in crossed(run)} == {str(client) for client in range(6)}
    assert run.rounds[0].clients == 6


class Killer(Observer):
    """Kills one client's process as soon as one trains. That one waits for what this returns, and no other is in turn:
    a process that has just done something else may be called busy for a moment."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.killed = folder, False

    def progress(self, round: int, share: float) -> None:
        if self.killed:
            return
        end = time.monotonic() + 60
        while len(busy := self._busy()) != 1:
            assert time.monotonic() < end, busy
            time.sleep(0.1)
        self.killed = True
        os.kill(int(busy[0].partition(":")[0]), signal.SIGKILL)

    def _busy(self) -> list[str]:
        return [line for line in left_behind(self.folder) if "ClientAppActor.run" in line]


@pytest.mark.slow
def test_a_round_ends_without_a_client_that_was_killed(ray_is_up: Path, tmp_path: Path):
    killer = Killer(ray_is_up)
    changes = [
        "federation.local_epochs=null",
        "federation.local_steps=50",
        "engine.kind=ray",
        "engine.grace=600",
    ]  # it is the reply that tells
    run = simulate(small(*changes), runs=tmp_path, observers=(killer,))
    assert killer.killed
    assert [row.clients for row in run.rounds] == [2, 3]
    assert len({row["client"] for row in crossed(run) if row["round"] == "1"}) == 3  # what it sent is counted
    log = (run.folder / "log.txt").read_text()
    assert re.search(r"^WARNING round 1: client \d is lost$", log, re.MULTILINE)
    assert "Traceback" not in log


# -------------------------------------------------------------------------------------------- a Ray of the run's own

STOPPED = """
import os, sys, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from splitfed.scenario.engine import Ray
from splitfed.engines.ray.engine import run_ray

client, server = ClientApp(), ServerApp()

@client.query()
def look(message, context):
    import torch
    return Message(RecordDict({"threads": ConfigRecord({"torch": torch.get_num_threads()}),
                               "variables": ConfigRecord(dict(os.environ))}), reply_to=message)

@client.query("sleep")
def sleep(message, context):
    time.sleep(600)

@server.main()
def main(grid, context):
    import ray
    print(ray._private.worker._global_node.get_temp_dir_path(), flush=True)
    nodes = list(grid.get_node_ids())
    replies = grid.send_and_receive([Message(RecordDict(), node, "query") for node in nodes])
    for reply in replies:
        assert reply.content["threads"]["torch"] == 3, reply
        assert reply.content["variables"]["OMP_NUM_THREADS"] == "3", reply
        assert reply.content["variables"]["GOMP_SPINCOUNT"] == "10000", reply
    assert os.environ["OMP_NUM_THREADS"] == "1"
    print("all is well", flush=True)
    grid.send_and_receive([Message(RecordDict(), node, "query.sleep") for node in nodes])

try:
    run_ray(server, client, 3, {}, Ray(threads=3))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)]
)
def test_who_is_stopped_leaves_nothing(number: signal.Signals, code: int):
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout
        folder = Path(process.stdout.readline().strip())
        assert left_behind(folder)
        assert process.stdout.readline() == "all is well\n"
        time.sleep(1)  # some are asleep by now, and one waits for its turn
        # On a terminal Ctrl-C reaches the whole group of processes.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        out, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert (process.returncode, out, errors) == (code, "", "")
    assert not until_gone(folder)


@pytest.mark.long
def test_a_cluster_of_two_machines(tmp_path: Path):
    """Both are this machine, but Ray does not know that: clients dial the address that others would."""
    folder = tempfile.mkdtemp(prefix="ray-test-", dir="/tmp")  # paths of sockets must be short
    script = f"""
import os
from ray.cluster_utils import Cluster
from splitfed.scenario import Scenario
from splitfed import simulate

os.makedirs("/tmp/ray", exist_ok=True)  # where this helper of Ray's notes its address, whatever its folder
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1, "include_dashboard": False,
                                                         "temp_dir": {folder!r}}})
cluster.add_node(num_cpus=1)
scenario = Scenario.parse({small("federation.rounds=1").to_yaml()!r}, overrides=[
    "engine.kind=ray", "engine.address=" + cluster.address, "federation.mode=sfl-v1"])
try:
    print(simulate(scenario, runs={str(tmp_path / "runs")!r}).summary.rounds)
finally:
    cluster.shutdown()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    shutil.rmtree(folder)
    assert done.stdout.splitlines()[-1:] == ["1"], done.stderr


# ----------------------------------------------------------------------------------------------------- without any Ray


@pytest.mark.parametrize(
    ("engine", "machines", "places"),
    [
        (Ray(), [(2, 0)], 2),
        (Ray(client_cpus=3), [(8, 0), (2, 0), (3, 0)], 3),
        (Ray(client_gpus=0.1), [(64, 1)], 10),
        (Ray(client_gpus=0.3), [(64, 2)], 6),
        (Ray(client_gpus=0.6), [(64, 2), (64, 0)], 2),
        (Ray(client_gpus=1), [(4, 8)], 4),
        (Ray(client_gpus=2, client_cpus=2), [(64, 5)], 2),
    ],
)
def test_room_is_counted_machine_by_machine(engine: Ray, machines, places, monkeypatch: pytest.MonkeyPatch):
    nodes = [{"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}} for cpus, gpus in machines]
    gone = {"Alive": False, "Resources": {"CPU": 1000.0, "GPU": 1000.0}}
    monkeypatch.setattr(ray_cluster, "ray", SimpleNamespace(nodes=lambda: [gone, *nodes]))
    assert room(engine) == places


def test_cores_on_one_machine_and_gpus_on_another_are_no_room(monkeypatch: pytest.MonkeyPatch):
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0}}, {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 1.0}}]
    monkeypatch.setattr(ray_cluster, "ray", SimpleNamespace(nodes=lambda: nodes))
    with pytest.raises(RunError, match="no machine of Ray's has both"):
        room(Ray(client_cpus=2, client_gpus=0.5))


def test_no_cluster_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as other:  # answers, but is no Ray
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(RunError, match=f"^engine.address: no Ray cluster answers at {address}: start one"):
            ray_cluster.join(address)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("engine.client_gpus=1.5", "1.5 GPUs cannot be had: take a share of one, or a whole number"),
        ("engine.client_cpus=0.5", "engine.client_cpus: "),
        ("engine.address=ray://here:10001", "'ray://here:10001' is no address: write host:port, or auto"),
        ("engine.address=here", "'here' is no address: write host:port, or auto"),
    ],
)
def test_settings_that_cannot_be(change: str, told: str):
    with pytest.raises(ScenarioError) as refused:
        small("engine.kind=ray", change)
    assert told in str(refused.value)


def test_the_engine_is_named_before_it_is_set(monkeypatch: pytest.MonkeyPatch):
    given: list[Scenario] = []
    monkeypatch.setattr(splitfed, "simulate", lambda scenario, **_: given.append(scenario), raising=False)
    changes = ("--set", "engine.client_cpus=2", "--set", "engine.address=auto", "--engine", "ray")
    monkeypatch.setattr("sys.argv", ["splitfed", "simulate", "digits", *changes])
    with pytest.raises(SystemExit) as ended:
        cli()
    assert not ended.value.code
    engine = given[0].engine
    assert isinstance(engine, Ray)
    assert (engine.client_cpus, engine.address) == (2, "auto")


def test_runs_that_cannot_be_simulated(tmp_path: Path):
    with pytest.raises(RunError, match="use splitfed serve"):
        simulate(small("engine.kind=deployment"), runs=tmp_path)
    with pytest.raises(RunError, match=r"client\.device is cuda, but engine\.client_gpus is 0: set it"):
        simulate(small("engine.kind=ray", "training.client.device=cuda"), runs=tmp_path)
    assert not list(tmp_path.iterdir())
    assert isinstance(small().engine, Inline)
    assert isinstance(small("engine.kind=deployment").engine, Deployment)
