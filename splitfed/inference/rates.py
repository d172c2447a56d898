"""What an image may be sent as: the run's own reducer and codec, or others, by name."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from splitfed.compression.reducers.settings import JsccConfig, SemanticTokensConfig
from splitfed.errors import SplitfedError
from splitfed.scenario.presets import PRESETS
from splitfed.scenario.problems import first

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
_BITS = (2, 3, 4, 6, 8)


@dataclass(frozen=True, slots=True)
class Rate:
    """A named way to send: what of `compression` concerns it."""

    name: str
    compression: "Compression"

    @property
    def budget(self) -> float | None:
        """The share of patch tokens that gates in the front let through at this rate; None where there are none."""
        reducer = self.compression.reducer
        return reducer.budget if isinstance(reducer, SemanticTokensConfig) else None


def one_by_one(compression: "Compression") -> bool:
    """Tell whether an image can be sent by itself: nothing merges it with others."""
    return compression.reducer.single or compression.reducer.ragged


@dataclass(frozen=True, slots=True)
class OverChannel(Rate):
    """A way to send symbols, `ratio` of them for each feature of a token: through noise at `snr` decibels, or without
    any where that is None, as rounded numbers that a code for the channel carries."""

    ratio: float
    snr: float | None


def rates(own: "Compression", named: Sequence[str] = ()) -> list[Rate]:
    """Return the ways to send that are `named`: `run` is the run's own, a preset goes by its name, and others are
    written as `NAME={reducer: ..., smashed: ...}`; what they leave out is the run's own. Of none, the run's own and the
    usual ones, which keep its reducer where that has layers. Raises SplitfedError for what is none, and for a reducer
    of other layers than the run's."""
    if not named:
        alone = [_own(own)] if one_by_one(own) else []
        return [*alone, *_usual(own)]
    found = [_rate(own, text) for text in named]
    if len({rate.name for rate in found}) < len(found):
        raise SplitfedError("--rate: two have the same name")
    return found


def over_channel(own: "Compression", snrs: Sequence[float], ratios: Sequence[float]) -> list[OverChannel]:
    """Return the ways to send symbols of `jscc`: each of these ratios (of none, the run's own and, where it drew some,
    half of that and so on) at each of these decibels; and with numbers in few bits, without noise. Raises SplitfedError
    where the run has no such layers, or not for as many symbols."""
    reducer = own.reducer
    if not isinstance(reducer, JsccConfig):
        raise SplitfedError(
            f"--snr: the run sends no symbols, for its compression.reducer is {reducer.kind}: name a run with jscc"
        )
    found = []
    for ratio in dict.fromkeys(ratios or _halves(reducer)):
        if not 0 < ratio <= reducer.most:
            raise SplitfedError(f"--ratio {ratio:g}: the run's layers are for ratios above 0, up to {reducer.most:g}")
        for snr in dict.fromkeys(snrs):
            keys = {"reducer": _at(reducer, ratio, snr), "smashed": {"codec": "float32", "lossless": "none"}}
            name = f"--snr {snr:g}"
            found.append(OverChannel(f"{ratio:g} at {snr:g} dB", _with(own, name, keys), ratio, snr))
        for bits in _BITS:
            codec = {"kind": "uniform", "bits": bits, "scale": "tensor", "rounding": "nearest"}
            keys = {"reducer": _at(reducer, ratio, None), "smashed": {"codec": codec, "lossless": "none"}}
            found.append(OverChannel(f"{ratio:g} in {bits} bits", _with(own, "--ratio", keys), ratio, None))
    return found


def _at(reducer: JsccConfig, ratio: float, snr: float | None) -> dict[str, Any]:
    return {**reducer.settled().model_dump(), "ratio": ratio, "snr": snr}


def _halves(reducer: JsccConfig) -> Iterator[float]:
    least = reducer.drawn_ratio[0] if reducer.drawn_ratio is not None else reducer.ratio
    ratio = reducer.most
    while ratio >= least:
        yield ratio
        ratio /= 2


def _own(own: "Compression") -> Rate:
    return Rate("run", own.model_copy(update={"reducer": own.reducer.settled()}))


def _usual(own: "Compression") -> Iterator[Rate]:
    for name, keys in USUAL.items():
        if not (own.reducer.layered or own.reducer.ragged):
            yield Rate(name, _with(own, name, keys))
        elif keys["reducer"] == "none":
            yield Rate(name, _with(own, name, {**keys, "reducer": own.reducer.settled().model_dump()}))


def _rate(own: "Compression", text: str) -> Rate:
    if text == "run":
        return _own(own)
    if text in PRESETS:
        return Rate(
            text, _with(own, f"--rate {text}", {k: v for k, v in PRESETS[text]["compression"].items() if k in _KEYS})
        )
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
    return Rate(name, _with(own, f"--rate {name}", keys))


def _with(own: "Compression", option: str, keys: dict[str, Any]) -> "Compression":
    said = own.model_dump()
    for key, value in keys.items():
        section = key != "reducer" and isinstance(value, dict)
        said[key] = {**said[key], **value} if section else value
    try:
        made = type(own).model_validate(said)
    except ValidationError as error:
        raise SplitfedError(f"{option}: compression.{first(error, type(own), said)}") from None
    if not made.reducer.serves(own.reducer):
        raise SplitfedError(
            f"{option}: {made.reducer.kind}, with these keys, has not the layers that the run was trained with: its "
            f"reducer is {own.reducer.kind}; name that, with the keys of its layers as they are there"
        )
    return made.model_copy(update={"reducer": made.reducer.settled()})
