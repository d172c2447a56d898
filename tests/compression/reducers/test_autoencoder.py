"""AE-PSL: the autoencoder, its alignment on public images and on each client's, and training through it, frozen."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from helpers import PLAIN, small, table
from models import newest, whole_model
from safetensors.torch import load_file, save_file
from torch import nn

from splitfed import estimate, simulate
from splitfed.clients.state import ClientState
from splitfed.clients.worker import Worker
from splitfed.compression.expect import Geometry
from splitfed.compression.reducers.base import View
from splitfed.compression.reducers.trained.autoencoder import Ae, read
from splitfed.compression.reducers.trained.layers import Halves
from splitfed.data.batches import Batch
from splitfed.errors import DataError, ModelError, RunError, ScenarioError, WireError
from splitfed.run.observer import Observer
from splitfed.seeds import Key
from splitfed.split.assembly import assemble, check_model
from splitfed.split.autoencoder import Aligner, Public, align
from splitfed.testing import PLAIN as PLAIN_PACKING
from splitfed.testing import arrive, check_reducer, cut_for, send
from splitfed.wire.frame import pack
from splitfed.wire.messages import AlignOrder, Weights

GEOMETRY = Geometry(batch=6, tokens=7, width=12, prefix=2, classes=4)
EXACT = [*PLAIN, "compression.parts.lossless=none"]
# Of the small scenario, 16 wide with 1 + 4 tokens, at width 6: two layers of 16 and 6, and back.
ENCODER, DECODER = 17 * 16 + 17 * 6, 7 * 16 + 17 * 16


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The file of an autoencoder for the small scenario's front."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("ae") / "ae.safetensors"
    align(small("compression.reducer={kind: ae, width: 6, lr: 1e-2}"), Public("digits", limit=200), path, steps=150)
    return path


def scenario(weights, *overrides, epochs=1):
    reducer = f"compression.reducer={{kind: ae, width: 6, weights: {weights}, warm_up_epochs: {epochs}}}"
    return small(reducer, *EXACT, *overrides)


def halves(width=5, dtype=torch.float64):
    one = Ae(width).halves(GEOMETRY, Key(3))
    return one.encoder.to(dtype), one.decoder.to(dtype)


@pytest.mark.parametrize("width", [1, 5, 6, 11])
def test_prefix_tokens_cross_as_they_are_and_others_as_codes(width):
    encoder, decoder = halves(width)
    x = torch.randn(3, 7, 12, dtype=torch.float64, generator=Key(0).generator())
    plan = Ae(width).plan(View(x, 2, lambda: x, encoder), Key(0))
    smashed = plan.reduce(x)
    rows = -(-12 // width)
    assert smashed.shape == (3, 2 * rows + 5, width)
    for token in range(2):
        flat = smashed[:, token * rows : (token + 1) * rows].flatten(1)
        assert torch.equal(flat[:, :12], x[:, token])
        assert not flat[:, 12:].any()
    w1, b1, w2, b2 = encoder.layers.state_dict().values()
    assert (w1.shape, w2.shape) == ((12, 12), (width, 12))
    torch.testing.assert_close(smashed[:, 2 * rows :], torch.relu(x[:, 2:] @ w1.T + b1) @ w2.T + b2)
    restored = Ae(width).restore(smashed, {}, {}, decoder)
    assert torch.equal(restored[:, :2], x[:, :2])
    w3, b3, w4, b4 = decoder.layers.state_dict().values()
    torch.testing.assert_close(restored[:, 2:], torch.relu(smashed[:, 2 * rows :] @ w3.T + b3) @ w4.T + b4)


def test_client_gradient_is_that_of_the_whole():
    generator = Key(5).generator()
    encoder, decoder = halves()
    for half in (encoder, decoder):
        half.requires_grad_(False)
    front, back = (nn.Linear(i, o).double() for i, o in ((9, 12), (12, 4)))
    images = torch.randn(6, 7, 9, dtype=torch.float64, generator=generator)
    labels = torch.randint(4, (6,), generator=generator)

    def loss(activations):
        return nn.functional.cross_entropy(back(activations).mean(1), labels)

    loss(decoder(encoder(front(images)))).backward()
    whole = [p.grad.clone() for m in (front, back) for p in m.parameters()]
    front.zero_grad()
    back.zero_grad()
    activations = front(images)
    plan = Ae(5).plan(View(activations.detach(), 2, lambda: images, encoder), Key(0))
    smashed = plan.reduce(activations)
    arrived = smashed.detach().requires_grad_()
    loss(Ae(5).restore(arrived, plan.side, plan.meta, decoder)).backward()
    smashed.backward(arrived.grad)
    for parameter, gradient in zip([*front.parameters(), *back.parameters()], whole, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)
    assert all(p.grad is None for m in (encoder, decoder) for p in m.parameters())


def test_bytes_of_a_step_and_other_shapes():
    encoder, _ = halves(dtype=torch.float32)
    cut = cut_for({"kind": "ae", "width": 5}, GEOMETRY)
    x = torch.randn(6, 7, 12, generator=Key(0).generator())
    plan = cut.reducer.plan(View(x, 2, lambda: x, encoder), Key(0))
    packed, batch = send(cut, plan, x, torch.arange(6) % 4)
    rows = 2 * 3 + 5  # each of two prefix tokens of 12 numbers takes 3 rows of 5, of which 3 numbers are zeros
    assert cut.sizes(packed, 6)["smashed"].sent == 4 * 6 * rows * 5
    down = cut.pack_gradient(batch.frame, torch.zeros_like(batch.smashed), 1.0, Key(0))
    assert cut.sizes(down, 6)["cut_gradient"].sent == 4 * 6 * rows * 5
    for shape in ((6, rows - 1, 5), (6, rows, 6), (6, 7, 12), (7, rows, 5)):
        other = {"smashed": torch.zeros(shape), "targets": torch.zeros(shape[0], dtype=torch.int64)}
        with pytest.raises(WireError):
            arrive(cut, pack("step", 1, 0, 1, cut.encode(other, Key(0), "test"), {"examples": 6}))


class Given(nn.Module):
    """A front whose activations are given: what Aligner takes from one."""

    num_prefix_tokens = 1

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return images


def test_fitting_an_encoder_reaches_the_linear_regression():
    """To a fixed linear decoder the best linear encoder is its pseudo-inverse, known without training."""
    generator = Key(1).generator()
    decoder = nn.Linear(3, 8, bias=False)
    nn.init.normal_(decoder.weight, std=0.5, generator=generator)
    decoder.requires_grad_(False)
    fixed = decoder.weight.clone()
    encoder = nn.Linear(8, 3, bias=False).requires_grad_(False)
    data = [Batch(torch.randn(32, 5, 8, generator=generator), *torch.zeros(3, 32)) for _ in range(4)]
    aligner = Aligner(Given(), encoder, decoder, 0.01, "float32", both=False)
    before = aligner.error(data)
    aligner.fit(batch for _ in range(150) for batch in data)
    x = torch.cat([batch.images for batch in data])[:, 1:].double()
    projected = x @ torch.linalg.pinv(fixed.double()).T @ fixed.double().T
    best = float((x - projected).square().sum() / x.square().sum())
    assert best <= aligner.error(data) + 1e-6  # which is found in float32
    assert aligner.error(data) < min(1.01 * best, before)
    assert torch.equal(decoder.weight, fixed)
    assert not any(p.requires_grad or p.grad is not None for p in (*encoder.parameters(), *decoder.parameters()))


def test_general_alignment(weights, tmp_path):
    plan, again = small("compression.reducer={kind: ae, width: 6, lr: 1e-2}"), tmp_path / "again.safetensors"
    torch.set_num_threads(1)
    found = align(plan, Public("digits", limit=200), again, steps=150)
    assert (found.images, found.held_out, found.steps) == (180, 20, 150)
    assert found.after < 0.2 * found.before  # a random autoencoder's
    assert again.read_bytes() == weights.read_bytes()
    untrained = align(plan, Public("digits", limit=200), tmp_path / "none.safetensors", steps=0)
    assert untrained.after == untrained.before == found.before
    kept, tensors = read(weights)
    assert (kept.model, kept.cut, kept.image_size, kept.features, kept.width) == ("vit_tiny_patch16_224", 1, 8, 16, 6)
    assert sum(t.numel() for t in tensors.values()) == ENCODER + DECODER


def test_images_without_labels(tmp_path):
    from PIL import Image

    for number in range(5):
        Image.new("RGB", (9, 8), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    plan = small("compression.reducer={kind: ae, width: 6}")
    assert align(plan, Public(str(tmp_path)), tmp_path / "ae.safetensors", steps=1).images == 4


def test_what_cannot_be_aligned(tmp_path):
    plan, out = small("compression.reducer={kind: ae, width: 6}"), tmp_path / "ae.safetensors"
    for refused, public, path, why in (
        (small(), "digits", out, "--set 'compression.reducer={kind: ae"),
        (small("compression.reducer={kind: ae, width: 16}"), "digits", out, "lower it"),
        (plan, "digits", tmp_path / "ae.pt", "must end in"),
        (plan, "digits", tmp_path / "nowhere/ae.safetensors", "there is no folder"),
        (plan, str(tmp_path / "none"), out, "^--public: "),
    ):
        with pytest.raises((RunError, DataError), match=why):
            align(refused, Public(public), path, steps=1)
    assert not out.exists()


def test_weights_of_another_model_are_refused(weights, tmp_path):
    check_model(scenario(weights))
    wrong = tmp_path / "wrong.safetensors"
    save_file({"a": torch.zeros(1)}, wrong)
    (tmp_path / "torn.safetensors").write_bytes(weights.read_bytes()[:100])
    for other, why in (
        (small("compression.reducer={kind: ae, width: 6}"), "is missing"),
        (scenario(tmp_path / "none.safetensors"), "there is no file"),
        (scenario(tmp_path / "torn.safetensors"), "cannot be read"),
        (scenario(wrong), "is no autoencoder"),
        (scenario(weights, "model.cut=2"), "cut after block 1 .* not for .* cut after block 2"),
        (scenario(weights, "compression.reducer.width=5"), "not for .* width 5"),
        (scenario(weights, "model.image_size=12"), "at 8 pixels"),
        (scenario(weights, "model.args.embed_dim=32"), r"not for .* \(32 features\)"),
    ):
        for refused in (check_model, estimate, lambda s: simulate(s, runs=tmp_path / "runs")):
            with pytest.raises(ModelError, match=rf"compression\.reducer \(ae\): weights: .*{why}.*splitfed align"):
                refused(other)
    with pytest.raises(ScenarioError, match="width: is missing"):
        small("compression.reducer={kind: ae}")


@pytest.mark.parametrize("mode", ["sfl-v1", "sfl-v2"])
def test_one_client_equals_whole_model(mode, weights, tmp_path):
    """The model trained in one piece, through the autoencoder of the file, frozen."""
    plan = scenario(weights, "federation.clients=1", f"federation.mode={mode}", epochs=0)
    torch.set_num_threads(1)
    found, expected = newest(simulate(plan, runs=tmp_path).folder), whole_model(plan)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    _, kept = read(weights)
    assert all(torch.equal(found[name], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize("mode", ["sfl-v1", "sfl-v2"])
def test_client_alignment(mode, weights, tmp_path, monkeypatch):
    """Two of three clients in a round: the third, who comes later, fits its encoder alone."""
    seen, original = [], Worker.align

    def recorded(self, client, round, received, both, states):
        received = {name: tensor.clone() for name, tensor in received.items()}
        decoder, examples = original(self, client, round, received, both, states)
        copies = {name: tensor.clone() for name, tensor in decoder.items()}
        seen.append((round, client, both, received, copies, examples))
        return decoder, examples

    monkeypatch.setattr(Worker, "align", recorded)
    plan = scenario(weights, "federation.cohort=2", "federation.rounds=5", f"federation.mode={mode}",
                    "data.partition={kind: dirichlet, alpha: 1.0}", "checkpoints.keep=9")  # fmt: skip
    folder = simulate(plan, runs=tmp_path).folder
    _, general = read(weights)

    assert sorted(client for _, client, *_ in seen) == [0, 1, 2]
    first, later = [s for s in seen if s[0] == 1], [s for s in seen if s[0] > 1]
    assert [both for _, _, both, *_ in first + later] == [True, True, False]
    total = sum(examples for *_, examples in first)
    model = newest(folder)
    for name, start in general.items():
        if name.startswith("decoder."):
            mean = sum(decoder[name].double() * examples for *_, decoder, examples in first) / total
            assert torch.equal(model[name], mean.float()), name
            assert not torch.equal(model[name], start)
            assert torch.equal(later[0][3][name], model[name])
            assert torch.equal(later[0][4][name], model[name])  # as it was
        else:
            assert torch.equal(model[name], start), name  # the server's own stays the general one
            assert all(torch.equal(received[name], start) for _, _, _, received, *_ in seen)
    front, *_ = assemble(plan, 10, pretrained=False)
    numbers = sum(t.numel() for t in front.travelling().values())
    once = estimate(plan).once
    assert once.select(role="parts").sent == 4 * (3 * (ENCODER + DECODER) + 2 * DECODER)
    assert once.select(role="front_weights").sent == 4 * 3 * numbers
    # Frozen while front and back are trained.
    checkpoints = [load_file(p / "model.safetensors") for p in sorted((folder / "checkpoints").iterdir())][1:]
    assert all(torch.equal(c[n], model[n]) for c in checkpoints for n in general)
    assert not torch.equal(checkpoints[0]["blocks.0.attn.qkv.weight"], model["blocks.0.attn.qkv.weight"])

    encoders = [ClientState(folder / "clients", client).encoder() for client in range(3)]
    tensors = [e["layers.0.weight"] for e in encoders] + [general["encoder.layers.0.weight"]]
    assert not any(torch.equal(a, b) for i, a in enumerate(tensors) for b in tensors[:i])

    rows = [r for r in table(folder / "ledger.csv") if r["role"] == "parts"]
    found = sorted((int(r["round"]), int(r["client"]), r["direction"], int(r["sent_bytes"])) for r in rows)
    both_ways = [(1, c, d, n) for _, c, *_ in first
                 for d, n in (("down", 4 * (ENCODER + DECODER)), ("up", 4 * DECODER))]  # fmt: skip
    assert found == sorted([*both_ways, (later[0][0], later[0][1], "down", 4 * (ENCODER + DECODER))])
    assert {(r["plane"], r["raw_bytes"]) for r in rows} == {("control", "0")}
    sent = [r for r in table(folder / "ledger.csv") if r["role"] == "front_weights"]
    assert sum(int(r["sent_bytes"]) for r in sent) == 4 * numbers * (5 * 2 * 2 + 3)
    assert sum(int(r["raw_bytes"]) for r in sent) == 4 * numbers * 5 * 2 * 2  # an uncompressed run aligns nobody


def test_fitting_helps_on_the_clients_own_images(weights, tmp_path, monkeypatch):
    errors, original = [], Aligner.fit

    def measured(self, batches, **how):
        batches = list(batches)
        before = self.error(batches)
        original(self, batches, **how)
        errors.append((before, self.error(batches)))

    monkeypatch.setattr(Aligner, "fit", measured)
    simulate(scenario(weights, "federation.rounds=1", epochs=5), runs=tmp_path)
    assert len(errors) == 3
    assert all(after < before for before, after in errors)


@pytest.mark.parametrize(("mode", "moment"), [("sfl-v1", 1), ("sfl-v2", 1), ("sfl-v1", 3), ("sfl-v2", 3)])
def test_resumed_equals_uninterrupted(mode, moment, weights, tmp_path):
    class Impatient(Observer):
        def progress(self, round, share):
            if round == moment and share > 0.5:
                raise KeyboardInterrupt

    plan = scenario(weights, "federation.cohort=2", "federation.rounds=4", f"federation.mode={mode}")
    whole = simulate(plan, runs=tmp_path / "whole").folder
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=tmp_path / "halted", observers=(Impatient(),))
    (folder,) = (tmp_path / "halted").iterdir()
    simulate(resume=folder)
    assert (folder / "ledger.csv").read_text() == (whole / "ledger.csv").read_text()
    found, expected = newest(folder), newest(whole)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    for client in range(3):
        kept = [ClientState(f / "clients", client).encoder() for f in (folder, whole)]
        assert all(torch.equal(kept[0][n], t) for n, t in kept[1].items())


def test_without_warm_up_all_use_the_general_autoencoder(weights, tmp_path):
    result = simulate(scenario(weights, "federation.rounds=1", epochs=0), runs=tmp_path)
    _, general = read(weights)
    for client in range(3):
        encoder = ClientState(result.folder / "clients", client).encoder()
        assert all(torch.equal(general[f"encoder.{name}"], tensor) for name, tensor in encoder.items())
    assert result.totals.select(role="parts", direction="up").sent == 0
    assert result.totals.select(role="parts", direction="down").sent == 3 * 4 * (ENCODER + DECODER)


def test_a_lost_encoder_is_told(weights, tmp_path):
    class Thief(Observer):
        def round(self, metrics, sent, finished):
            (folder,) = tmp_path.iterdir()
            for path in folder.glob("clients/*/encoder.safetensors"):
                path.unlink()

    with pytest.raises(RunError, match=r"encoder\.safetensors.* is lost .*start a new run"):
        simulate(scenario(weights), runs=tmp_path, observers=(Thief(),))


def test_a_client_that_cannot_be_aligned_sits_the_round_out(weights, tmp_path, monkeypatch):
    original = Worker.align

    def lying(self, client, round, received, both, states):
        decoder, examples = original(self, client, round, received, both, states)
        return decoder, examples + (client == 1 and round == 1)

    monkeypatch.setattr(Worker, "align", lying)
    folder = simulate(scenario(weights), runs=tmp_path).folder
    assert "client 1 was not aligned: reply refused: it counts" in (folder / "log.txt").read_text()
    assert [row["clients"] for row in table(folder / "metrics.csv")] == ["2", "3"]


@pytest.mark.parametrize(
    "config", [{}, {"server-round": 0, "both": True}, {"server-round": 1}, {"server-round": 1, "both": 1}]
)
def test_an_order_that_is_none(config):
    with pytest.raises(WireError):
        AlignOrder.read(RecordDict({"config": ConfigRecord(config)}))
    with pytest.raises(WireError):
        Weights.read(RecordDict({"config": ConfigRecord({"server-round": 1, "both": True}), "arrays": ArrayRecord()}))


def test_the_contract(weights):
    check_reducer(scenario(weights).compression.reducer)
    encoder, decoder = halves()
    with pytest.raises(ValueError, match="frozen"):
        Halves(encoder, decoder, owner="local", trained=True)
    assert not Halves(encoder, decoder, trained=False).encoder_travels
    assert Halves(encoder, decoder).encoder_travels


def test_config_round_trips(weights):
    plan = scenario(weights)
    assert type(plan).parse(plan.to_yaml()) == plan
    assert plan.compression.parts.model_dump()["lossless"]["kind"] == PLAIN_PACKING["lossless"]
