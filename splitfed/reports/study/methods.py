"""Methods among runs: what differs only in the numbers of its compression is one method at several strengths."""

import json
from typing import Any

from splitfed.reports.study.groups import Group, distinct

UNCOMPRESSED = "uncompressed"
WHOLE = "fl"  # the mode without a cut


def families(groups: list[Group]) -> dict[str, list[Group]]:
    """Put groups together that share all settings but numbers under `compression`, in the order given, under a name for
    each: its reducer and its codec, and whatever else tells it from another of the same name."""
    found: dict[str, list[Group]] = {}
    for one in groups:
        found.setdefault(json.dumps(_method(one.settings), sort_keys=True), []).append(one)
    named = [(_name(members[0]), _method(members[0].settings)) for members in found.values()]
    return dict(zip(distinct(named), found.values(), strict=True))


def _method(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in settings.items() if not (key.startswith("compression.") and _strength(key, value))
    }


def _strength(key: str, value: Any) -> bool:
    """Tell whether a setting says how much is sent, and not how: a number, or the file of weights of that width."""
    return _number(value) or key == "compression.reducer.weights"


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _name(one: Group) -> str:
    if one.settings.get("federation.mode") == WHOLE:
        return WHOLE
    reducer, codec = (one.settings.get(f"compression.{part}.kind") for part in ("reducer", "smashed.codec"))
    if reducer is None:
        return one.label
    parts = [part for part, nothing in ((reducer, "none"), (codec, "float32")) if part not in (nothing, None)]
    return " + ".join(parts) or UNCOMPRESSED
