"""What is wrong with a model's settings: each key with its reason, in words of our own."""

import re

import pytest
import torch
from models import config, small

from splitfed.errors import ModelError
from splitfed.model.build import timm
from splitfed.model.exits.settings import ExitsConfig
from splitfed.model.mistakes import blank, mistakes
from splitfed.model.settings import ModelConfig

LIST = "'splitfed list models'"
# Words of timm's and torch's that are no help to who writes a scenario.
THEIRS = re.compile(r"unexpected keyword|__init__|assert|divisible|Trying to create|RuntimeError|NoneType")


def told(tail: int | None = None, **changes: object) -> dict[str, str]:
    found = list(mistakes(config(**changes), tail))
    assert not any(THEIRS.search(why) or "\n" in why for _, why in found), found
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.parametrize(
    ("size", "patch", "fit"),
    [(16, 3, (15, 18)), (16, 5, (15, 20)), (16, 32, (32,)), (8, 16, (16,)), (224, 15, (210, 225)), (7, 2, (6, 8))],
)
def test_patches_that_leave_pixels_out_are_refused_with_sizes_that_fit(
    size: int, patch: int, fit: tuple[int, ...]
) -> None:
    why = told(image_size=size, args={"patch_size": patch})["model.args.patch_size"]
    assert f"image_size {' or '.join(map(str, fit))} fits" in why
    for other in fit:
        assert not told(image_size=other, args={"patch_size": patch})
    for other in re.search(r"args.patch_size ([\d, ]+)", why)[1].split(", "):  # type: ignore[index]
        assert not told(image_size=size, args={"patch_size": int(other)})
    with pytest.raises(ModelError, match="cannot be divided into patches"):
        small(image_size=size, args={"patch_size": patch})


def test_no_pixel_is_left_out_of_a_model_that_passes() -> None:
    """Every pixel of an image has a gradient, in the model that is built; of one that is refused, some have none."""
    for size, patch, whole in ((16, 4, True), (15, 5, True), (16, 5, False)):
        vit = timm.create_model("vit_tiny_patch16_224", img_size=size, patch_size=patch, embed_dim=24, depth=1)
        image = torch.zeros(1, 3, size, size, requires_grad=True)
        vit(image).square().sum().backward()
        assert image.grad is not None
        assert bool((image.grad != 0).any(1).all()) is whole
        assert bool(told(image_size=size, args={"patch_size": patch})) is not whole


def test_sizes_are_told_where_the_patch_is_the_models_own() -> None:
    for name, size, near in (
        ("vit_tiny_patch16_224", 100, "96 or 112"),
        ("vit_tiny_r_s16_p8_224", 200, "192 or 224"),  # patches of what a network of convolutions makes of the image
    ):
        found = list(mistakes(ModelConfig(name=name, cut=1, image_size=size)))
        assert [key for key, _ in found] == ["model.image_size"]
        assert near in found[0][1]


@pytest.mark.parametrize("size", [0, -8, 1 << 20])
def test_images_of_no_size_or_of_any_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="image_size"):
        config(image_size=size)
    assert "16,777,216 patches" in told(image_size=4096, args={"patch_size": 1})["model.args.patch_size"]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224", "deit_tiny_distilled_patch16_224",
        "vit_relpos_small_patch16_224", "vit_base_patch16_siglip_224", "mixer_s32_224",
    ],
)  # fmt: skip
def test_models_that_cannot_be_cut(name: str) -> None:
    ((key, why),) = mistakes(ModelConfig(name=name, cut=1, image_size=224))
    assert key == "model.name"
    assert why.endswith(f"is not a Vision Transformer of timm that can be cut: {LIST} shows those that are")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit_tinny_patch16_224", "did you mean 'vit_tiny_patch16_224'?"),
        ("zzzzzz", LIST),
        ("hf-hub:timm/vit", LIST),
        ("vit_tiny_patch16_224.augreg_in22k", "did you mean 'augreg_in21k'?"),
    ],
)
def test_unknown_models(name: str, hint: str) -> None:
    ((key, why),) = mistakes(config(name=name))
    assert key == "model.name"
    assert hint in why


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        ({"depht": 3}, "no such argument, did you mean 'depth'?"),
        ({"zzzz": 3}, "known: 'act_layer', "),
        ({"use_naflex": True}, "no such argument"),
        ({"block_fn": "x"}, "no such argument"),
        ({"depth": "3"}, "must be a whole number, not '3'"),
        ({"depth": 3.0}, "must be a whole number, not 3.0"),
        ({"qkv_bias": 1}, "must be true or false, not 1"),
        ({"depth": True}, "must be a whole number, not true"),
        ({"global_pool": "tokn"}, "did you mean 'token'?"),
        ({"depth": 0}, "at least 1"),
        ({"patch_size": -4}, "at least 1"),
        ({"drop_path_rate": 1.5}, "[0, 1)"),
        ({"num_heads": 5}, "num_heads of 1, 2, 3, 4, 6, 8, 12, 24"),
        ({"pos_embed": "foo"}, "'foo': change it"),
        ({"norm_layer": "foo"}, "'foo': change it"),
        ({"mlp_ratio": -2.0}, "-2.0: change it"),
        ({"class_token": False}, "class token"),
        ({"patch_drop_rate": 0.5}, "leave it out"),
        ({"global_pool": ""}, "pooling"),
    ],
)
def test_arguments_are_told_by_their_key(args: dict[str, object], hint: str) -> None:
    found = told(args=args)
    assert list(found) == [f"model.args.{name}" for name in args]
    assert hint in next(iter(found.values()))


def test_all_mistakes_come_together_and_none_follows_from_another() -> None:
    assert list(told(cut=9, args={"widht": 1, "patch_size": 3, "qkv_bias": 1})) == [
        "model.args.widht", "model.args.qkv_bias", "model.args.patch_size", "model.cut"
    ]  # fmt: skip
    assert list(told(cut=5, args={"depht": 12})) == ["model.args.depht"]
    assert list(told(cut=9, weights="/none.safetensors")) == ["model.cut", "model.weights"]
    assert list(told(cut=1, tail=3)) == ["model.tail"]
    assert list(told(cut=2, tail=1)) == ["model.cut"]
    assert not told(cut=1, tail=1)


def test_weights_that_timm_has_not_are_told_before_a_download() -> None:
    assert list(told(name="vit_base_patch16_plus_240", pretrained=True)) == ["model.pretrained"]
    assert not told(name="vit_base_patch16_plus_240", weights=__file__)
    assert not told(pretrained=True)


def test_a_model_without_numbers_has_the_real_ones_shapes() -> None:
    real = {name: tensor.shape for name, tensor in small(classes=2).state_dict().items()}
    assert {name: tensor.shape for name, tensor in blank(config()).state_dict().items()} == real
    assert all(tensor.is_meta for tensor in blank(config()).parameters())


def test_exits_follow_blocks_that_there_are_but_the_last() -> None:
    assert not told(exits=ExitsConfig(blocks=(2, 1)))
    why = told(exits=ExitsConfig(blocks=(1, 3)))["model.exits.blocks"]
    assert why == "has 3, and the model has 3 blocks: exits follow blocks 1 to 2, and its own head the last"
