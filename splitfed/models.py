"""Vision Transformers of timm, cut in two: the front that a client holds and the back that the server holds."""

import difflib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import splitfed.torchvision_ops  # noqa: F401  before timm, which imports torchvision

# isort: split
import timm
import torch
from pydantic import Field, field_validator
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import load_state_dict
from timm.models.vision_transformer import VisionTransformer, init_weights_vit_timm
from torch import Tensor, nn

from splitfed.compression.halves import ENCODER, Halves
from splitfed.config import Config
from splitfed.errors import ModelError
from splitfed.expect import Geometry
from splitfed.seeds import Key

_SET_ELSEWHERE = {"img_size": "image_size", "num_classes": "the classes of the data set", "pretrained": "pretrained"}
_FRONT_PARTS = ("cls_token", "reg_token", "pos_embed", "patch_embed", "pos_drop", "patch_drop", "norm_pre")


class ModelConfig(Config):
    """Which timm model is trained, from which weights, and after how many blocks it is cut.

    `weights` is a local file and implies pretrained weights; `args` go to timm as they are (`depth`, `drop_path_rate`).
    """

    name: str
    pretrained: bool = False
    weights: str | None = None
    cut: int = Field(ge=1)
    image_size: int = Field(ge=1)
    args: dict[str, int | float | bool | str] = {}

    @field_validator("args")
    @classmethod
    def _not_twice(cls, args: dict[str, int | float | bool | str]) -> dict[str, int | float | bool | str]:
        for name, instead in _SET_ELSEWHERE.items():
            if name in args:
                raise ValueError(f"{name} cannot be set here, it comes from {instead}")
        return args


def build(config: ModelConfig, classes: int, *, pretrained: bool | None = None, key: Key) -> VisionTransformer:
    """Build the whole model with a head for `classes`; whatever is not loaded is drawn from `key`.

    `pretrained=False` skips the weights that the config asks for. Raises ModelError where the model cannot be built,
    its weights cannot be had or do not fit, or it cannot be split at the config's cut.
    """
    if pretrained is None:
        pretrained = config.pretrained or config.weights is not None
    _known(config.name)
    if pretrained:
        _weights_file(config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key.integer())
        try:
            vit = _load(config) if pretrained else _create(config, classes)
        except Exception as error:  # timm, torch, safetensors and the hub raise all sorts of things
            source = f" with the weights of {config.weights or 'the hub'}" if pretrained else ""
            hint = "" if config.weights or not pretrained else "; model.weights takes a local file instead"
            raise ModelError(f"{config.name} cannot be built{source}: {_short(error)}{hint}") from error
        check(vit, config.cut)
        if vit.num_classes != classes:
            torch.default_generator.manual_seed(key.at("head").integer())
            vit.reset_classifier(classes)
            init_weights_vit_timm(vit.head, "head")
    return vit


def _create(config: ModelConfig, classes: int, **source: Any) -> Any:
    arguments: dict[str, Any] = {**source, **config.args}
    return timm.create_model(config.name, num_classes=classes, img_size=config.image_size, **arguments)


def _load(config: ModelConfig) -> Any:
    # timm loads strictly only when the class counts agree; with another head it would also pass over any other weight
    # that is missing. So the model is built with the head of its weights, and gets its own head afterwards.
    if config.weights is None:
        known = timm.get_pretrained_cfg(config.name)
        return _create(config, known.num_classes if known else 1000, pretrained=True)
    head = load_state_dict(config.weights).get("head.weight")
    classes = 0 if head is None else len(head)
    overlay = {"file": config.weights, "num_classes": classes, "custom_load": False}
    return _create(config, classes, pretrained=True, pretrained_cfg_overlay=overlay)


def _known(name: str) -> None:
    if timm.is_model(name):
        return
    vits = timm.list_models(module="vision_transformer") + timm.list_models(module="deit")
    close = difflib.get_close_matches(name, vits, n=3)
    raise ModelError(f"timm has no model {name!r}" + (f"; did you mean {' or '.join(close)}?" if close else ""))


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:237] + "..."


def check_buildable(config: ModelConfig) -> "Front":
    """Build and cut the model of a config as a run would, but without its weights, and return its front.

    Raises ModelError with the reason where a run could not, also for a weights file that is not there.
    """
    _weights_file(config)
    return split(build(config, 2, pretrained=False, key=Key(0)), config.cut)[0]


def _weights_file(config: ModelConfig) -> None:
    if config.weights is not None and not Path(config.weights).is_file():
        raise ModelError(f"model.weights: no such file: {config.weights}")


def check(vit: nn.Module, cut: int) -> None:
    """Raise ModelError, with the reason, unless `vit` can be cut after block `cut` and still be the same model."""
    kind = type(vit)
    if kind is not VisionTransformer:
        # subclasses have forwards of their own, which the two halves would not follow
        raise ModelError(f"{kind.__name__} cannot be split: only timm's plain VisionTransformer can")
    assert isinstance(vit, VisionTransformer)
    if not vit.has_class_token:
        raise ModelError("a model without a class token cannot be split")
    if not isinstance(vit.patch_drop, nn.Identity):
        raise ModelError("patch_drop_rate: a front that drops patches at random has no fixed number of tokens")
    if not vit.global_pool:
        raise ModelError("global_pool: a model without pooling gives no logits per image")
    if not 1 <= cut <= len(vit.blocks):
        raise ModelError(f"model.cut is {cut}, but the model has blocks 1 to {len(vit.blocks)}")


class _Half(VisionTransformer):
    """Some parts of a built VisionTransformer under their own names, run by timm's own forward code."""

    def __init__(self, vit: VisionTransformer, parts: list[str], first: int, last: int) -> None:
        nn.Module.__init__(self)  # not VisionTransformer's, which would make a whole model
        for name, value in vit.__dict__.items():
            if name not in self.__dict__:
                setattr(self, name, value)
        numbered = [(str(i), block) for i, block in enumerate(vit.blocks)][first:last]
        for name in parts:
            setattr(self, name, nn.Sequential(OrderedDict(numbered)) if name == "blocks" else getattr(vit, name))
        self.train(vit.training)


class Front(_Half):
    """The client's half: patch embedding, prefix tokens and the first blocks, images to activations `[B, n, D]`.

    `encoder`, which the forward pass leaves out, is the client's half of a reducer with layers of its own, else the
    identity.
    """

    def __init__(self, vit: VisionTransformer, cut: int) -> None:
        super().__init__(vit, [*_FRONT_PARTS, "blocks"], 0, cut)
        self.norm = nn.Identity()
        self.encoder: nn.Module = nn.Identity()
        self._encoder_travels = True

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Turn images `[B, 3, H, W]` into activations at the cut, `[B, n, D]`."""
        return self.forward_features(images)

    def geometry(self, batch: int, classes: int) -> Geometry:
        """Return the sizes at the cut for batches of up to `batch` images."""
        tokens = self.patch_embed.num_patches + self.num_prefix_tokens
        return Geometry(batch, tokens, self.embed_dim, self.num_prefix_tokens, classes)

    def attach(self, halves: Halves) -> None:
        """Take a reducer's encoder in."""
        self.encoder = halves.encoder.requires_grad_(halves.trained)
        self._encoder_travels = halves.encoder_travels

    def travelling(self) -> dict[str, Tensor]:
        """Return the tensors that go out and come back in each round: all but an encoder that is frozen or a client's
        own."""
        state = self.state_dict()
        return {name: t for name, t in state.items() if self._encoder_travels or not name.startswith(ENCODER)}

    def load_travelling(self, weights: dict[str, Tensor]) -> None:
        """Take over, by copy, what came; what does not travel stays as it is."""
        self.load_state_dict({**self.state_dict(), **weights})


class Back(_Half):
    """The server's half: the other blocks, the final norm and the head.

    `decoder`, which the forward pass leaves out, is the server's half of a reducer with layers of its own, else the
    identity.
    """

    def __init__(self, vit: VisionTransformer, cut: int) -> None:
        parts = [name for name, _ in vit.named_children() if name not in _FRONT_PARTS]
        super().__init__(vit, parts, cut, len(vit.blocks))
        for name in ("patch_embed", "patch_drop", "norm_pre"):
            setattr(self, name, nn.Identity())
        self.decoder: nn.Module = nn.Identity()

    def attach(self, halves: Halves) -> None:
        """Take a reducer's decoder in."""
        self.decoder = halves.decoder.requires_grad_(halves.trained)

    def _pos_embed(self, x: Tensor) -> Tensor:
        return x

    def forward(self, activations: Tensor) -> Tensor:  # type: ignore[override]
        """Turn activations `[B, k, D]` into logits `[B, classes]`; prefix tokens come first, any may follow them."""
        return self.forward_head(self.forward_features(activations))


def split(vit: VisionTransformer, cut: int) -> tuple[Front, Back]:
    """Cut a model after `cut` blocks; the halves share its parameters. Raises ModelError as `check` does."""
    check(vit, cut)
    return Front(vit, cut), Back(vit, cut)


def whole_state(front: Front, back: Back) -> dict[str, Tensor]:
    """Join both halves' tensors into the state dict of the whole timm model; a reducer's own layers come beside it, as
    `encoder.*` and `decoder.*`."""
    return {**front.state_dict(), **back.state_dict()}


def pixel_stats(config: ModelConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of the pixels that the model was trained on, ImageNet's where timm names none.

    Raises ModelError for a name that timm does not know.
    """
    _known(config.name)
    known = timm.get_pretrained_cfg(config.name)
    if known is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return tuple(known.mean), tuple(known.std)
