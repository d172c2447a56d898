"""Vision Transformers of timm: which one a scenario trains, and from which weights; `splitfed.model.parts` cuts it."""

import hashlib
from typing import Any

import splitfed.model._torchvision  # noqa: F401  before timm, which imports torchvision

# isort: split
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import load_state_dict
from timm.models.vision_transformer import VisionTransformer, init_weights_vit_timm

from splitfed.errors import ModelError
from splitfed.model.hub import patient_only_online, reachable
from splitfed.model.mistakes import mistakes, unknown
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
    if config.weights is not None and not pretrained:
        config = config.model_copy(update={"weights": None, "pretrained": False})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key.integer())
        try:
            vit = _load(config) if pretrained else _create(config, classes)
        except Exception as error:  # timm, torch, safetensors and the hub raise all sorts of things
            for mistake, why in mistakes(config):
                raise ModelError(f"{mistake}: {why}") from error
            raise ModelError(_unloadable(config, error) if pretrained else _short(error)) from error
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
        with patient_only_online():
            return _create(config, known.num_classes if known else 1000, pretrained=True)
    head = load_state_dict(config.weights).get("head.weight")
    classes = 0 if head is None else len(head)
    overlay = {"file": config.weights, "num_classes": classes, "custom_load": False}
    return _create(config, classes, pretrained=True, pretrained_cfg_overlay=overlay)


def _unloadable(config: ModelConfig, error: Exception) -> str:
    """Return why weights cannot be loaded, with the key to change."""
    if config.weights is not None:
        return f"model.weights: {config.weights} is not of {config.name} as it is set here: {_short(error)}"
    if not reachable():
        return (
            f"model.pretrained: the weights of {config.name} are not in the Hugging Face Hub's cache on this machine, "
            "and the Hub cannot be reached: name a local file as model.weights, or set model.pretrained to false"
        )
    return (
        f"model.pretrained: the weights of {config.name} cannot be had from the Hugging Face Hub: {_short(error)}; "
        "model.weights takes a local file instead"
    )


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:237] + "..."


def fingerprint(config: ModelConfig) -> str:
    """Return the SHA-256 of the file of weights. Raises ModelError where it cannot be read, or is another than the
    config says."""
    path, expected = str(config.weights), config.fingerprint
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(
            f"model.weights: {path} cannot be read ({error.strerror}); name where it lies with --weights"
        ) from None
    if expected is not None and found != expected:
        raise ModelError(
            f"model.weights: {path} holds other weights than the run began with (SHA-256 {found[:12]}..., not "
            f"{expected[:12]}...); name the place of the run's own with --weights, or start a new run"
        )
    return found


def pixel_stats(config: ModelConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of the pixels that the model was trained on, ImageNet's where timm names none.

    Raises ModelError for a name that timm does not know.
    """
    if (why := unknown(config.name)) is not None:
        raise ModelError(f"model.name: {why}")
    known = timm.get_pretrained_cfg(config.name)
    if known is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return tuple(known.mean), tuple(known.std)
