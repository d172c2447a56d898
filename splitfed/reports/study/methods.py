"""Methods among runs: what differs only in the numbers of its compression is one method at several strengths."""

import json
from typing import Any

from splitfed.reports.study.groups import Group

_NO_LOSS = "float32"


def families(groups: list[Group]) -> list[list[Group]]:
    """Put groups together that share all settings but numbers under `compression`, in the order given."""
    found: dict[str, list[Group]] = {}
    for one in groups:
        found.setdefault(json.dumps(_method(one.settings), sort_keys=True), []).append(one)
    return list(found.values())


def uncompressed(settings: dict[str, Any]) -> bool:
    """Tell whether nothing that crossed lost anything: no reducer, and float32 for all that was sent, either way,
    weights too. Lossless stages may have made it smaller."""
    roles = ["front_weights"]
    if settings.get("federation.mode") != "fl":
        private = settings.get("federation.labels") == "private"
        roles += ["smashed", "cut_gradient", *(["tail_smashed", "tail_gradient"] if private else ["targets"])]
        if settings.get("compression.reducer.kind") != "none":
            return False
    # As differences even float32 loses the last bits.
    whole = settings.get("compression.front_weights.delta", False) is False
    whole &= not any(key.startswith("compression.front_weights.delta.") for key in settings)
    return whole and all(settings.get(f"compression.{role}.codec.kind") == _NO_LOSS for role in roles)


def _method(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in settings.items() if not (key.startswith("compression.") and _strength(key, value))
    }


def _strength(key: str, value: Any) -> bool:
    """Tell whether a setting says how much is sent, and not how: a number, or the file of weights of that width."""
    return _number(value) or key == "compression.reducer.weights"


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
