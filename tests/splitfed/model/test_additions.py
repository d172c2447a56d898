"""What bottlenecks and Hydra add, by their formulas, and what becomes of it in a model of timm."""

from pathlib import Path

import pytest
import torch
from helpers import DEEPER, small
from models import newest
from safetensors.torch import load_file
from torch.nn.functional import gelu, linear

from splitfed import export, simulate
from splitfed.errors import ModelError, ScenarioError
from splitfed.model.build import timm
from splitfed.model.parts import Parts
from splitfed.split.assembly import assemble
from splitfed.split.client_part import ClientPart
from splitfed.split.mistakes import of_the_model
from splitfed.split.weights.wire import WeightWire

ARGS = {"num_classes": 10, "img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}
BEHIND = "{kind: bottleneck, width: 6, form: sequential, after: [attn, mlp], scale: 0.5}"
SIDES = {
    "front": ["{kind: bottleneck, width: 7}", "{kind: hydra, rank: 2, scale: 0.5}", "norms", BEHIND],
    "back": ["{kind: bottleneck, width: 6, parts: 3, scale: 0.1}", "attention"],
    "both": ["{kind: hydra, parts: 2, targets: [qkv, proj, fc1, fc2]}", "{kind: lora, rank: 2}", "norms", "attention"],
}
WHOLE = ("federation.mode=fl", "training.server={}", "federation.rounds=3")  # parts may be on both sides
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def adapted(adapter: str, *more: str) -> Parts:
    return assemble(small(*DEEPER, *WHOLE, f"model.adapter={adapter}", *more), 10)


def shaken(parts: Parts) -> Parts:
    """Change all that is trained, and nothing else."""
    generator = torch.Generator().manual_seed(1)
    for parameter in (one for part in parts for one in part.parameters() if one.requires_grad):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return parts


def made(parts: Parts) -> torch.Tensor:
    with torch.no_grad():
        return parts.whole().eval()(IMAGES)


@pytest.mark.parametrize("on", SIDES)
def test_a_model_is_as_it_was_at_first_and_folded_as_it_is(on: str) -> None:
    plain, vit = adapted("none"), timm.create_model("vit_tiny_patch16_224", **ARGS)
    for kind in SIDES[on]:
        adapter = kind[:-1] + f", on: {on}}}" if kind.startswith("{") else f"{{kind: {kind}, on: {on}}}"
        settings, parts = small(*WHOLE, f"model.adapter={adapter}").model.adapter, adapted(adapter)
        assert made(parts).equal(made(plain)), adapter
        before = [{name: tensor.clone() for name, tensor in part.frozen().items()} for part in parts[:2]]
        moved = made(shaken(parts))
        assert (moved - made(plain)).abs().max() > 0.05
        for part, side, frozen in zip(parts[:2], ("front", "back"), before, strict=True):
            assert bool(frozen) == (on in (side, "both"))
            learns = {name for name, one in part.named_parameters() if one.requires_grad}
            assert learns == part.travelling().keys()
            assert learns | frozen.keys() == part.state_dict().keys()
            assert all(tensor.equal(part.state_dict()[name]) for name, tensor in frozen.items())
        assert parts.back.head.weight.requires_grad
        assert settings.folds(vit) == (kind != BEHIND)
        if settings.folds(vit):
            folded = timm.create_model("vit_tiny_patch16_224", **ARGS, **settings.args(vit)).eval()
            folded.load_state_dict(settings.merged({n: t for part in parts for n, t in part.state_dict().items()}))
            assert (folded(IMAGES) - moved).abs().max() < 1e-5, adapter


@pytest.mark.parametrize("more", [WHOLE, ("federation.labels=private", "model.tail=1")], ids=["fl", "private"])
def test_what_travels_at_a_client_is_what_it_trains(more: tuple[str, ...]) -> None:
    for adapter in ("{kind: hydra, on: both}", "{kind: lora, rank: 2, on: back}", "{kind: norms, on: both}"):
        scenario = small(*DEEPER, *more, f"model.adapter={adapter}")
        part = ClientPart.of(scenario, assemble(scenario, 10))
        learns = sum(one.numel() for one in part.parameters() if one.requires_grad)
        assert sum(tensor.numel() for tensor in part.travelling().values()) == learns
        assert learns + sum(one.numel() for one in part.frozen().values()) == sum(p.numel() for p in part.parameters())
        wire = WeightWire.of_frozen(part, scenario.compression)
        assert wire.numbers == {
            role: sum(tensor.numel() for tensor in one.frozen().values())
            for role, one in (("front_weights", part.front), (part.roles()["head.weight"], part.beside)) if one.frozen()
        }  # fmt: skip


def test_a_bottleneck_and_hydra_are_what_their_formulas_say() -> None:
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    for form in ("parallel", "sequential"):
        parts = shaken(
            adapted(f"{{kind: bottleneck, width: 6, parts: 2, form: {form}, scale: 0.3, after: [attn, mlp]}}")
        )
        block, plain = parts.front.eval().blocks[1], adapted("none").front.eval().blocks[1]
        x = tokens
        for norm, layer in (("norm1", "attn"), ("norm2", "mlp")):
            taken = plain.get_submodule(norm)(x)
            out = plain.get_submodule(layer)(taken)
            read, added = (taken if form == "parallel" else out), torch.zeros(())
            for number in (0, 1):
                own = dict(block.get_submodule(f"{layer}.added.{number}.{form}").named_parameters())
                assert own["down"].shape == (3, 16)
                hidden = gelu(read @ own["down"].T + own["down_bias"])
                added = added + 0.3 * (hidden @ own["up"] + own["up_bias"])
            x = x + out + added
        assert torch.allclose(block(tokens), x, atol=1e-6)
    parts = shaken(adapted("{kind: hydra, rank: 2, scale: 0.3, targets: [fc2]}"))
    layer = parts.front.blocks[0].mlp.fc2
    taken = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    down, up, next_down, next_up = (
        layer.get_parameter(f"added.0.{where}.{one}") for where in ("parallel", "sequential") for one in ("down", "up")
    )
    out = linear(taken, layer.weight, layer.bias)
    wanted = out + 0.3 * taken @ down.T @ up + 0.3 * out @ next_down.T @ next_up
    assert torch.allclose(layer(taken), wanted, atol=1e-6)


def test_what_a_block_starts_from_depends_on_neither_the_cut_nor_the_side() -> None:
    one, other = (
        {n: t for part in adapted("{kind: hydra, on: both}", f"model.cut={cut}") for n, t in part.state_dict().items()}
        for cut in (1, 3)
    )
    assert one.keys() == other.keys()
    assert all(tensor.equal(other[name]) for name, tensor in one.items())
    again = adapted("{kind: hydra, on: both}", "seed=2").front.state_dict()
    name = "blocks.0.mlp.fc2.added.0.parallel.down"
    assert not again[name].equal(one[name])


def test_what_cannot_be_folded_is_written_beside(tmp_path: Path) -> None:
    adapter = BEHIND[:-1] + ", on: both}"
    scenario = small(f"model.adapter={adapter}", "federation.rounds=1", "training.client.optimiser.lr=1e-2")
    folder = simulate(scenario, runs=tmp_path, observers=()).folder
    written = export(folder, tmp_path / "model.safetensors")
    state, plain = newest(folder), load_file(written.weights)
    assert written.added is not None
    added = load_file(written.added)
    assert added
    assert {**plain, **added}.keys() == state.keys()
    assert all(tensor.equal(state[name]) for name, tensor in {**plain, **added}.items())
    assert "model.added.safetensors" in written.card.read_text()
    timm.create_model("vit_tiny_patch16_224", **{**ARGS, "depth": 2}, checkpoint_path=str(written.weights))


def test_a_wider_model_says_how_timm_makes_it(tmp_path: Path) -> None:
    scenario = small("model.adapter={kind: bottleneck, width: 5}", "federation.rounds=1",
                     "training.client.optimiser.lr=1e-2")  # fmt: skip
    folder = simulate(scenario, runs=tmp_path, observers=()).folder
    written = export(folder, tmp_path / "model.safetensors")
    assert written.added is None
    create = written.create.replace('"model.safetensors"', repr(str(written.weights)))
    folded = eval(create, {"timm": timm}).eval()
    assert folded.blocks[0].mlp.fc1.out_features == folded.blocks[1].mlp.fc1.out_features == 64 + 5
    parts, state = assemble(scenario, 10, pretrained=False), newest(folder)
    for part in parts:
        part.load_state_dict({name: state[name] for name in part.state_dict()})
    assert (folded(IMAGES) - made(parts)).abs().max() < 1e-5
    assert "mlp_ratio" in written.config.read_text()


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        ("{kind: bottleneck, width: 6, parts: 4}", "width is 6, of which 4 parts cannot have as much each"),
        ("{kind: hydra, rank: 3, parts: 2}", "rank is 3, of which 2 parts"),
        ("{kind: bottleneck, after: [mlp, mlp]}", "after names 'mlp' twice"),
        ("{kind: hydra, on: tail}", "'front', 'back' or 'both'"),
        ("{kind: head, on: back}", "on"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(adapter: str, why: str) -> None:
    with pytest.raises(ScenarioError, match=why):
        small(f"model.adapter={adapter}")


def test_a_head_learns_alone_where_the_front_rests() -> None:
    for more, why in (
        ((), "set phases: \\[frozen\\]"),
        (("federation.labels=private", "model.tail=0"), "labels: shared"),
    ):
        with pytest.raises(ModelError, match=why):
            assemble(small("model.adapter=head", *more), 10)
        assert [key for key, _ in of_the_model(small("model.adapter=head", *more))] == ["model.adapter"]
    assert not list(of_the_model(small("model.adapter=head", "phases=[frozen]")))
    assert not list(of_the_model(small("model.adapter=head", *WHOLE)))
    ((key, why),) = of_the_model(small("model.adapter={kind: lora, on: back}", "model.cut=2"))
    assert key == "model.adapter"
    assert "the back's blocks have no layer 'qkv'" in why
