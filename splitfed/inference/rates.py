"""What an image may be sent as: the run's own reducer and codec, or others, by name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from splitfed.errors import SplitfedError
from splitfed.scenario.presets import PRESETS

if TYPE_CHECKING:
    from splitfed.scenario.compression import Compression

_THREE = PRESETS["medium"]["compression"]["smashed"]["codec"]
# What is measured beside the run's own where nothing is named.
USUAL: dict[str, dict[str, Any]] = {
    "8 bits": {"reducer": "none", "smashed": {"codec": {"kind": "uniform", "bits": 8}}},
    "3 bits": {"reducer": "none", "smashed": {"codec": _THREE}},
    "3 bits, half the tokens": {
        "reducer": {"kind": "discard_tokens", "kept_tokens": 0.5}, "smashed": {"codec": _THREE},
    },
}  # fmt: skip
_KEYS = ("reducer", "smashed")


@dataclass(frozen=True, slots=True)
class Rate:
    """A named way to send: what of `compression` concerns it."""

    name: str
    compression: "Compression"


def one_by_one(compression: "Compression") -> bool:
    """Tell whether an image can be sent by itself: nothing merges it with others."""
    return compression.reducer.single or compression.reducer.ragged


def rates(own: "Compression", named: Sequence[str] = ()) -> list[Rate]:
    """Return the ways to send that are `named`: `run` is the run's own, a preset goes by its name, and others are
    written as `NAME={reducer: ..., smashed: ...}`; what they leave out is the run's own. Of none, the run's own and the
    usual ones. Raises SplitfedError for what is none."""
    if not named:
        alone = [Rate("run", own)] if one_by_one(own) else []
        return [*alone, *(Rate(name, _with(own, name, keys)) for name, keys in USUAL.items())]
    found = [_rate(own, text) for text in named]
    if len({rate.name for rate in found}) < len(found):
        raise SplitfedError("--rate: two have the same name")
    return found


def _rate(own: "Compression", text: str) -> Rate:
    if text == "run":
        return Rate(text, own)
    if text in PRESETS:
        return Rate(text, _with(own, text, {k: v for k, v in PRESETS[text]["compression"].items() if k in _KEYS}))
    name, equals, said = text.partition("=")
    if not equals or not re.fullmatch(r"[\w .,+-]+", name):
        raise SplitfedError(f"--rate {text}: write run, {', '.join(PRESETS)}, or NAME={{reducer: ..., smashed: ...}}")
    try:
        keys = yaml.safe_load(said)
    except yaml.YAMLError as error:
        raise SplitfedError(f"--rate {name}: is no YAML: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(keys, dict) or not keys or set(keys) - set(_KEYS):
        raise SplitfedError(
            f"--rate {name}: takes the keys {' and '.join(_KEYS)} of compression, as a scenario has them"
        )
    return Rate(name, _with(own, name, keys))


def _with(own: "Compression", name: str, keys: dict[str, Any]) -> "Compression":
    said = own.model_dump()
    for key, value in keys.items():
        section = key != "reducer" and isinstance(value, dict)
        said[key] = {**said[key], **value} if section else value
    try:
        return type(own).model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
        raise SplitfedError(f"--rate {name}: compression.{where}: {first['msg']}") from None
