"""BottleNet++: trained halves in the model, in every mode, on the wire and in checkpoints."""

import json

import pytest
import torch
from helpers import PLAIN, small, table
from models import newest, whole_model
from safetensors.torch import load_file
from torch import nn

from splitfed import estimate, simulate
from splitfed.clients.worker import Worker
from splitfed.compression.expect import Geometry
from splitfed.compression.reducers.base import View
from splitfed.compression.reducers.settings import BottleneckConfig
from splitfed.compression.reducers.trained.bottleneck import Bottleneck
from splitfed.errors import ModelError, ScenarioError, WireError
from splitfed.seeds import Key
from splitfed.server.back.pools import POOLS
from splitfed.split.assembly import assemble, check_model
from splitfed.testing import PLAIN as PLAIN_PACKING
from splitfed.testing import arrive, check_reducer, cut_for, send
from splitfed.wire.frame import pack

GEOMETRY = Geometry(batch=6, tokens=5, width=12, prefix=1, classes=4)
REDUCER = "compression.reducer={kind: bottleneck, width: 6, hidden: 10}"
# Of the small scenario, whose model is 16 wide: 16 to 10 to 6, and back.
ENCODER = 17 * 10 + 11 * 6
EXACT = [*PLAIN, "compression.parts.lossless=none"]


def halves(dtype=torch.float64):
    one = Bottleneck(4, 7).halves(GEOMETRY, Key(3))
    return one.encoder.to(dtype), one.decoder.to(dtype)


def by_hand(layers, x):
    """Two linear layers with ReLU between them, from the formula."""
    w1, b1, w2, b2 = layers.state_dict().values()
    return torch.relu(x @ w1.T + b1) @ w2.T + b2


def test_layers_are_those_of_the_formula():
    encoder, decoder = halves()
    x = torch.randn(3, 5, 12, dtype=torch.float64, generator=Key(0).generator())
    plan = Bottleneck(4, 7).plan(View(x, 1, lambda: x, encoder), Key(0))
    smashed = plan.reduce(x)
    assert smashed.shape == (3, 5, 4)
    torch.testing.assert_close(smashed, by_hand(encoder, x))
    restored = Bottleneck(4, 7).restore(smashed, {}, {}, decoder)
    torch.testing.assert_close(restored, by_hand(decoder, by_hand(encoder, x)))
    labels = torch.tensor([1, 0, 3])
    assert torch.equal(plan.targets(labels, 4), labels)


def test_weights_follow_the_key_alone():
    torch.manual_seed(1)
    one = Bottleneck(4).halves(GEOMETRY, Key(3))
    before = torch.get_rng_state()
    two, other = Bottleneck(4).halves(GEOMETRY, Key(3)), Bottleneck(4).halves(GEOMETRY, Key(4))
    assert torch.equal(before, torch.get_rng_state())
    for part in ("encoder", "decoder"):
        states = [getattr(h, part).state_dict() for h in (one, two, other)]
        assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
        assert not any(torch.equal(states[0][n], states[2][n]) for n in states[0])
        weight = states[0]["0.weight"]
        bound = weight.shape[1] ** -0.5
        assert 0.8 * bound < weight.abs().max() <= bound
    assert one.encoder[0].weight.shape == (8, 12)  # halfway between 12 and 4
    assert one.decoder[0].weight.shape == (8, 4)


def test_client_gradient_is_that_of_the_whole():
    """The gradient that crosses, taken through the encoder into the front, is autograd's of the composition."""
    generator = Key(5).generator()
    encoder, decoder = halves()
    front, back = (nn.Linear(i, o).double() for i, o in ((9, 12), (12, 4)))
    images = torch.randn(6, 5, 9, dtype=torch.float64, generator=generator)
    labels = torch.randint(4, (6,), generator=generator)
    modules = (front, encoder, decoder, back)

    def loss(activations):
        return nn.functional.cross_entropy(back(activations).mean(1), labels)

    loss(decoder(encoder(front(images)))).backward()
    whole = [[p.grad.clone() for p in m.parameters()] for m in modules]
    for module in modules:
        module.zero_grad()

    reducer = Bottleneck(4, 7)
    activations = front(images)
    plan = reducer.plan(View(activations.detach(), 1, lambda: images, encoder), Key(0))
    smashed = plan.reduce(activations)
    arrived = smashed.detach().requires_grad_()
    loss(reducer.restore(arrived, plan.side, plan.meta, decoder)).backward()
    assert arrived.grad.shape == (6, 5, 4)
    smashed.backward(arrived.grad)
    for module, expected in zip(modules, whole, strict=True):
        for parameter, gradient in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


def test_bytes_of_a_step():
    encoder, _ = halves(torch.float32)
    cut = cut_for({"kind": "bottleneck", "width": 4, "hidden": 7}, GEOMETRY)
    x = torch.randn(6, 5, 12, generator=Key(0).generator())
    plan = cut.reducer.plan(View(x, 1, lambda: x, encoder), Key(0))
    packed, batch = send(cut, plan, x, torch.arange(6) % 4)
    sizes = cut.sizes(packed, 6)
    assert (sizes["smashed"].raw, sizes["smashed"].sent) == (4 * 6 * 5 * 12, 4 * 6 * 5 * 4)
    assert torch.equal(batch.smashed, plan.reduce(x))
    down = cut.pack_gradient(batch.frame, torch.zeros_like(batch.smashed), 1.0, Key(0))
    assert cut.sizes(down, 6)["cut_gradient"].sent == 4 * 6 * 5 * 4


@pytest.mark.parametrize("shape", [(6, 5, 5), (6, 5, 12), (6, 4, 4), (7, 5, 4), (30, 4)])
def test_other_shapes_are_refused(shape):
    cut = cut_for({"kind": "bottleneck", "width": 4}, GEOMETRY)
    other = {"smashed": torch.zeros(shape), "targets": torch.zeros(shape[0], dtype=torch.int64)}
    packets = cut.encode(other, Key(0), "test")
    with pytest.raises(WireError):
        arrive(cut, pack("step", 1, 0, 1, packets, {"examples": 6}))


def test_as_many_targets_as_samples():
    cut = cut_for({"kind": "bottleneck", "width": 4}, GEOMETRY)
    packets = cut.encode({"smashed": torch.zeros(6, 5, 4), "targets": torch.zeros(5, dtype=torch.int64)}, Key(0), "")
    with pytest.raises(WireError, match="5 targets"):
        arrive(cut, pack("step", 1, 0, 1, packets, {"examples": 6}))


@pytest.mark.parametrize("mode", ["sfl-v1", "sfl-v2"])
def test_one_client_equals_whole_model(mode, tmp_path):
    scenario = small(*EXACT, REDUCER, "federation.clients=1", f"federation.mode={mode}")
    torch.set_num_threads(1)
    found, expected = newest(simulate(scenario, runs=tmp_path).folder), whole_model(scenario)
    assert found.keys() == expected.keys() >= {"encoder.0.weight", "decoder.2.bias"}
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("mode", ["sfl-v1", "sfl-v2"])
def test_parts_are_averaged_as_fronts_and_backs_are(mode, tmp_path, monkeypatch):
    """By hand, from what each client trained: means by examples. In sfl-v2 the one decoder is what the last left."""
    encoders, decoders, train = [], [], Worker.train

    def recorded(self, *args):
        trained = train(self, *args)
        encoders.append(({n: t.double() for n, t in trained.weights.items() if "coder" in n}, trained.examples))
        return trained

    pool = POOLS[mode]
    commit = pool.commit

    def committed(self, client, trainer, examples):
        weights = {n: t.double() for n, t in trainer.back.state_dict().items() if "coder" in n}
        decoders.append((weights, examples))
        commit(self, client, trainer, examples)

    monkeypatch.setattr(Worker, "train", recorded)
    monkeypatch.setattr(pool, "commit", committed)
    uneven = "data.partition={kind: dirichlet, alpha: 1.0}"
    model = newest(simulate(small(*EXACT, REDUCER, "federation.rounds=1", f"federation.mode={mode}", uneven),
                            runs=tmp_path).folder)  # fmt: skip
    assert len({examples for _, examples in encoders}) > 1
    assert len(encoders[0][0]) == len(decoders[0][0]) == 4
    if mode == "sfl-v2":
        decoders = decoders[-1:]
    for trained in (encoders, decoders):
        for name in trained[0][0]:
            mean = sum(w[name] * n for w, n in trained) / sum(n for _, n in trained)
            assert torch.equal(model[name], mean.float()), name
    first, second = (w["encoder.0.weight"] for w, _ in encoders[:2])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("mode", ["sfl-v1", "sfl-v2"])
def test_ledger_counts_the_encoder_as_parts(mode, tmp_path):
    scenario = small(*EXACT, REDUCER, f"federation.mode={mode}")
    result = simulate(scenario, runs=tmp_path)
    rows = [row for row in table(result.folder / "ledger.csv") if row["role"] == "parts"]
    assert {row["plane"] for row in rows} == {"control"}
    assert sorted((row["round"], row["client"], row["direction"]) for row in rows) == [
        (number, client, direction) for number in "12" for client in "012" for direction in ("down", "up")
    ]
    for row in rows:
        sizes = [int(row[f"{stage}_bytes"]) for stage in ("raw", "reduced", "coded", "sent")]
        assert sizes == [0, 4 * ENCODER, 4 * ENCODER, 4 * ENCODER]
    front, *_ = assemble(scenario, 10)
    numbers = sum(p.numel() for n, p in front.named_parameters() if not n.startswith("encoder."))
    assert result.totals.select(role="front_weights").raw == 12 * 4 * numbers
    smashed = result.totals.select(role="smashed")
    assert smashed.sent * 16 == smashed.raw * 6
    assert estimate(scenario).round.select(role="parts").sent * 2 == result.totals.select(role="parts").sent


def test_parts_have_a_packing_of_their_own(tmp_path):
    scenario = small(*EXACT, REDUCER, "compression.parts.codec=float16", "federation.rounds=1")
    totals = simulate(scenario, runs=tmp_path).totals
    assert totals.select(role="parts").coded == 6 * 2 * ENCODER
    assert totals.select(role="front_weights").coded == totals.select(role="front_weights").raw


@pytest.mark.parametrize("mode", ["sfl-v1", "sfl-v2"])
def test_resumed_equals_uninterrupted(mode, tmp_path):
    from splitfed.run.observer import Observer

    class Impatient(Observer):
        def progress(self, round, share):
            if round == 3 and share > 0.5:
                raise KeyboardInterrupt

    scenario = small(
        REDUCER, "federation.rounds=4", f"federation.mode={mode}", "federation.cohort=2", "training.client_state=keep"
    )
    with pytest.raises(KeyboardInterrupt):
        simulate(scenario, runs=tmp_path / "halted", observers=(Impatient(),))
    (folder,) = (tmp_path / "halted").iterdir()
    simulate(resume=folder)
    whole = simulate(scenario, runs=tmp_path / "whole").folder
    found, expected = newest(folder), newest(whole)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert (folder / "ledger.csv").read_text() == (whole / "ledger.csv").read_text()
    accuracies = [json.loads((f / "summary.json").read_text())["test_accuracy"] for f in (folder, whole)]
    assert accuracies[0] == accuracies[1]


def test_kept_optimisers_hold_the_encoder(tmp_path):
    folder = simulate(small(REDUCER, "training.client_state=keep", "federation.rounds=1"), runs=tmp_path).folder
    front, back, _ = assemble(small(REDUCER), 10)
    kept = load_file(folder / "clients/000000/000001.safetensors")
    assert sum(name.endswith("exp_avg") for name in kept) == len(list(front.parameters()))
    (checkpoint,) = (folder / "checkpoints").glob("round-000001")
    optimiser = load_file(checkpoint / "optimiser.safetensors")
    assert sum(name.endswith("exp_avg") for name in optimiser) == len(list(back.parameters()))


def test_bfloat16(tmp_path):
    summary = simulate(small(REDUCER, "training.precision=bfloat16", "federation.rounds=1"), runs=tmp_path).summary
    assert 0 <= summary.test_accuracy <= 1


def test_a_width_that_saves_nothing_is_refused(tmp_path):
    for width in (16, 17):
        scenario = small(f"compression.reducer={{kind: bottleneck, width: {width}}}")
        for refused in (check_model, estimate, lambda s: simulate(s, runs=tmp_path)):
            with pytest.raises(ModelError, match=r"^compression\.reducer \(bottleneck\): width: .* lower it"):
                refused(scenario)
    assert not list(tmp_path.iterdir())
    check_model(small("compression.reducer={kind: bottleneck, width: 15}"))


@pytest.mark.parametrize(
    ("settings", "why"),
    [("{kind: bottleneck}", "width: is missing"), ("{kind: bottleneck, width: 0}", "at least 1"),
     ("{kind: bottleneck, width: 4, hidden: 0}", "hidden"), ("{kind: bottleneck, widht: 4}", "did you mean 'width'")],
)  # fmt: skip
def test_bad_settings_are_refused(settings, why):
    with pytest.raises(ScenarioError, match=why):
        small(f"compression.reducer={settings}")


def test_the_contract():
    check_reducer(BottleneckConfig(width=3))


def test_config_round_trips():
    scenario = small(REDUCER)
    assert scenario.compression.reducer == BottleneckConfig(width=6, hidden=10)
    assert type(scenario).parse(scenario.to_yaml()) == scenario
    assert scenario.compression.parts.model_dump() != PLAIN_PACKING  # zstd by default, as for other roles
