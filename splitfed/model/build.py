"""Vision Transformers of timm: which one a scenario trains, and from which weights; `splitfed.model.parts` cuts it."""

import difflib
from pathlib import Path
from typing import Any

import splitfed.model._torchvision  # noqa: F401  before timm, which imports torchvision

# isort: split
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import load_state_dict
from timm.models.vision_transformer import VisionTransformer, init_weights_vit_timm

from splitfed.errors import ModelError
from splitfed.model.parts import Back as Back
from splitfed.model.parts import Front as Front
from splitfed.model.parts import check as check
from splitfed.model.parts import split as split
from splitfed.model.parts import whole_state as whole_state
from splitfed.model.settings import ModelConfig
from splitfed.seeds import Key


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


def check_buildable(config: ModelConfig, tail: int | None = None) -> Front:
    """Build and cut the model of a config as a run would, but without its weights, and return its front; with a `tail`
    of so many blocks it is cut twice.

    Raises ModelError with the reason where a run could not, also for a weights file that is not there.
    """
    _weights_file(config)
    vit = build(config, 2, pretrained=False, key=Key(0))
    check(vit, config.cut, tail)
    return split(vit, config.cut)[0]


def _weights_file(config: ModelConfig) -> None:
    if config.weights is not None and not Path(config.weights).is_file():
        raise ModelError(f"model.weights: no such file: {config.weights}")


def pixel_stats(config: ModelConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of the pixels that the model was trained on, ImageNet's where timm names none.

    Raises ModelError for a name that timm does not know.
    """
    _known(config.name)
    known = timm.get_pretrained_cfg(config.name)
    if known is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return tuple(known.mean), tuple(known.std)
