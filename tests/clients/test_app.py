"""The ClientApp, by real messages: who it says it is, what it refuses, and what it trains on."""

import shutil
import socket
import threading
from pathlib import Path

import pytest
import torch
from channels import HOST, Door, listen
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from helpers import small
from PIL import Image

from splitfed import __version__
from splitfed.clients import images
from splitfed.clients import worker_pool as workers
from splitfed.clients.app import app
from splitfed.clients.connect import Reach, probe, target
from splitfed.clients.settings import Settings
from splitfed.clients.state import ClientState
from splitfed.clients.worker_pool import leased
from splitfed.data.dataset import forget, load
from splitfed.errors import DataError, RunError, WireError
from splitfed.model.optim import read_optimiser, write_optimiser
from splitfed.run.ledger import Ledger
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment
from splitfed.seeds import Key
from splitfed.server.back.pools import POOLS, Trainer
from splitfed.server.back.server import SplitServer
from splitfed.server.cohort.train import present
from splitfed.server.model import Model
from splitfed.split.cut import Cut
from splitfed.split.evaluation import EvaluationCut, mean
from splitfed.split.weights.wire import WeightWire
from splitfed.wire.channel import InlineListener
from splitfed.wire.grpc_settings import PROTOCOL
from splitfed.wire.messages import UNREACHED

CLASSES = [str(number) for number in range(10)]
DIGITS = small("data.image_column=img")  # an image folder has no columns


@pytest.fixture(autouse=True)
def fresh(identity, monkeypatch):
    monkeypatch.setattr(workers, "kept", {})


@pytest.fixture
def hospital(tmp_path) -> Path:
    """Twenty images of two of the ten classes."""
    for name, shade in (("3", 0), ("7", 200)):
        (tmp_path / "hospital" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (12, 9), (shade, number, 0)).save(tmp_path / "hospital" / name / f"{number}.png")
    return tmp_path / "hospital"


def ask(kind: str, content: dict, scenario: Scenario | str = DIGITS, run: str = "run-1", **node) -> Message:
    """Give the ClientApp a message, as a node of these settings; the reply, or what it raises."""
    text = scenario if isinstance(scenario, str) else scenario.to_yaml()
    config = {key.replace("_", "-"): value for key, value in ({"partition_id": 1} | node).items()}
    records = RecordDict({name: ConfigRecord(record) for name, record in content.items()})
    return app(Message(records, 2, kind), Context(1, 2, config, RecordDict(), {"scenario": text, "run": run}))


def question(**changes) -> dict:
    told = {"protocol": PROTOCOL, "version": "0.1.0", "classes": CLASSES, "channel": "", "token": ""} | changes
    return {"config": {key: value for key, value in told.items() if value is not None}}


def identify(scenario: Scenario | str = DIGITS, told: dict | None = None, **node) -> dict:
    return dict(ask("query", question(**told or {}), scenario, **node).content["config"])


def problem(*arguments, **node) -> str:
    answer = identify(*arguments, **node)
    assert set(answer) == {"partition-id", "protocol", "version", "problem"}
    assert "\n" not in answer["problem"]
    return answer["problem"]


def test_a_client_says_who_it_is_and_what_it_holds():
    assert identify() == {"partition-id": 1, "num-examples": 32, "protocol": PROTOCOL, "version": __version__}
    assert dict(ask("query", {}, partition_id=2).content["config"])["num-examples"] == 32
    for told, records in (("query.goodbye", {}), ("query.refused", {"config": {"problem": "a second one"}})):
        assert not ask(told, records).has_error()
        with pytest.raises(WireError, match="it holds config, more, not"):
            ask(told, {"config": {"problem": "a second one"}, "more": {"x": 1}})


@pytest.mark.parametrize("kind", ["query", "query.refused", "query.goodbye", "train", "train.align", "evaluate"])
def test_an_error_where_a_message_should_be_asks_for_nothing(kind):
    empty = Message(Error(7, "no"), reply_to=Message(RecordDict(), 2, kind))
    context = Context(1, 2, {"partition-id": 1}, RecordDict(), {"scenario": DIGITS.to_yaml(), "run": "run-1"})
    if kind == "query":
        assert "holds an error" in app(empty, context).content["config"]["problem"]
    else:
        with pytest.raises(WireError, match="holds an error"):
            app(empty, context)


def test_a_client_with_images_of_its_own(hospital, tmp_path):
    node = {"splitfed_data": str(hospital), "splitfed_states": str(tmp_path / "states")}
    assert identify(**node)["num-examples"] == 20
    told = {"classes": [f"digit {name}" for name in CLASSES]}
    assert problem(DIGITS, told, **node).startswith(
        f"{hospital}: class '3' is not among the classes ('digit 0', 'digit 1', "
    )
    assert "the server has told none" in problem(DIGITS, {"classes": []}, **node)


def test_what_is_not_installed_is_the_problem_of_who_needs_it(hospital, tmp_path, without):
    forget()
    without("sklearn", "sklearn.datasets", "pyarrow")
    assert problem().startswith("scikit-learn is not installed, and the data set digits needs it: pip install ")
    assert identify(splitfed_data=str(hospital), splitfed_states=str(tmp_path / "states"))["num-examples"] == 20


def test_in_a_deployment_it_says_what_its_images_weigh_held_out_ones_too(hospital, tmp_path):
    weight = sum(path.stat().st_size for path in hospital.rglob("*.png"))
    deployed = {"engine": Deployment(threads=1)}
    for out, trained in (([], 20), (["evaluation.held_out=0.25"], 15)):
        scenario = small("data.image_column=img", *out).model_copy(update=deployed)
        node = {"splitfed_data": str(hospital), "splitfed_states": str(tmp_path / "states"), "run": f"run-{trained}"}
        answer = identify(scenario, **node)
        assert (answer["num-examples"], answer["images-bytes"]) == (trained, weight)
        assert identify(scenario)["images-bytes"] == 32 * 64  # a share of the scenario's own data set


def test_a_client_is_held_to_the_images_that_it_began_with(hospital, tmp_path):
    node = {"splitfed_data": str(hospital), "splitfed_states": str(tmp_path / "states")}
    for place in (hospital, shutil.copytree(hospital, tmp_path / "moved")):
        assert identify(**(node | {"splitfed_data": str(place)}))["num-examples"] == 20
    next(hospital.rglob("*.png")).unlink()
    assert problem(**node) == (
        "this client's images are others than those that it began the run with: it has 19 training images, not 20; "
        "bring them back, or take part with an empty --state"
    )
    assert identify(**(node | {"splitfed_states": str(tmp_path / "other")}))["num-examples"] == 19
    assert problem(splitfed_data=str(tmp_path / "none"), splitfed_states=node["splitfed_states"]) == (
        f"{tmp_path}/none: there is no such file or folder; it should hold this client's images"
    )


def test_what_a_client_cannot_do_is_one_line(tmp_path):
    assert problem(partition_id=3) == "this is client 3, where the run has clients 0 to 2"
    assert problem(splitfed_device="cuda:99").startswith("training: device 'cuda:99' cannot be used")
    assert problem(splitfed_data_path=str(tmp_path / "nowhere")).startswith("data.path: nothing to load at")
    assert problem(DIGITS, {"protocol": PROTOCOL + 1, "version": "9.9"}) == (
        f"this client speaks protocol {PROTOCOL} (splitfed {__version__}), the server {PROTOCOL + 1} (splitfed 9.9): "
        "install the same version"
    )
    newer = problem(DIGITS.to_yaml() + "surprise: 1\n")
    assert "surprise: unknown key" in newer
    assert newer.endswith(f"; this is splitfed {__version__}: is the server's version another?")
    assert problem(DIGITS, {"classes": ["ants", "bees"]}) == (
        "digits: is another data set than the server's: its classes are '0', '1', '2', '3', '4', '5', '6', '7' and 2 "
        "more, not 'ants', 'bees'"
    )


@pytest.mark.parametrize(
    "changes",
    [{"protocol": None}, {"protocol": "1"}, {"classes": None}, {"classes": "abc"}, {"classes": [1, 2]},
     {"classes": ["a", "a"]}, {"channel": None}, {"channel": 9}],
)  # fmt: skip
def test_a_query_that_is_none_is_one_line(changes):
    assert problem(DIGITS, changes).startswith("the server's ")


@pytest.mark.parametrize("run", ["../../etc", "/etc", ".hidden", "..", "", "a/b", "a\nb", "a\\b", "x" * 300, "c:d"])
def test_a_run_whose_name_leads_elsewhere_is_refused(run, tmp_path):
    assert "cannot name a folder here" in problem(run=run, splitfed_states=str(tmp_path))
    order = {"config": {"server-round": 1, "channel": "", "token": ""}, "wire": {"weights": b""}}
    with pytest.raises(RunError, match="cannot name a folder here"):
        ask("train", order, run=run, splitfed_states=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_states_lie_where_the_client_wants_them(tmp_path):
    assert Settings(0, states=tmp_path).states_of("digits-20260101T120000Z-2") == tmp_path / "digits-20260101T120000Z-2"
    assert Settings(0).states_of("/runs/digits-2026") == Path("/runs/digits-2026/clients")


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ({}, "partition-id: None is no client's number"),
        ({"partition-id": -1}, "-1 is no client's number"),
        ({"partition-id": "0"}, "'0' is no client's number"),
        ({"partition-id": True}, "True is no client's number"),
        ({"splitfed-threads": 0}, "splitfed-threads: must be a number from 1 on, not 0"),
        ({"splitfed-threads": True}, "splitfed-threads: must be a number from 1 on, not True"),
        ({"splitfed-data": ""}, "splitfed-data: must be a text, not ''"),
        ({"splitfed-ca": 5}, "splitfed-ca: must be a text, not 5"),
        ({"splitfed-dat": "x"}, "splitfed-dat: unknown setting of a client"),
        ({"splitfed-data": "x", "splitfed-data-path": "y"}, "own images or a share, not both"),
    ],
)
def test_settings_are_checked(node, why):
    with pytest.raises(RunError, match=why):
        Settings.read(node if not node or "partition-id" in node else {"partition-id": 0, **node})


def test_settings_are_read():
    node = {
        "partition-id": 4, "num-partitions": 9, "splitfed-data": "a", "splitfed-device": "cpu", "splitfed-threads": 2,
        "splitfed-states": "s", "splitfed-host": "h", "splitfed-ca": "c", "splitfed-chunk": 8,
    }  # fmt: skip
    found = Settings.read(node)
    assert found == Settings(4, "a", None, "cpu", 2, Path("s"), "h", Path("c"), chunk=8)
    assert found.reach(Deployment(grace=3.0, deadline=5.0)) == Reach("h", Path("c"), 5.0, 3.0)
    assert Settings.read({"partition-id": 0, "num-partitions": 2}).reach(DIGITS.engine) == Reach()


def test_one_worker_serves_all_who_differ_in_nothing_that_concerns_it(hospital, tmp_path):
    text = DIGITS.to_yaml()
    with leased(text, Settings(0), CLASSES) as first:
        pass
    with leased(text, Settings(2, host="elsewhere", states=tmp_path)) as second:
        assert second is first
    with leased(text, Settings(0, data=str(hospital)), CLASSES) as own:
        assert own is not first
        assert len(own.holding.rows(0)) == 20
    with leased(text, Settings(0, data=str(hospital)), CLASSES[:9]) as other:
        assert other is not own


def test_workers_at_the_same_time_share_what_they_hold():
    text = DIGITS.to_yaml()
    with leased(text, Settings(0)) as first, leased(text, Settings(1)) as second:
        assert second.holding is first.holding
        mine = {p.data_ptr() for p in first.front.parameters()}
        assert mine.isdisjoint(p.data_ptr() for p in second.front.parameters())
    with leased(text, Settings(2)) as third, leased(text, Settings(3)) as fourth:
        assert {id(third), id(fourth)} == {id(first), id(second)}  # none was made anew


def test_threads_are_the_clients_or_else_those_of_a_deployments_scenario(monkeypatch):
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    deployed = DIGITS.model_copy(update={"engine": Deployment(threads=3)}).to_yaml()
    with leased(DIGITS.to_yaml(), Settings(0)):
        assert not seen  # whoever started an inline run has set them
    for settings in (Settings(0), Settings(0, threads=2)):
        with leased(deployed, settings):
            pass
    assert seen == [3, 2]


class Server:
    """The server's side of a client's rounds, in this process."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.key = scenario, Key(scenario.seed)
        data = load(scenario.data, scenario.model.image_size, scenario.federation.clients, self.key.at("data"))
        self.model = Model(scenario, data)
        self.cut = Cut(scenario.compression, self.model.geometry, self.model.device)
        pool = POOLS[scenario.federation.mode](Trainer(self.model.back, scenario.training.server))
        self.wire = WeightWire(self.model.front.travelling(), scenario.compression)
        self.split = SplitServer(
            pool, self.cut, Ledger(folder, 1), self.key, scenario.training.precision,
            evaluation_cut=EvaluationCut(self.cut, self.model.front.encoder),
        )  # fmt: skip

    def order(self, round: int, where: str, **changes) -> dict:
        packed = self.wire.pack(self.model.front.state_dict(), self.key, changes.pop("of_round", round), -1)
        config = {"server-round": round, "channel": where, "token": "", "lr-of-a-strategy": 1.5} | changes
        return {"config": {k: v for k, v in config.items() if v is not None}, "wire": {"weights": packed.buffer}}

    def train(self, round: int, examples: int, **node) -> Message:
        """Let client 1 train for a round, as the server does."""
        self.split.start_round(round, 1e-3, {1: examples})
        with InlineListener(self.split) as listener:
            return ask("train", self.order(round, listener.address), self.scenario, **node)


@pytest.fixture
def server(tmp_path) -> Server:
    (tmp_path / "ledger").mkdir()
    return Server(DIGITS, tmp_path / "ledger")


def test_a_client_trains_on_its_own_images_also_after_it_was_started_again(server, hospital, tmp_path):
    node = {"splitfed_data": str(hospital), "splitfed_states": str(tmp_path / "states"), "splitfed_threads": 1}
    assert identify(**node)["num-examples"] == 20
    seen: list[torch.Tensor] = []
    pack_step = Cut.pack_step

    def spy(self, plan, smashed, targets, *rest):
        seen.append(targets)
        return pack_step(self, plan, smashed, targets, *rest)

    for _ in ("warm", "after a restart"):
        seen.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Cut, "pack_step", spy)
            metrics = dict(server.train(1, 20, **node).content["metrics"])
        assert (metrics["num-examples"], metrics["steps"]) == (20, 2)
        assert torch.cat(seen).bincount().tolist() == [0, 0, 0, 10, 0, 0, 0, 10]
        workers.kept.clear()
    shutil.rmtree(tmp_path / "states")
    with pytest.raises(RunError, match=r"classes\.json: cannot be read .* started again with --resume"):
        server.train(1, 20, **node)


def test_a_client_holds_some_of_its_own_images_out_and_evaluates_on_them(hospital, tmp_path):
    scenario = DIGITS.with_(["evaluation.held_out=0.25"])
    (tmp_path / "ledger").mkdir()
    server = Server(scenario, tmp_path / "ledger")
    node = {"splitfed_data": str(hospital), "splitfed_states": str(tmp_path / "states")}
    answer = identify(scenario, **node)
    assert (answer["num-examples"], answer["held-out"]) == (15, 5)
    assert dict(server.train(1, 15, **node).content["metrics"])["num-examples"] == 15
    with InlineListener(server.split) as listener, server.split.evaluation(1, {1: 5}) as evaluation:
        order = server.order(1, listener.address)
        found = dict(ask("evaluate", order, scenario, **node).content["metrics"])
        loss, accuracy = mean(evaluation.settle(1), 5)
        assert found == {"num-examples": 5, "eval-loss": loss, "eval-accuracy": accuracy}
        with pytest.raises(WireError, match="client 1 is asked to evaluate, but holds out no images"):
            ask("evaluate", order)
        with pytest.raises(WireError, match="has the front's weights of round 2"):
            ask("evaluate", server.order(1, listener.address, of_round=2), scenario, **node)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"server-round": 0}, "'server-round' is 0"),
        ({"server-round": -3}, "'server-round' is -3"),
        ({"server-round": 1.0}, "'server-round' is 1.0: it must be int"),
        ({"server-round": True}, "'server-round' is True: it must be int"),
        ({"server-round": None}, "has no 'server-round'"),
        ({"channel": None}, "has no 'channel'"),
        ({"token": 5}, "'token' is 5: it must be str"),
        ({"vanishes-after": -1}, "'vanishes-after' is -1"),
        ({"vanishes-after": 1.0}, "'vanishes-after' is 1.0: it must be int"),
        ({"vanishes-after": True}, "'vanishes-after' is True: it must be int"),
        ({"of_round": 2}, "the message for round 1 has the front's weights of round 2"),
        ({"channel": "inline:999999"}, "nobody listens at inline:999999"),
        ({"channel": "file:///etc/passwd"}, "no way to reach such an address is known"),
        ({"channel": "grpc:0"}, "no way to reach such an address is known"),
        ({"channel": "grpc:99999999999"}, "no way to reach such an address is known"),
        ({"channel": "grpc:9093"}, "the server names no host, and this client has joined none"),
    ],
)
def test_an_order_that_is_wrong_is_one_line(changes, why, server):
    with pytest.raises(WireError, match=why) as caught:
        ask("train", server.order(1, "", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_split_port_that_nobody_answers_at_is_no_failure_of_the_client(kind, server):
    """The server takes it for lost, and may see it again."""
    scenario = DIGITS.model_copy(update={"engine": Deployment(threads=1, grace=0.2)})
    with socket.create_server((HOST, 0)) as taken:
        order = server.order(1, f"grpc:{taken.getsockname()[1]}")
        taken.close()
        reply = ask(kind, order, scenario.with_(["evaluation.held_out=0.2"]), splitfed_host=HOST)
    assert reply.error.code == UNREACHED
    assert present(reply) is None
    assert "nobody answers at" in reply.error.reason


def test_a_data_set_of_the_hub_is_named_before_it_is_loaded(caplog, monkeypatch, tmp_path):
    def load_it(config, *rest):
        assert "Hugging Face Hub, someone/photos:" in caplog.text
        raise DataError("loaded from there")

    monkeypatch.setattr(images, "load", load_it)
    named = small("data.path=someone/photos").model_copy(update={"engine": Deployment(threads=1)})
    assert problem(named) == "loaded from there"
    assert len(caplog.messages) == 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "photos").mkdir(parents=True)
    assert "something is called so here" in problem(named)
    caplog.clear()
    monkeypatch.setattr(images, "load", load)
    assert identify(DIGITS.model_copy(update={"engine": Deployment(threads=1)}))["num-examples"]
    assert not caplog.messages


@pytest.mark.parametrize("wire", [None, {}, {"weights": 3}, {"weights": b""}, {"weights": b"no frame at all"}])
def test_weights_that_are_none_are_refused(wire, server):
    order = server.order(1, "inline:000001") | {"wire": wire}
    with pytest.raises(WireError):
        ask("train", {name: record for name, record in order.items() if record is not None})


def test_a_front_of_another_model_is_refused(server, tmp_path):
    other = Server(small("model.args.embed_dim=24"), tmp_path / "ledger")
    with pytest.raises(WireError):
        ask("train", other.order(1, "inline:000001"))


def test_a_kept_optimiser_lies_with_the_client_and_is_checked(tmp_path):
    (tmp_path / "ledger").mkdir()
    server = Server(small("training.client_state=keep"), tmp_path / "ledger")
    node = {"splitfed_states": str(tmp_path / "states")}
    for round in (1, 2, 3):
        server.train(round, 32, **node)
    folder = tmp_path / "states" / "run-1" / "000001"
    assert sorted(path.name for path in folder.iterdir()) == [f"00000{n}.safetensors" for n in (1, 2, 3)]
    newest = folder / "000003.safetensors"
    whole = newest.read_bytes()
    for torn in (b"", whole[:50], whole[:-9], b"\xff" * 100):
        newest.write_bytes(torn)
        with pytest.raises(RunError, match=r"000003\.safetensors: this client's optimiser cannot be read .*; bring"):
            server.train(4, 32, **node)
    newest.unlink()
    (folder / "notes.safetensors").write_bytes(b"not ours")
    assert not server.train(4, 32, **node).has_error()  # from the one before it


def test_an_optimiser_of_another_model_is_refused(tmp_path):
    def adam(*shapes) -> torch.optim.Optimizer:
        parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
        optimiser = torch.optim.Adam(parameters)
        sum(parameter.sum() for parameter in parameters).backward()  # type: ignore[union-attr]
        optimiser.step()
        return optimiser

    state, mine = ClientState(tmp_path, 3), adam((4, 3), (2,))
    assert state.before(5, mine) == {}
    state.save(1, read_optimiser(mine))
    write_optimiser(mine, state.before(2, mine))
    for other in (adam((4, 4), (2,)), adam((4, 3))):
        with pytest.raises(RunError, match="is that of another model; bring"):
            state.before(2, other)


def test_a_place_where_nothing_can_be_kept_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    state = ClientState(tmp_path / "file", 0)
    for keep in (lambda: state.save(1, {}), lambda: state.save_classes(["a"])):
        with pytest.raises(RunError, match="cannot be written"):
            keep()


@pytest.mark.parametrize(
    ("address", "joined", "found"),
    [("grpc:9093", "gpu.example.org", ("gpu.example.org", 9093)), ("grpc:10.0.0.1:1", None, ("10.0.0.1", 1)),
     ("grpc:[::1]:80", None, ("::1", 80)), ("grpc:80", "::1", ("::1", 80))],
)  # fmt: skip
def test_addresses(address, joined, found):
    assert target(address, Reach(joined)) == found


def tried(address: str, **reach) -> str | None:
    """Return what is in the way, if anything is."""
    try:
        probe(address, Reach(HOST, **reach), timeout=60.0)
    except WireError as error:
        return str(error)
    return None


def test_the_way_to_the_split_port_is_tried(certificates, tmp_path):
    (ca, files), (other, _) = certificates["good"], certificates["other"]
    assert tried("inline:000001") is None
    with listen(Door()) as plain:
        where = f"the split port {HOST}:{plain.port}"
        assert tried(f"grpc:{plain.port}") is None
        assert tried(f"grpc:{plain.port}", ca=ca) == (
            f"{where}: the server speaks plain text, not TLS: start it with --tls, or join it without"
        )
    with listen(Door(), tls=files) as secure:
        where = f"the split port {HOST}:{secure.port}"
        assert tried(f"grpc:{secure.port}", ca=ca) is None
        assert "was not signed by this CA" in (tried(f"grpc:{secure.port}", ca=other) or "")
        assert "TLS" in (tried(f"grpc:{secure.port}") or "")
        assert "No such file" in (tried(f"grpc:{secure.port}", ca=tmp_path / "none.crt") or "")
    assert tried(f"grpc:{secure.port}") == (
        f"cannot reach the split port {HOST}:{secure.port}: connection refused; is it open in the firewall?"
    )
    assert (tried(f"grpc:{'x' * 300}:9") or "").endswith("no machine of this name is known")


@pytest.mark.parametrize(("kind", "why"), [("old", "has expired"), ("elsewhere", "does not name the host")])
def test_a_certificate_that_proves_nothing_is_told(kind, why, certificates):
    ca, files = certificates[kind]
    with listen(Door(), tls=files) as listener:
        assert why in (tried(f"grpc:{listener.port}", ca=ca) or "")


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_another_service_at_the_split_port_is_told(answer):
    with socket.create_server((HOST, 0)) as service:

        def serve() -> None:
            connection, _ = service.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        found = tried(f"grpc:{service.getsockname()[1]}")
        thread.join()
    assert found is not None
    assert "does not answer as a split server" in found


def test_a_client_that_cannot_reach_the_split_port_does_not_take_part():
    with listen(Door()) as listener:
        assert identify(DIGITS, {"channel": f"grpc:{listener.port}"}, splitfed_host=HOST)["num-examples"] == 32
    found = problem(DIGITS, {"channel": f"grpc:{listener.port}"}, splitfed_host=HOST)
    assert found.startswith(f"cannot reach the split port {HOST}:{listener.port}: connection refused")
