"""Which models of timm can be split: asked of the models themselves, without their blocks and weights."""

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass

import splitfed.model._torchvision  # noqa: F401  before timm, which imports torchvision

# isort: split
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from splitfed.errors import ModelError
from splitfed.model.adaptive.attention import check_readable
from splitfed.model.build import Front, check
from splitfed.model.mistakes import plain


@dataclass(frozen=True, slots=True)
class Usable:
    """A model that can be split: pixels of an image's side, of a patch's, features, blocks, the names of its weights
    (`<name>.<weights>` loads them), and whether the attention of its class token can be read."""

    name: str
    image_size: int
    patch: int
    width: int
    blocks: int
    weights: list[str]
    readable: bool


class _NoBlock(nn.Identity):
    """Stands for a block, which takes nearly all the time that it takes to make a model."""


def usable(pattern: str = "*") -> Iterator[Usable]:
    """Yield the models whose names match a pattern and that `splitfed.model.build.check` lets through, by name."""
    for name in filter(plain, fnmatch.filter(timm.list_models(), pattern)):
        if (vit := _make(name, block_fn=_NoBlock)) is not None:
            patch = vit.patch_embed
            weights = [one.partition(".")[2] for one in timm.list_pretrained(f"{name}.*")]
            yield Usable(
                name, patch.img_size[0], patch.patch_size[0], vit.embed_dim, len(vit.blocks), weights, _readable(name)
            )


def _make(name: str, **arguments: object) -> VisionTransformer | None:
    """Make a model that holds no numbers, or return None where it could not be split."""
    try:
        with torch.device("meta"):
            vit = timm.create_model(name, **arguments)  # type: ignore[arg-type]
        check(vit, 1)
    except (ModelError, TypeError, RuntimeError, ValueError, AttributeError):
        return None
    return vit  # type: ignore[return-value]


def _readable(name: str) -> bool:
    vit = _make(name, depth=1)
    try:
        return vit is not None and bool(check_readable(Front(vit, 1)))
    except ModelError:
        return False
