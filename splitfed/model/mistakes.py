"""What is wrong with a model's settings, told by key: asked of timm's own classes and of a model that holds no numbers.

Nothing is loaded and no weights are made, so this takes a fraction of a second, whatever the model's size.
"""

import inspect
from collections.abc import Iterator
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import splitfed.model._torchvision  # noqa: F401  before timm, which imports torchvision

# isort: split
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from splitfed.config import did_you_mean
from splitfed.errors import ModelError
from splitfed.model.adaptive.attention import readable
from splitfed.model.adaptive.settings import Sides
from splitfed.model.parts import CANNOT_BE_CUT, misfits
from splitfed.model.settings import SET_ELSEWHERE, ModelConfig

Found = Iterator[tuple[str, str]]
Arguments = dict[str, int | float | bool | str]
_Named = tuple[tuple[str, int | float | bool | str], ...]

# The least that an argument can be; whatever else timm cannot take, it is asked.
_LEAST = {"patch_size": 1, "embed_dim": 1, "depth": 1, "num_heads": 1, "reg_tokens": 0}
_NOUNS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def mistakes(config: ModelConfig, tail: int | None = None) -> Found:
    """Yield each key of a model's settings that is wrong, with the reason and the way out; `tail` blocks are left to
    the end of the model where it is cut twice."""
    if (why := unknown(config.name)) is not None:
        yield "model.name", why
    else:
        yield from _of_the_weights(config)
        wrong = dict(_of_the_arguments(config.args))
        yield from wrong.items()
        yield from _of_the_whole(config, tail, {key.removeprefix("model.args.") for key in wrong})
    if config.weights is not None and not Path(config.weights).is_file():
        yield "model.weights", f"no such file: {config.weights}"


def blank(config: ModelConfig) -> VisionTransformer:
    """Return the model of settings that have no mistakes, on torch's device `meta`: shapes without numbers. It is
    shared, and not to be changed."""
    return _made(config)  # type: ignore[return-value]


def unknown(name: str) -> str | None:
    """Return why timm has no model of this name that can be cut, or None."""
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        close = did_you_mean(name, [one for one in timm.list_models() if plain(one)])
        return f"timm has no model {name!r}{close or ': ' + _LIST}"
    tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        known = f", known: {', '.join(map(repr, tags))}" if tags else ", it has none"
        return f"timm has no weights {tag!r} of {base!r}{did_you_mean(tag, tags) or known}"
    return None if plain(base) else f"{name!r} {CANNOT_BE_CUT}"


_LIST = "'splitfed list models' shows those that can be cut"


def plain(name: str) -> bool:
    """Tell whether a model's maker knows the class that can be cut; any other makes something else."""
    return getattr(timm.model_entrypoint(name), "__globals__", {}).get("VisionTransformer") is VisionTransformer


def _of_the_weights(config: ModelConfig) -> Found:
    if not config.pretrained or config.weights is not None:
        return
    known = timm.get_pretrained_cfg(config.name)
    if known is None or not known.has_weights:
        yield "model.pretrained", f"timm has no weights of {config.name!r}: set it to false, or name a model.weights"


def _of_the_arguments(args: Arguments) -> Found:
    """Yield what is wrong with each argument alone."""
    hints = _hints()
    for name, value in args.items():
        key = f"model.args.{name}"
        if name not in hints:
            known = did_you_mean(name, list(hints)) or f", known: {', '.join(map(repr, sorted(hints)))}"
            yield key, f"timm's Vision Transformer has no such argument{known}"
        elif why := _mismatch(value, hints[name]):
            yield key, why
        elif name in _LEAST and value < _LEAST[name]:  # type: ignore[operator]
            yield key, f"must be at least {_LEAST[name]}, not {value}"
        elif name.endswith("_rate") and not 0 <= value < 1:  # type: ignore[operator]
            yield key, f"must be a share in [0, 1), not {value}"
        elif name == "class_token" and not value:
            yield key, "without a class token a model cannot be cut: leave it out"


@lru_cache(1)
def _hints() -> dict[str, set[Any]]:
    """Return the arguments that a scenario can write, each with the types and words that it may be."""
    hints = get_type_hints(VisionTransformer.__init__)
    found = {
        name: set(_choices(hints[name])) for name in inspect.signature(VisionTransformer).parameters if name in hints
    }
    return {name: choices for name, choices in found.items() if choices and name not in SET_ELSEWHERE}


def _choices(hint: Any) -> Iterator[Any]:
    if hint in _NOUNS:
        yield hint
    elif get_origin(hint) is Literal:
        yield from get_args(hint)
    elif get_origin(hint) not in (tuple, type):
        for part in get_args(hint):
            if not isinstance(part, list):  # of a Callable
                yield from _choices(part)


def _mismatch(value: Any, choices: set[Any]) -> str | None:
    """Return why a value is none of these types and words, or None."""
    kind = type(value)
    if kind in choices or (kind is int and float in choices) or value in [one for one in choices if one not in _NOUNS]:
        return None
    words = sorted(one for one in choices if isinstance(one, str))
    nouns = [*(_NOUNS[one] for one in _NOUNS if one in choices), *map(repr, words)]
    return f"must be {' or '.join(nouns)}, not {_written(value)}" + (did_you_mean(value, words) if kind is str else "")


def _of_the_whole(config: ModelConfig, tail: int | None, wrong: set[str]) -> Found:
    """Yield what is wrong with arguments, sizes and cuts together; of arguments that are `wrong` already, and of what
    follows from them, nothing more is said."""
    right = config.model_copy(update={"args": {name: v for name, v in config.args.items() if name not in wrong}})
    made = _made(right)
    if made is None:
        yield from () if wrong else _unbuildable(config)
        return
    meant = wrong | {name for one in wrong for name in get_close_matches(one, list(_hints()), n=1)}
    found = [(key, why) for key, why in misfits(made, config.cut, tail) if _argument(key) not in meant]
    if not found and "depth" not in meant:
        found += _of_the_exits(config, len(made.blocks))  # type: ignore[arg-type]
        found += _of_the_budgets(config, list(made.blocks), tail or 0)  # type: ignore[arg-type]
    yield from ((_home(config, key), why) for key, why in found)
    if not (found or wrong or _runs(made, config.image_size)):
        yield (
            "model.args",
            f"timm makes a model of them that takes no images of {config.image_size} pixels: change them",
        )


def _of_the_exits(config: ModelConfig, blocks: int) -> Found:
    named = getattr(config.exits, "blocks", ())  # what is not valid may be missing
    if named and named[-1] >= blocks:
        yield (
            "model.exits.blocks",
            f"has {named[-1]}, and the model has {blocks} blocks: exits follow blocks 1 to {blocks - 1}, "
            "and its own head the last",
        )


def _of_the_budgets(config: ModelConfig, blocks: list[nn.Module], tail: int) -> Found:
    if (adaptive := config.adaptive) is None:
        return
    try:
        readable(blocks[0])
    except ModelError as error:
        yield "model.adaptive", f"{adaptive.kind}: {error}: leave it out, or set another model"
    trained, budgeted = getattr(adaptive, "trained", None), len(blocks) - tail  # what is not valid may be missing
    if isinstance(trained, Sides):
        many = getattr(trained, "back", None) or 0
        if many > (back := budgeted - config.cut):
            yield "model.adaptive.trained.back", f"is {many:g}, but the back has {back}: lower it"
    elif trained and trained > budgeted:
        where = "the model has" if not tail else "front and back together have"
        yield "model.adaptive.trained", f"is {trained}, but {where} {budgeted} blocks: lower it"


def _argument(key: str) -> str:
    """Return the argument that a key stands for, or that tells how many blocks there are to cut."""
    return "depth" if key in ("model.cut", "model.tail") else key.removeprefix("model.args.")


def _home(config: ModelConfig, key: str) -> str:
    """Return the key to change for a property that the arguments may have given the model, or else its name."""
    argument = key.removeprefix("model.args.")
    if argument == key or argument in config.args:
        return key
    return "model.image_size" if argument == "patch_size" else "model.name"


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _made(config: ModelConfig) -> nn.Module | None:
    return _blank(config.name, config.image_size, tuple(sorted(config.args.items())))


@lru_cache(32)
def _blank(name: str, image_size: int, args: _Named) -> nn.Module | None:
    return _make(name, img_size=image_size, **dict(args))


def _make(name: str, **arguments: Any) -> nn.Module | None:
    """Make a model that holds no numbers, or return None where timm cannot."""
    try:
        with torch.device("meta"):
            return timm.create_model(name, num_classes=2, **arguments)
    except Exception:  # timm and torch raise all sorts of things
        return None


def _runs(model: nn.Module, image_size: int) -> bool:
    try:
        with torch.no_grad():
            return model(torch.empty(2, 3, image_size, image_size, device="meta")).shape == (2, 2)
    except Exception:
        return False


class _Block(nn.Identity):
    """Stands for a block, and remembers what the last one was asked to be."""

    asked: dict[str, Any] = {}

    def __init__(self, **asked: Any) -> None:
        super().__init__()
        type(self).asked = asked


def _unbuildable(config: ModelConfig) -> Found:
    """Yield which setting it is that timm cannot build a model of."""
    args, given = config.args, {"img_size": config.image_size, **config.args}
    without = {name: {k: v for k, v in given.items() if k != name} for name in given}
    if made := _make(config.name, **given, block_fn=_Block):
        width, heads = getattr(made, "embed_dim", 0), _Block.asked.get("num_heads", 0)
        if heads and width % heads:
            fit = [str(number) for number in range(1, min(width, 64) + 1) if width % number == 0]
            key = "num_heads" if "num_heads" in args else "embed_dim"
            yield (
                f"model.args.{key}",
                f"{width} features cannot be dealt to {heads} heads: num_heads of {', '.join(fit)} go with them",
            )
            return
    guilty = [name for name in args if _make(config.name, **without[name]) is not None]
    if guilty:
        yield (
            f"model.args.{guilty[-1]}",
            f"timm cannot build {config.name} with {_written(args[guilty[-1]])}: change it, or leave it out",
        )
    elif _make(config.name, **without["img_size"]) is not None:
        near = [n for n in _around(config.image_size) if _make(config.name, **{**given, "img_size": n}) is not None]
        sizes = " or ".join(map(str, near)) or str(config.image_size // 32 * 32 or 32)
        yield (
            "model.image_size",
            f"{config.name} cannot divide images of {config.image_size} pixels into patches: {sizes} fits",
        )
    else:
        yield "model.args", f"timm cannot build {config.name} with these arguments together: leave some of them out"


def _around(size: int) -> list[int]:
    """Return the multiples of 32 that are nearest to a size, below and above."""
    below = size // 32 * 32
    return [n for n in (below, below + 32) if n]
