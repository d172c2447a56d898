"""Compression sections that were measured, by name: what `compression: {preset: small}` stands for."""

from copy import deepcopy
from typing import Any

# Ordered by their bytes, most first.
PRESETS: dict[str, dict[str, Any]] = {
    # All tokens, few bits: close to the uncompressed run at a tenth of its bytes.
    "medium": {
        "reducer": {"kind": "none"},
        "smashed": {"codec": {"kind": "uniform", "bits": 4}},
        "cut_gradient": {"codec": {"kind": "uniform", "bits": 3, "rotation": True, "scale_bits": 16}},
        "front_weights": {"codec": {"kind": "uniform", "bits": 8}},
    },
    # Gradients bear fewer bits than activations, and three tokens of ten are hardly looked at.
    "small": {
        "reducer": {"kind": "discard_tokens", "kept_tokens": 0.7},
        "smashed": {"codec": {"kind": "uniform", "bits": 4, "scale": "channel"}},
        "cut_gradient": {"codec": {"kind": "uniform", "bits": 2, "rotation": True, "scale_bits": 16}},
        "front_weights": {"codec": {"kind": "uniform", "bits": 6}},
    },
    # Half of the tokens; a rotation is what makes so few bits usable.
    "tiny": {
        "reducer": {"kind": "discard_tokens", "kept_tokens": 0.5},
        "smashed": {"codec": {"kind": "uniform", "bits": 3, "rotation": True, "scale_bits": 16}},
        "cut_gradient": {"codec": {"kind": "uniform", "bits": 2, "rotation": True, "scale_bits": 16}},
        "front_weights": {"codec": {"kind": "uniform", "bits": 6}},
    },
}


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
