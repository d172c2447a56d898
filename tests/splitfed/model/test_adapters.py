"""Adapters: only what is trained travels, the rest reaches each client once, and an export is timm's plain model."""

import importlib.util
from pathlib import Path

import pytest
import torch
from helpers import small, table
from models import newest
from safetensors.torch import load_file, save_file

from splitfed import Scenario, export, simulate
from splitfed.errors import ModelError, RunError, ScenarioError
from splitfed.model.adaptive.attention import ClsAttention
from splitfed.model.build import timm
from splitfed.model.parts import Parts
from splitfed.server.cohort.attendance import Attendance
from splitfed.split.assembly import assemble
from splitfed.split.mistakes import of_the_model

LORA = "model.adapter={kind: lora, rank: 3, alpha: 5, targets: [qkv, proj, fc1]}"
NORMS = "model.adapter=norms"
PLAIN = "compression.front_weights.lossless=none"
BOTH = pytest.mark.parametrize("adapter", [NORMS, LORA], ids=["norms", "lora"])


def run(tmp_path: Path, *overrides: str) -> Path:
    return simulate(small(PLAIN, *overrides), runs=tmp_path, observers=()).folder


def weights_sent(folder: Path) -> dict[tuple[str, str, str], int]:
    rows = table(folder / "ledger.csv")
    return {
        (row["round"], row["client"], row["direction"]): int(row["sent_bytes"])
        for row in rows if row["role"] == "front_weights"
    }  # fmt: skip


def trained_model(adapter: str, folder: Path) -> Parts:
    """Build the model of a run's last checkpoint, additions and all."""
    parts = assemble(small(adapter), 10, pretrained=False)
    state = newest(folder)
    for part in parts:
        part.load_state_dict({name: state[name] for name in part.state_dict()})
    return Parts(*(part.eval() for part in parts))


def numbers(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


@BOTH
def test_only_what_is_trained_travels_and_the_rest_once(adapter, tmp_path):
    front = assemble(small(adapter), 10).front
    trained = {name: p for name, p in front.named_parameters() if p.requires_grad}
    assert front.travelling().keys() == trained.keys()
    assert all("norm" in name or "lora" in name for name in trained)
    assert front.frozen().keys() | trained.keys() == front.state_dict().keys()
    each, once = 4 * numbers(trained), 4 * numbers(front.frozen())
    assert each < once / 5
    folder, seen = run(tmp_path, adapter, "federation.rounds=3", "federation.cohort=2"), set()
    for (_, client, direction), sent in weights_sent(folder).items():
        first = direction == "down" and client not in seen
        assert sent == each + (once if first else 0)
        seen |= {client} if first else set()
    assert len(seen) == 3
    rounds = sorted((folder / "checkpoints").iterdir())
    before, after = (load_file(path / "model.safetensors") for path in (rounds[0], rounds[-1]))
    assert all(before[name].equal(after[name]) for name in front.frozen())
    assert all(tensor.equal(after[name]) for name, tensor in front.frozen().items())
    (optimised,) = small(adapter).training.client.optimiser_for(front).param_groups
    assert [id(p) for p in optimised["params"]] == [id(p) for p in trained.values()]
    assert any(not before[name].equal(after[name]) for name in trained)
    assert any(not before[name].equal(after[name]) for name in before.keys() - front.state_dict().keys())


@BOTH
def test_an_export_is_the_plain_model_of_timm(adapter, tmp_path):
    folder = run(tmp_path, adapter, "federation.rounds=2", "training.client.optimiser.lr=1e-2")
    export(folder, tmp_path / "model.safetensors")
    plain = timm.create_model(
        "vit_tiny_patch16_224", num_classes=10, img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2,
        checkpoint_path=str(tmp_path / "model.safetensors"),
    ).eval()  # fmt: skip
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = trained_model(adapter, folder)
    with torch.no_grad():
        assert (plain(images) - parts.whole()(images)).abs().max() < 1e-5
        if adapter == LORA:  # and the additions do something
            assert all(p.abs().max() > 0 for n, p in parts.front.named_parameters() if "lora_B" in n)


def test_attention_is_read_with_the_additions(tmp_path):
    folder = run(tmp_path, LORA, "federation.rounds=1", "training.client.optimiser.lr=1e-2")
    front = trained_model(LORA, folder).front
    export(folder, tmp_path / "model.safetensors")
    plain = assemble(small(), 10).front.eval()
    plain.load_state_dict(
        {n: t for n, t in load_file(tmp_path / "model.safetensors").items() if n in plain.state_dict()}
    )
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for one in (front, plain):
        attention = ClsAttention(one)
        with torch.no_grad():
            one(images)
        found.append(attention.read())
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_additions_start_by_the_seed_alone():
    state = torch.get_rng_state()
    one, other, third = (assemble(small(LORA, f"seed={seed}"), 10).front.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    (name,) = [name for name in one if name.endswith("qkv.lora_A.default.weight")]
    assert not torch.equal(one[name], third[name])


def test_both_ends_hold_the_same_frozen_weights_after_a_lossy_codec(tmp_path):
    folder = run(tmp_path, NORMS, "compression.front_weights.codec={kind: uniform, bits: 4}", "federation.rounds=1")
    kept, state = load_file(folder / "clients/frozen.safetensors"), newest(folder)
    assert all(tensor.equal(state[name]) for name, tensor in kept.items())
    exact = assemble(small(NORMS), 10).front.frozen()
    assert any(not tensor.equal(exact[name]) for name, tensor in kept.items())


@pytest.mark.parametrize("mode", ["sl", "sfl-v1", "sfl-v2"])
def test_an_interrupted_run_goes_on_bit_for_bit(mode, tmp_path, monkeypatch):
    from splitfed.server.model import Model

    delta = "compression.front_weights.delta={kind: uniform, bits: 4}"
    plan = small(NORMS, f"federation.mode={mode}", "federation.rounds=3", "federation.cohort=2",
                 "training.client_state=keep", "data.limit=48", delta)  # fmt: skip
    whole = simulate(plan, runs=tmp_path / "whole", observers=()).folder
    validate, calls = Model.validate, []

    def interrupted(self):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            simulate(plan, runs=tmp_path / "cut", observers=())
    (folder,) = (tmp_path / "cut").iterdir()
    simulate(resume=folder, observers=())
    assert (folder / "ledger.csv").read_text() == (whole / "ledger.csv").read_text()
    assert all(tensor.equal(newest(folder)[name]) for name, tensor in newest(whole).items())


def test_a_client_that_lost_them_is_sent_the_frozen_weights_again(tmp_path, monkeypatch):
    sample, seen = Attendance.sample, []

    def losing(self, round, there):
        seen.append(round)
        if seen == [1, 2]:
            (folder,) = tmp_path.iterdir()
            (folder / "clients/frozen.safetensors").write_bytes(b"torn")
        return sample(self, round, there)

    monkeypatch.setattr(Attendance, "sample", losing)
    folder = run(tmp_path, NORMS, "federation.clients=1", "federation.rounds=3")
    assert seen == [1, 2, 2, 3]
    sent = weights_sent(folder)
    assert sent["1", "0", "down"] == sent["2", "0", "down"] > 5 * sent["3", "0", "down"]


def test_other_frozen_weights_than_the_run_began_with_are_refused(tmp_path):
    folder = run(tmp_path, NORMS, "federation.rounds=1")
    (folder / "summary.json").unlink()
    (checkpoint,) = (folder / "checkpoints").glob("round-000001")
    state = load_file(checkpoint / "model.safetensors")
    state["pos_embed"] += 1
    save_file(state, checkpoint / "model.safetensors")
    with pytest.raises(RunError, match="it is not what was written"):
        simulate(resume=folder, observers=())


def test_what_cannot_be_is_refused_in_a_line(monkeypatch):
    for adapter, text in {
        "lorra": "did you mean 'lora'",
        "{kind: lora, rank: 0}": "rank: must be greater than 0",
        "{kind: lora, targets: []}": "targets",
        "{kind: lora, targets: [kv]}": "'qkv', 'proj', 'fc1' or 'fc2'",
        "{kind: norms, rank: 2}": "it belongs to 'lora'",
    }.items():
        with pytest.raises(ScenarioError, match=text):
            small(f"model.adapter={adapter}")
    find = importlib.util.find_spec
    monkeypatch.setattr("splitfed.model.adapters.lora.find_spec", lambda name: None if name == "peft" else find(name))
    ((key, why),) = of_the_model(small(LORA))
    assert key == "model.adapter"
    assert "pip install 'splitfed[adapters]'" in why
    with pytest.raises(ModelError, match=r"pip install 'splitfed\[adapters\]'"):
        assemble(small(LORA), 10)
    assert not list(of_the_model(small(NORMS)))
    assert Scenario.parse(small(LORA).to_yaml()) == small(LORA)


def test_who_evaluates_first_is_sent_the_frozen_weights_then(tmp_path):
    folder = run(tmp_path, NORMS, "federation.cohort=1", "federation.rounds=3", "evaluation.held_out=0.2")
    once = 4 * numbers(assemble(small(NORMS), 10).front.frozen())
    rows = [row for row in table(folder / "ledger.csv") if (row["role"], row["direction"]) == ("front_weights", "down")]
    with_all = [row["client"] for row in rows if int(row["sent_bytes"]) > once]
    assert sorted(with_all) == ["0", "1", "2"]
    assert len(rows) == 3 + 9
