"""Compression sections that were measured, by name: what `compression: {preset: small}` stands for."""

from copy import deepcopy
from typing import Any

_WEIGHTS = {"codec": {"kind": "uniform", "bits": 8}}
# A rotation makes few bits usable, and gradients bear fewer than activations.
_THREE = {"codec": {"kind": "uniform", "bits": 3, "rotation": True, "scale_bits": 16}}
_TWO = {"codec": {"kind": "uniform", "bits": 2, "rotation": True, "scale_bits": 16}}

# Ordered by their bytes, most first. Where each is ahead is measured in docs/results.md, with budgets of 40 to 240 MB.
PRESETS: dict[str, dict[str, Any]] = {
    # All tokens: ahead where bytes are many, and for a model from scratch, which has yet to learn which ones matter.
    "medium": {
        "reducer": {"kind": "none"}, "smashed": _THREE, "cut_gradient": _TWO, "front_weights": _WEIGHTS,
    },
    # Three tokens of ten are hardly looked at: ahead in between.
    "small": {
        "reducer": {"kind": "discard_tokens", "kept_tokens": 0.7},
        "smashed": _THREE, "cut_gradient": _TWO, "front_weights": _WEIGHTS,
    },
    # Half of the tokens: where bytes are few as good as `small`, with less to compute.
    "tiny": {
        "reducer": {"kind": "discard_tokens", "kept_tokens": 0.5},
        "smashed": _THREE, "cut_gradient": _TWO, "front_weights": _WEIGHTS,
    },
}  # fmt: skip


def written_out(section: Any) -> Any:
    """Return a compression section with the settings of its `preset` in place of the name.

    Keys beside it win, one by one; but a section among them that names its `kind` stands as it is written. Anything
    else than a section with a known preset is returned as it is.
    """
    if not isinstance(section, dict) or not isinstance(name := section.get("preset"), str) or name not in PRESETS:
        return section
    return _refined(deepcopy(PRESETS[name]), {key: value for key, value in section.items() if key != "preset"})


def _refined(under: Any, over: Any) -> Any:
    if not isinstance(over, dict) or "kind" in over:
        return over
    if isinstance(under, str):  # a kind, in its short form
        under = {"kind": under}
    return {**under, **{key: _refined(under[key], value) if key in under else value for key, value in over.items()}}
