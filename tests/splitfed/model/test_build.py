from models import config, shaken, small
from places import SHARED

import splitfed.model._torchvision  # noqa: F401  before timm, which imports torchvision

# isort: split
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from splitfed.errors import ModelError
from splitfed.model.build import build, check, pixel_stats, split, whole_state
from splitfed.model.settings import ModelConfig
from splitfed.seeds import Key

DEIT = SHARED / "weights/deit_tiny_patch16_224.safetensors"
VARIANTS = {
    "plain": {},
    "registers": {"reg_tokens": 3},
    "qk_norm": {"qk_norm": True},
    "avg": {"global_pool": "avg"},
    "map": {"global_pool": "map"},
    "no_embed_class": {"no_embed_class": True, "reg_tokens": 2},
    "norm_pre": {"pre_norm": True},
    "no_pos_embed": {"pos_embed": "none"},
    "layer_scale": {"init_values": 0.1},
    "dropouts": {"drop_rate": 0.2, "pos_drop_rate": 0.2, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2},
    "drop_path": {"drop_path_rate": 0.5},
    "dynamic": {"dynamic_img_size": True},
}


@pytest.fixture
def images():
    return torch.randn(4, 3, 16, 16, generator=Key(2).generator())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_front_and_back_are_the_whole_bit_for_bit_at_every_cut(variant, training, images):
    vit = shaken(small(args=VARIANTS[variant])).train(training)
    torch.manual_seed(3)
    whole = vit(images)
    names = set(vit.state_dict())
    for cut in range(1, len(vit.blocks) + 1):
        front, back = split(vit, cut)
        torch.manual_seed(3)
        activations = front(images)
        assert torch.equal(back(activations), whole)
        assert activations.shape == (4, *_sizes(front.geometry(4, 5)))
        assert set(front.state_dict()).isdisjoint(back.state_dict())
        assert set(front.state_dict()) | set(back.state_dict()) == names
        assert len(front.blocks) == cut


def _sizes(geometry):
    return geometry.tokens, geometry.width


def test_the_halves_gradients_are_those_of_the_whole(images):
    vit = shaken(small(args={"reg_tokens": 1}))
    vit(images).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in vit.named_parameters()}
    vit.zero_grad()
    front, back = split(vit, 2)
    smashed = front(images)
    received = smashed.detach().requires_grad_()
    back(received).square().sum().backward()
    smashed.backward(received.grad)
    halves = {name: p.grad for half in (front, back) for name, p in half.named_parameters()}
    assert halves.keys() == expected.keys()
    assert all(torch.equal(halves[name], expected[name]) for name in expected)


def test_the_halves_carry_timms_names_and_join_to_its_state():
    vit = small(args={"depth": 4})
    front, back = split(vit, 3)
    assert "blocks.2.attn.qkv.weight" in front.state_dict()
    assert "blocks.3.attn.qkv.weight" in back.state_dict()
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= front.state_dict().keys()
    assert {"norm.weight", "head.weight"} <= back.state_dict().keys()
    fresh = small(args={"depth": 4}, seed=9)
    fresh.load_state_dict(whole_state(front, back), strict=True)
    assert list(whole_state(front, back)) == list(vit.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), vit.parameters(), strict=True))


def test_the_back_takes_any_number_of_tokens(images):
    vit = shaken(small(args={"global_pool": "avg", "reg_tokens": 2}))
    front, back = split(vit, 1)
    few = front(images)[:, [0, 1, 2, 5, 9]]
    x = few
    for block in vit.blocks[1:]:
        x = block(x)
    torch.testing.assert_close(back(few), vit.head(vit.fc_norm(x[:, 3:].mean(1))))
    assert back(few[:, :4]).shape == (4, 5)


def test_weights_come_from_the_key_and_global_randomness_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = small(seed=7).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = small(seed=7).state_dict(), small(seed=8).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_a_weights_file_fills_all_but_a_new_head_which_comes_from_the_key(tmp_path):
    file = str(tmp_path / "w.safetensors")
    source = shaken(small(classes=7)).state_dict()
    save_file(source, file)
    one = small(weights=file, seed=3).state_dict()
    assert all(torch.equal(one[name], source[name]) for name in source if not name.startswith("head"))
    assert one["head.weight"].shape == (5, 24)
    again, other = small(weights=file, seed=3).state_dict(), small(weights=file, seed=4).state_dict()
    assert torch.equal(one["head.weight"], again["head.weight"])
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert one["head.weight"].std() < 0.05  # timm's own initialisation of a head
    same = small(classes=7, weights=file).state_dict()
    assert torch.equal(same["head.weight"], source["head.weight"])


def test_weights_without_a_head_and_of_another_size_are_taken(tmp_path):
    file = str(tmp_path / "w.safetensors")
    source = {name: value for name, value in small().state_dict().items() if not name.startswith("head")}
    save_file(source, file)
    loaded = small(weights=file, image_size=24)
    assert loaded.pos_embed.shape == (1, 37, 24)
    assert torch.equal(loaded.norm.weight, source["norm.weight"])


def test_weights_can_be_skipped(tmp_path):
    missing = config(weights=str(tmp_path / "none.safetensors"))
    vit = build(missing, 5, pretrained=False, key=Key(1))
    assert torch.equal(vit.head.weight, small().head.weight)


@pytest.mark.skipif(not DEIT.is_file(), reason="DeiT-Tiny's weights are not on this machine")
def test_deit_tiny_loads_at_another_resolution():
    deit = ModelConfig(name="deit_tiny_patch16_224", weights=str(DEIT), cut=3, image_size=96)
    vit, source = build(deit, 100, key=Key(0)), load_file(DEIT)
    assert vit.pos_embed.shape == (1, 37, 192)
    assert torch.equal(vit.blocks[11].mlp.fc2.weight, source["blocks.11.mlp.fc2.weight"])
    assert split(vit, 3)[0].geometry(64, 100).tokens == 37


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("classes", [5, 7])
def test_weights_of_another_architecture_are_refused_whatever_the_head(tmp_path, depth, classes):
    file = str(tmp_path / "w.safetensors")
    save_file(small(classes=5).state_dict(), file)
    with pytest.raises(ModelError, match=r"w\.safetensors.*blocks\."):
        small(classes=classes, weights=file, args={"depth": depth})


def test_what_cannot_be_built_is_one_line_of_ModelError(tmp_path, monkeypatch):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a checkpoint")
    for reason, wrong in {
        "no such file": {"weights": str(tmp_path / "missing.safetensors")},
        r"model\.weights: .*broken\.safetensors": {"weights": str(broken)},
        r"model\.name: .*did you mean 'deit_tiny_patch16_224'": {"name": "deit_tinny_patch16_224"},
        r"model\.args\.depht: .*did you mean 'depth'": {"args": {"depht": 3}},
        "'resnet18' is not a Vision Transformer of timm": {"name": "resnet18"},
        r"model\.args\.num_heads: 24 features": {"args": {"num_heads": 5}},
        r"model\.args\.patch_size: .*image_size 15 or 18": {"args": {"patch_size": 3}},
    }.items():
        with pytest.raises(ModelError, match=reason) as caught:
            small(**wrong)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500

    def offline(*_args, **_more):
        raise ConnectionError("no route\nto host " * 100)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(ModelError, match=r"model\.pretrained: .*the Hub cannot be reached.*model\.weights"):
        small(pretrained=True)
    monkeypatch.setattr("splitfed.model.build.reachable", lambda: True)
    with pytest.raises(ModelError, match=r"model\.pretrained: .*no route.*model\.weights") as caught:
        small(pretrained=True)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("reason", "wrong"),
    [
        ("class token", {"args": {"class_token": False, "global_pool": "avg"}}),
        ("patch_drop_rate", {"args": {"patch_drop_rate": 0.5}}),
        ("pooling", {"args": {"global_pool": ""}}),
        ("blocks 1 to 3", {"cut": 4}),
        ("VisionTransformerDistilled", {"name": "deit_tiny_distilled_patch16_224"}),
        ("Eva", {"name": "eva02_tiny_patch14_224"}),
    ],
)
def test_a_model_whose_halves_would_not_be_the_whole_is_refused(reason, wrong):
    with pytest.raises(ModelError, match=reason):
        small(**wrong)


def test_subclasses_and_other_modules_are_refused():
    class Other(VisionTransformer):
        pass

    for module in (Other(img_size=16, depth=2, embed_dim=24, num_heads=3), nn.Linear(2, 2)):
        with pytest.raises(ModelError, match=type(module).__name__):
            check(module, 1)
    with pytest.raises(ModelError, match="cut: is 0"):
        split(small(), 0)


@pytest.mark.parametrize("name", ["img_size", "num_classes", "pretrained", "in_chans", "checkpoint_path"])
def test_arguments_that_have_a_key_of_their_own_are_refused(name):
    with pytest.raises(ValidationError, match=name):
        config(args={name: 3})


def test_pixel_stats_are_those_of_the_pretrained_model(monkeypatch):
    assert pixel_stats(config(name="deit_tiny_patch16_224")) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert pixel_stats(config()) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with pytest.raises(ModelError, match="did you mean"):
        pixel_stats(config(name="vit_tiny_patch16_225"))
    monkeypatch.setattr("timm.get_pretrained_cfg", lambda name: None)
    assert pixel_stats(config())[0] == (0.485, 0.456, 0.406)
