"""Flower's strategies and one's own: named by a scenario, checked against NumPy, resumed as if never stopped."""

import inspect
import json
import re
import sys
from pathlib import Path

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from helpers import PLAIN, few, small, table
from models import newest
from places import ROOT
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from splitfed import Scenario, simulate
from splitfed.clients.settings import Settings
from splitfed.clients.worker_pool import leased
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.errors import RunError, ScenarioError, WireError
from splitfed.federation.own_strategy import PLATFORM, UNFIT, OwnStrategy
from splitfed.federation.strategies import FedAvgConfig, StrategySettings
from splitfed.model.build import pixel_stats
from splitfed.run.observer import Observer
from splitfed.run.tree import flatten, unflatten
from splitfed.scenario.problems import kind, sections
from splitfed.scenario.sections import Federation
from splitfed.seeds import Key
from splitfed.server.weights.strategy import Aggregation
from splitfed.split.assembly import assemble
from splitfed.wire.messages import Order

SETTINGS = {
    kind(section): section for section in sections(Federation.model_fields["strategy"].annotation) if kind(section)
}
# What a scenario must add to the bare name.
ALLOWED = {
    "FedAvgM": {"server_momentum": 0.9}, "FedProx": {"proximal_mu": 0.1}, "QFedAvg": {"client_learning_rate": 0.1},
    "FedTrimmedAvg": {"beta": 0.4}, "FedAdam": {"eta": 0.01}, "FedAdagrad": {"eta": 0.01},
}  # fmt: skip
OWN = '''
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg


class Damped(FedAvg):
    """Goes a share of the way to the average, less in each round."""

    def __init__(self, share: float = 0.5, label: str = ""):
        super().__init__()
        self.share, self.label, self.start = share, label, None

    def configure_train(self, server_round, arrays, config, grid):
        self.start = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        moved = {n: self.start[n] + self.share * (a.numpy() - self.start[n]) for n, a in arrays.items()}
        self.share *= 0.5
        return ArrayRecord({n: Array(np.asarray(a)) for n, a in moved.items()}), metrics


class Keeper(Damped):
    def __init__(self):
        super().__init__()
        self.unknown = object()

    def state_dict(self):
        return {"share": self.share}

    def load_state_dict(self, state):
        self.share = state["share"]


class Lost(Damped):
    def __init__(self):
        super().__init__()
        self.history = object()


class Sampler(Damped):
    def configure_train(self, *args):
        return super().configure_train(*args)[1:]


class Shrinker(Damped):
    def aggregate_train(self, *args):
        arrays, metrics = super().aggregate_train(*args)
        return ArrayRecord({n: a for n, a in arrays.items() if "bias" not in n}), metrics


class Noisy(FedAvg):
    def __init__(self):
        raise ValueError("no\\nluck")

'''


@pytest.fixture
def own(tmp_path, monkeypatch) -> str:
    """A module of the user's in the current folder; nothing but its name is on the way to it."""
    (tmp_path / "my_strategies.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_strategies", raising=False)
    return "my_strategies"


def section(name: str, **more) -> str:
    return "federation.strategy=" + json.dumps({"kind": name, **ALLOWED.get(name, {}), **more})


def aggregation(name: str, **more) -> Aggregation:
    return Aggregation(SETTINGS[name](**more))


class Clients:
    """Fronts that clients send, in float64, of unequal weight; the names are not in alphabetical order."""

    shapes = {"w": (4, 3), "a": (5,), "s": ()}

    def __init__(self, clients: int) -> None:
        self.rng, self.clients = np.random.default_rng(0), clients
        self.start = {name: self.rng.normal(size=shape).astype(np.float32) for name, shape in self.shapes.items()}
        self.examples = np.arange(1, clients + 1) * 10

    def round(self, strategy: Aggregation, number: int, front: dict, taken: int | None = None):
        """Let a round pass; return the fronts `[clients, ...]`, their losses, and what the strategy makes of them."""
        sent = ArrayRecord({name: Array(array.copy()) for name, array in front.items()})
        nodes = [100 + client for client in range(self.clients)]
        messages = strategy.configure(number, sent, ConfigRecord({"channel": ""}), nodes)
        assert sorted(messages) == nodes
        fronts = {n: np.stack([a + self.rng.normal(size=a.shape) for _ in nodes]) for n, a in front.items()}
        losses = self.rng.uniform(0.5, 2, self.clients)
        replies = [
            Message(
                RecordDict({
                    "arrays": ArrayRecord({n: Array(np.asarray(a[i]).copy()) for n, a in fronts.items()}),
                    "metrics": MetricRecord({"num-examples": int(self.examples[i]), "train-loss": float(losses[i]),
                                             "steps": 1}),
                }), 1, "train",
            )
            for i in range(taken or self.clients)
        ]  # fmt: skip
        made = strategy.aggregate(number, replies, sent)
        return fronts, losses, made and {name: array.numpy() for name, array in made.items()}


def test_settings_are_those_of_the_installed_flower():
    """Every strategy of Flower's is offered with all its arguments and defaults, or refused with a reason."""
    assert {*SETTINGS, *UNFIT} == {*flower.__all__} - {"Strategy", "Result"}
    for name, settings in SETTINGS.items():
        theirs = dict(inspect.signature(getattr(flower, name)).parameters)
        refused = set(theirs) & set(settings.refused)
        ours = {n: field for n, field in settings.model_fields.items() if n != "kind"}
        assert set(theirs) == set(ours) | refused, name
        for argument, field in ours.items():
            if (name, argument) == ("FedProx", "proximal_mu") or theirs[argument].default is inspect.Parameter.empty:
                assert field.is_required()
            else:
                assert field.default == theirs[argument].default, (name, argument)


@pytest.mark.parametrize("name", few(SETTINGS, quick=1))
def test_each_runs(name, tmp_path):
    result = simulate(small(section(name), "checkpoints.keep=3"), runs=tmp_path)
    assert result.summary.rounds == 2
    first, last = (load_file(result.folder / f"checkpoints/round-{n:06d}/model.safetensors") for n in (0, 2))
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight"} <= moved
    assert all(tensor.isfinite().all() for tensor in last.values())
    assert not (result.folder / "log.txt").read_text().count("WARN")


def average(fronts, examples):
    return {n: np.tensordot(examples / examples.sum(), a, 1) for n, a in fronts.items()}


def test_means_and_medians():
    clients = Clients(5)
    cases = {
        "FedAvg": ({}, lambda f: average(f, clients.examples)),
        "FedMedian": ({}, lambda f: {n: np.sort(a, axis=0)[2] for n, a in f.items()}),
        "FedTrimmedAvg": ({"beta": 0.3}, lambda f: {n: np.sort(a, axis=0)[1:4].mean(0) for n, a in f.items()}),
        "Bulyan": ({}, lambda f: {n: a.mean(0) for n, a in f.items()}),  # against nobody
    }
    for name, (more, oracle) in cases.items():
        fronts, _, made = clients.round(aggregation(name, **more), 1, clients.start)
        for array, expected in oracle(fronts).items():
            np.testing.assert_allclose(made[array], expected, rtol=1e-12, err_msg=name)


def test_krum_chooses_who_has_the_nearest_neighbours():
    clients, liars = Clients(5), 1
    fronts, _, made = clients.round(aggregation("Krum", num_malicious_nodes=liars), 1, clients.start)
    flat = np.concatenate([a.reshape(5, -1) for a in fronts.values()], axis=1)
    scores = [sum(sorted(((row - other) ** 2).sum() for other in flat)[1 : 5 - liars - 1]) for row in flat]
    for name, array in made.items():
        np.testing.assert_allclose(array, fronts[name][np.argmin(scores)], rtol=1e-12)


def test_momentum_over_three_rounds():
    clients, strategy = Clients(3), aggregation("FedAvgM", server_learning_rate=0.5, server_momentum=0.9)
    front, momentum = clients.start, None
    expected = {n: a.astype(np.float64) for n, a in front.items()}
    for number in (1, 2, 3):
        fronts, _, made = clients.round(strategy, number, front)
        change = {n: expected[n] - a for n, a in average(fronts, clients.examples).items()}
        momentum = change if momentum is None else {n: 0.9 * momentum[n] + change[n] for n in change}
        expected = {n: expected[n] - 0.5 * momentum[n] for n in change}
        for name, array in made.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-9, atol=1e-12)
        front = {n: a.astype(np.float32) for n, a in made.items()}


def test_adam_over_three_rounds():
    clients, strategy = Clients(3), aggregation("FedAdam", eta=0.1, beta_1=0.8, beta_2=0.9, tau=1e-2)
    front, m, v = clients.start, dict.fromkeys(clients.shapes, 0.0), dict.fromkeys(clients.shapes, 0.0)
    for number in (1, 2, 3):
        fronts, _, made = clients.round(strategy, number, front)
        for name, mean in average(fronts, clients.examples).items():
            delta = mean - front[name]
            m[name], v[name] = 0.8 * m[name] + 0.2 * delta, 0.9 * v[name] + 0.1 * delta**2
            # Flower counts the bias correction from 2.
            eta = 0.1 * np.sqrt(1 - 0.9 ** (number + 1)) / (1 - 0.8 ** (number + 1))
            np.testing.assert_allclose(made[name], front[name] + eta * m[name] / (np.sqrt(v[name]) + 1e-2), rtol=1e-9)
        front = {n: a.astype(np.float32) for n, a in made.items()}


def test_fairness_by_loss():
    """q-FedAvg, section 3.3 of its paper: w - sum(F^q L dw) / sum(q F^(q-1) |L dw|^2 + L F^q)."""
    clients, q, lipschitz = Clients(3), 0.5, 4.0
    strategy = aggregation("QFedAvg", q=q, client_learning_rate=1 / lipschitz)
    fronts, losses, made = clients.round(strategy, 1, clients.start)
    steps = {n: lipschitz * (clients.start[n] - a) for n, a in fronts.items()}
    norms = sum((s**2).reshape(3, -1).sum(1) for s in steps.values())
    share = (q * losses ** (q - 1) * norms + lipschitz * losses**q).sum()
    for name, array in made.items():
        expected = clients.start[name] - np.tensordot(losses**q, steps[name], 1) / share
        np.testing.assert_allclose(array, expected, rtol=1e-6)


def test_too_few_replies_leave_the_front(caplog):
    clients = Clients(5)
    for name, more in (("Krum", {"num_malicious_nodes": 1}), ("FedTrimmedAvg", {"beta": 0.2}), ("Bulyan", {})):
        _, _, made = clients.round(aggregation(name, **more), 1, clients.start, taken=2)
        assert made is None
        assert f"round 1: {name}: " in caplog.text
        assert "the front stays as it was" in caplog.text


def test_a_round_that_aggregates_nothing_leaves_the_front(tmp_path, monkeypatch):
    monkeypatch.setattr(flower.FedAvg, "aggregate_train", lambda self, round, replies: (None, None))
    result = simulate(small("checkpoints.keep=3"), runs=tmp_path)
    first, last = (load_file(result.folder / f"checkpoints/round-{n:06d}/model.safetensors") for n in (0, 2))
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert "head.weight" in changed
    assert "patch_embed.proj.weight" not in changed
    assert "round 1: FedAvg aggregated nothing; the front stays as it was" in (result.folder / "log.txt").read_text()


class Stop(Observer):
    def progress(self, round: int, share: float) -> None:
        if round == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["FedAvgM", "FedAdam", "my_strategies:Damped", "my_strategies:Keeper"])
def test_resumed_is_as_never_interrupted(name, own, tmp_path):
    plan = small(section(name), "federation.rounds=4", "federation.cohort=2")
    whole = simulate(plan, runs=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=tmp_path / "cut", observers=(Stop(),))
    (folder,) = (tmp_path / "cut").iterdir()
    resumed = simulate(resume=folder)
    expected, found = newest(whole.folder), newest(resumed.folder)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert table(folder / "metrics.csv", "seconds") == table(whole.folder / "metrics.csv", "seconds")


def test_without_its_state_a_resumed_run_would_differ(tmp_path, monkeypatch):
    """So the test above can fail."""
    plan = small(section("FedAvgM"), "federation.rounds=4")
    whole = simulate(plan, runs=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=tmp_path / "cut", observers=(Stop(),))
    (folder,) = (tmp_path / "cut").iterdir()
    monkeypatch.setattr(Aggregation, "load_state_dict", lambda self, state: None)
    resumed, expected = newest(simulate(resume=folder).folder), newest(whole.folder)
    assert not torch.equal(resumed["patch_embed.proj.weight"], expected["patch_embed.proj.weight"])


def test_nested_values_come_back():
    value = {
        "a": np.arange(6.0).reshape(2, 3), "zero": np.array(2.5), "t": torch.arange(3), 1: [None, True, 3, 0.1, "x"],
        "pair": (np.float32(0.5), [np.ones(2, dtype=np.int64)]), "empty": {}, "nan": float("inf"),
    }  # fmt: skip
    found = unflatten(*flatten(value))
    assert list(found) == list(value)
    np.testing.assert_equal(
        {k: v for k, v in found.items() if k != "t"}, {k: v for k, v in value.items() if k != "t"}
    )  # fmt: skip
    assert torch.equal(found["t"], value["t"])
    assert found["zero"].shape == ()
    record = unflatten(*flatten(ArrayRecord({"b": Array(np.ones(2)), "a": Array(np.zeros(1))})))
    assert list(record) == ["b", "a"]
    with pytest.raises(TypeError, match=r"\['x'\]\[0\] is of type set"):
        flatten({"x": [set()]})


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("FedAdm", r":3: federation.strategy: unknown kind 'FedAdm', .*did you mean 'FedAdam'\?"),
        ("{kind: FedAdam, etta: 1}", r":3: federation.strategy.etta: unknown key, did you mean 'eta'\?"),
        ("{kind: FedAdam, eta: high}", ":3: federation.strategy.eta: must be a number, not 'high'"),
        ("{kind: FedAdam, eta_l: 1}", ":3: federation.strategy.eta_l: cannot be set: nothing in Flower uses it"),
        ("{kind: FedAvg, min_train_nodes: 2}", ":3: federation.strategy.min_train_nodes: cannot be set: sampling is"),
        ("{kind: Bulyan, selection_rule: f}", ":3: federation.strategy.selection_rule: cannot be set: is a function"),
        ("FedProx", ":3: federation.strategy.proximal_mu: is missing"),
        ("FedAvgM", ":3: federation.strategy: without momentum, .* FedAvgM is FedAvg"),
        ("FedXgbBagging", ":3: federation.strategy: 'FedXgbBagging' aggregates decision trees"),
        ("DifferentialPrivacyServerSideFixedClipping", ":3: federation.strategy: .* activations and labels leave"),
        ("{kind: Krum, num_malicious_nodes: 1}", r":3: federation.strategy: Krum: .* needs 5 in a round .*, not 4"),
        ("{kind: Bulyan, num_malicious_nodes: 1}", r":3: federation.strategy: Bulyan: .* needs 7 in a round"),
        ("{kind: MultiKrum, num_nodes_to_select: 5}", ":3: federation.strategy: MultiKrum: num_nodes_to_select is 5"),
        ("FedTrimmedAvg", ":3: federation.strategy: FedTrimmedAvg: .* nothing would be trimmed"),
        ("{kind: FedTrimmedAvg, beta: 0.5}", ":3: federation.strategy.beta: must be less than 0.5"),
        ("'my-module:X'", ":3: federation.strategy: 'my-module:X' is no import path"),
        ("{kind: 'm:X', fraction_train: 1.0}", ":3: federation.strategy: fraction_train cannot be set: sampling is"),
    ],
)  # fmt: skip
def test_mistakes_are_named(written, why):
    text = f"model: {{name: x, cut: 1}}\nfederation: {{clients: 9, cohort: 4, rounds: 1,\n  strategy: {written}}}\n"
    with pytest.raises(ScenarioError, match=rf"(?m)^s.yaml{why}") as caught:
        Scenario.parse(text, "s.yaml")
    assert sum("strategy" in problem for problem in caught.value.problems) == 1


def test_scenarios_are_written_and_read_back():
    for name in SETTINGS:
        plan = small(section(name))
        assert Scenario.parse(plan.to_yaml()) == plan
    plan = small("federation.strategy={kind: 'a.b:C', x: 1, y: [2]}")
    assert Scenario.parse(plan.to_yaml()) == plan
    assert plan.federation.strategy.arguments() == {"x": 1, "y": [2]}
    changed = plan.with_(["federation.strategy.x=3"]).with_(["federation.strategy.kind=FedMedian"])
    assert changed.federation.strategy == SETTINGS["FedMedian"]()


def test_a_client_that_reads_the_servers_scenario_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "poison.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with leased(small(section("poison:Strategy")).to_yaml(), Settings(0)) as worker:
        pass
    assert worker.scenario.federation.strategy.kind == "poison:Strategy"
    assert "poison" not in sys.modules
    with pytest.raises(RunError, match="poison:Strategy cannot be imported: SystemExit: imported"):
        Aggregation(worker.scenario.federation.strategy)  # as the server does


def test_ones_own_aggregates(own, tmp_path):
    plan = small(section("my_strategies:Damped", share=0.25), "federation.rounds=1", "checkpoints.keep=2")
    damped = simulate(plan, runs=tmp_path).folder
    start = load_file(damped / "checkpoints/round-000000/model.safetensors")
    whole = newest(simulate(small("federation.rounds=1"), runs=tmp_path).folder)
    found = newest(damped)
    for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc1.bias"):
        torch.testing.assert_close(found[name], start[name] + 0.25 * (whole[name] - start[name]))


@pytest.mark.parametrize(
    ("name", "more", "why"),
    [
        ("nowhere:X", {}, "nowhere:X cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        ("my_strategies:X", {}, "my_strategies:X cannot be imported: AttributeError"),
        ("my_strategies:np", {}, "my_strategies:np is not a subclass of flwr.serverapp.strategy.Strategy"),
        ("flwr.serverapp.strategy:Strategy", {}, "lacks aggregate_evaluate, aggregate_train"),
        ("flwr.serverapp.strategy:FedXgbBagging", {}, "cannot be used: FedXgbBagging aggregates decision trees"),
        ("my_strategies:Damped", {"shar": 1}, r"strategy.shar: unknown argument, did you mean 'share'\?"),
        ("my_strategies:Damped", {"share": "x"}, "strategy.share: must be a valid number, not 'x'"),
        ("flwr.serverapp.strategy:QFedAvg", {}, "strategy.client_learning_rate: is missing"),
        ("my_strategies:Noisy", {}, "my_strategies:Noisy: cannot be made: ValueError: no luck"),
        ("my_strategies:Sampler", {}, "configure_train made 2 messages for a cohort of 3"),
        ("my_strategies:Shrinker", {}, "aggregate_train must return the front's arrays under their names: see 'blo"),
        (
            "my_strategies:Lost",
            {},
            r"cannot hold its state, where \['history'\] is of type object: give",
        ),
    ],
)
def test_mistakes_in_ones_own_are_one_line(name, more, why, own, tmp_path):
    with pytest.raises(RunError, match=why) as caught:
        simulate(small(section(name, **more)), runs=tmp_path)
    assert "\n" not in str(caught.value)


def test_the_example_of_the_document_is_one(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "extending.md").read_text()
    (code,) = [block for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if "class Damped" in block]
    (tmp_path / "damped.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    result = simulate(small(section("damped:Damped", share=0.8)), runs=tmp_path)
    with safe_open(result.folder / "checkpoints/round-000002/strategy.safetensors", "pt") as file:
        state = unflatten({name: file.get_tensor(name) for name in file.keys()}, file.metadata()["state"])  # noqa: SIM118
    assert set(state) == {"share", "start"}
    assert state["share"] == 0.8 * 0.9 * 0.9


def test_the_base_of_all_is_usable_by_path():
    assert OwnStrategy(kind="flwr.serverapp.strategy:FedMedian").load() is flower.FedMedian
    assert isinstance(FedAvgConfig(), StrategySettings)
    assert set(PLATFORM) >= {n for n in inspect.signature(flower.FedAvg).parameters if "fn" not in n}


def prox_model(scenario: Scenario, mu: float) -> dict[str, torch.Tensor]:
    """Train the model in one piece, with the proximal term written into the loss."""
    key, training = Key(scenario.seed), scenario.training
    data = load(scenario.data, scenario.model.image_size, 1, key.at("data"))
    front, back, _ = assemble(scenario, len(data.classes))
    model, (mean, std) = nn.Sequential(front, front.encoder, back.decoder, back).train(), pixel_stats(scenario.model)
    server = training.server.optimiser.build(list(back.parameters()), 0.0)
    for number in range(1, scenario.federation.rounds + 1):
        given = [parameter.detach().clone() for parameter in front.parameters()]
        client = training.client.optimiser.build(list(front.parameters()), 0.0)
        for batch in batches(
            data.train, data.partitions[0], training.batch_size, key.at("batches", number, 0), mean=mean, std=std,
            epochs=1,
        ):  # fmt: skip
            away = sum(((w - w0) ** 2).sum() for w, w0 in zip(front.parameters(), given, strict=True))
            (nn.functional.cross_entropy(model(batch.images), batch.labels) + mu / 2 * away).backward()
            for optimiser in (client, server):
                optimiser.step()
                optimiser.zero_grad()
    return {**front.state_dict(), **back.state_dict()}


@pytest.mark.parametrize("reducer", ["none", "{kind: bottleneck, width: 8}"])
def test_the_proximal_term_is_in_the_clients_loss(reducer, tmp_path):
    sgd = ["training.client.optimiser={kind: sgd, lr: 0.05}", "training.server.optimiser={kind: sgd, lr: 0.05}"]
    plan = small(
        *PLAIN, *sgd, "federation.clients=1", section("FedProx", proximal_mu=4.0), f"compression.reducer={reducer}"
    )
    found, expected, without = newest(simulate(plan, runs=tmp_path).folder), prox_model(plan, 4.0), prox_model(plan, 0)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.allclose(found["patch_embed.proj.weight"], without["patch_embed.proj.weight"], rtol=1e-3)


def test_a_proximal_weight_that_is_none_is_refused():
    def order(**more) -> Order:
        config = {"server-round": 1, "channel": "", "token": ""} | more
        return Order.read(RecordDict({"config": ConfigRecord(config)}))

    assert order().proximal == 0
    assert order(**{"proximal-mu": 0.5}).proximal == 0.5
    for wrong in (-1.0, float("nan"), float("inf"), "1"):
        with pytest.raises(WireError, match="proximal-mu"):
            order(**{"proximal-mu": wrong})


def test_an_encoder_is_aggregated_with_the_front(tmp_path):
    plan = small(section("FedAvgM"), "compression.reducer={kind: bottleneck, width: 8}", "checkpoints.keep=3")
    folder = simulate(plan, runs=tmp_path).folder
    state = load_file(folder / "checkpoints/round-000002/strategy.safetensors")
    first, last = (load_file(folder / f"checkpoints/round-{n:06d}/model.safetensors") for n in (0, 2))
    encoder = [name for name in first if name.startswith("encoder.")]
    assert encoder
    shapes = [tuple(tensor.shape) for tensor in state.values()]
    for name in encoder:
        assert shapes.count(tuple(first[name].shape)) >= 2  # current arrays and momentum
    assert any(not torch.equal(first[name], last[name]) for name in encoder)


def test_a_broken_state_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        simulate(small(section("FedAvgM"), "federation.rounds=4"), runs=tmp_path, observers=(Stop(),))
    (folder,) = Path(tmp_path).iterdir()
    (folder / "checkpoints/round-000002/strategy.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match="broken checkpoint"):
        simulate(resume=folder)
