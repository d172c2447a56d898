"""Mode `fl`: the whole model on the clients, and nothing but weights crosses."""

import socket

import pytest
import torch
from deployed import deployment
from helpers import small, table
from models import newest
from torch import nn

from splitfed import compare, simulate
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.errors import ScenarioError
from splitfed.model.build import build, pixel_stats
from splitfed.reports.study.plots import curves, draw, factors
from splitfed.seeds import Key


def fl(*overrides: str):
    return small("federation.mode=fl", "training.server={}", *overrides)


def plain_fedavg(scenario) -> dict[str, torch.Tensor]:
    """FedAvg (arXiv 1602.05629, algorithm 1) of the unsplit model: each client starts from the round's weights, with an
    optimiser of its own, and weights are averaged by numbers of images."""
    torch.set_num_threads(1)
    key, training, federation = Key(scenario.seed), scenario.training, scenario.federation
    data = load(scenario.data, scenario.model.image_size, federation.clients, key.at("data"))
    vit = build(scenario.model, len(data.classes), key=key.at("model")).train()
    mean, std = pixel_stats(scenario.model)
    weights = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    for number in range(1, federation.rounds + 1):
        total, images = {}, sum(len(rows) for rows in data.partitions)
        for one, rows in enumerate(data.partitions):
            vit.load_state_dict(weights)
            optimiser = training.client.optimiser.build(list(vit.parameters()), training.client.weight_decay)
            for batch in batches(
                data.train, rows, training.batch_size, key.at("batches", number, one), mean=mean, std=std,
                augment="none", epochs=federation.local_epochs,
            ):  # fmt: skip
                nn.functional.cross_entropy(vit(batch.images), batch.labels).backward()
                if training.client.clip is not None:
                    nn.utils.clip_grad_norm_(vit.parameters(), training.client.clip)
                optimiser.step()
                optimiser.zero_grad()
            for name, tensor in vit.state_dict().items():
                total[name] = total.get(name, 0) + tensor.double() * len(rows) / images
        weights = {name: tensor.float() for name, tensor in total.items()}
    return weights


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.partition={kind: dirichlet, alpha: 0.5}", "training.client.clip=0.5"],
        ["federation.clients=1", "federation.rounds=1"],
    ],
    ids=["three clients", "one client"],
)
def test_it_is_fedavg_of_the_unsplit_model(overrides, tmp_path):
    scenario = fl(*overrides)
    result = simulate(scenario, runs=tmp_path)
    found, expected = newest(result.folder), plain_fedavg(scenario)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)
    summary, rows = result.summary, table(result.folder / "ledger.csv")
    assert (summary.cut_bytes, summary.raw_bytes, summary.cut_factor) == (0, 0, 1.0)
    assert {row["plane"] for row in rows} == {"control"}
    numbers = sum(tensor.numel() for tensor in expected.values())
    for way in ("up", "down"):
        sizes = [result.totals.select(direction=way, role=role) for role in ("front_weights", "back_weights")]
        times = scenario.federation.clients * scenario.federation.rounds
        assert sum(s.raw for s in sizes) == 4 * numbers * times
        assert all(s.sent for s in sizes)


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path):
    changes = (
        "training.client_state=keep", "federation.strategy={kind: FedAdam, eta: 0.01}", "federation.cohort=2",
        "model.args={patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2, proj_drop_rate: 0.1}",
    )  # fmt: skip
    whole = simulate(fl("federation.rounds=3", *changes), runs=tmp_path / "whole")

    from splitfed.run.observer import Observer

    class Stop(Observer):
        def round(self, metrics, sent, finished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(fl("federation.rounds=3", *changes), runs=tmp_path / "cut", observers=[Stop()])
    (folder,) = (tmp_path / "cut").iterdir()
    again = simulate(resume=folder)
    assert all(torch.equal(newest(again.folder)[name], t) for name, t in newest(whole.folder).items())
    assert again.summary.test_accuracy == whole.summary.test_accuracy


@pytest.mark.parametrize("strategy", ["{kind: FedProx, proximal_mu: 5.0}", "FedMedian"])
def test_a_strategy_makes_the_whole_model(strategy, tmp_path):
    plain = newest(simulate(fl("federation.rounds=1"), runs=tmp_path / "plain").folder)
    other = newest(simulate(fl("federation.rounds=1", f"federation.strategy={strategy}"), runs=tmp_path).folder)
    assert not torch.equal(plain["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])
    assert not torch.equal(plain["head.weight"], other["head.weight"])


@pytest.mark.parametrize("kind", ["total_bytes", "images"])
def test_a_budget_of_all_bytes_ends_it(kind, tmp_path):
    free = simulate(fl("federation.rounds=3", "evaluation.held_out=0.2"), runs=tmp_path)
    spent = free.rounds[0].total_bytes + 1
    limit = {"total_bytes": f"bytes: {spent}", "images": f"times: {spent / (64 * 96) + 1e-6}"}[kind]
    plan = fl("federation.rounds=3", "evaluation.held_out=0.2", f"budget={{kind: {kind}, {limit}}}")
    result = simulate(plan, runs=tmp_path)
    assert (result.summary.rounds, result.summary.stopped, result.summary.cut_bytes) == (2, "budget", 0)


def test_pictures_show_it_as_a_line_for_there_is_no_cut(tmp_path):
    found = compare([
        simulate(make("federation.rounds=1", f"name={name}"), runs=tmp_path).folder
        for make, name in ((fl, "whole"), (small, "cut"))
    ]).grouped().groups  # fmt: skip
    for picture, at in ((curves, 0), (factors, 1)):
        lines = {line.get_label(): line for line in picture(found).axes[0].lines}
        one = found[0].runs[0]
        height = one.rounds[-1].eval_accuracy if at == 0 else one.summary.test_accuracy
        assert list(lines["whole"].get_ydata()) == [height, height]
    assert len(draw(found[:1], tmp_path / "alone.png")) == 4


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("compression.reducer={kind: adc, ratio: 0.1}", "compression.reducer: with fl nothing crosses"),
        ("compression.smashed.codec=float16", "compression.smashed: with fl nothing crosses"),
        ("compression.cut_gradient.lossless=none", "compression.cut_gradient: with fl nothing crosses"),
        ("budget={kind: cut_bytes, bytes: 1MB}", "budget.kind: with fl nothing crosses"),
        ("budget={kind: uncompressed_epochs, epochs: 1}", "budget.kind: with fl nothing crosses"),
        ("federation.order=arrival", "federation.order: with fl clients train at once"),
        ("training.server.clip=1.0", "training.server.clip: with fl clients train the whole model"),
    ],
)
def test_what_means_nothing_without_a_cut_is_refused(override, problem):
    with pytest.raises(ScenarioError) as caught:
        fl(override)
    assert problem in str(caught.value)


@pytest.mark.long
def test_a_deployment_opens_no_port_for_mini_batches(tmp_path):
    """The split port is another's, and nobody minds."""
    scenario = fl("federation.clients=2")
    with deployment(tmp_path) as here, socket.create_server(("127.0.0.1", here.split_port)):
        server = here.serve(scenario)
        clients = [here.join(number) for number in range(2)]
        assert server.end() == 0, server.text
        assert [client.end() for client in clients] == [0, 0]
        (folder,) = here.runs
    assert "mini-batches" not in server.text
    expected = plain_fedavg(scenario)
    for name, tensor in newest(folder).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
