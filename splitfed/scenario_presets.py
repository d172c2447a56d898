"""The preset of a scenario's compression, written out before anything is checked, so that what a run keeps is complete.

`--set compression.preset=X` puts the preset in place of the file's section. What other overrides set of it refines the
preset, whether they come before or after.
"""

from typing import Any

from splitfed.compression.presets import PRESETS, written_out
from splitfed.scenario_file import Document, Origin, Path, shown
from splitfed.scenario_schema import did_you_mean

SECTION = ("compression",)
PRESET = ("compression", "preset")


def write_out(document: Document, first_override: int) -> None:
    """Put the settings of a preset in the place of its name; an unknown one is noted as a problem. What comes from the
    preset counts as written in the file (its order is below `first_override`), where the preset is named."""
    section = document.data.get(SECTION[0])
    if not isinstance(section, dict) or (name := section.get(PRESET[1])) is None:
        return
    if not isinstance(name, str) or name not in PRESETS:
        known = list(PRESETS)
        close = did_you_mean(name, known) if isinstance(name, str) else ""
        document.refuse(PRESET, f"unknown preset {shown(name)}, known: {', '.join(map(repr, known))}{close}")
        document.data[SECTION[0]] = {}  # what the other keys refine is anyone's guess
        return
    named = document.origin(PRESET)
    whole = document.data[SECTION[0]] = written_out(section)
    _note(document, whole, section, SECTION, Origin(min(named.order, first_override - 1), named.place))


def drop_file(document: Document, first_override: int) -> None:
    """Drop what the file, or a preset, says of the compression; what overrides have set of it stays."""
    section = document.data.get(SECTION[0])
    document.data[SECTION[0]] = _overridden(document, section, SECTION, first_override)
    for path in [p for p, origin in document.origins.items() if p[:1] == SECTION and origin.order < first_override]:
        del document.origins[path]


def _overridden(document: Document, value: Any, path: Path, first_override: int) -> dict[str, Any]:
    kept = {}
    for key, inner in value.items() if isinstance(value, dict) else ():
        at = (*path, key)
        if at in document.origins and document.origins[at].order >= first_override:
            kept[key] = inner
        elif some := _overridden(document, inner, at, first_override):
            kept[key] = some
    return kept


def _note(document: Document, whole: dict[str, Any], own: dict[str, Any], path: Path, origin: Origin) -> None:
    """Note the origin of everything in a section that is not the user's own."""
    for key, value in whole.items():
        if key not in own:
            document.origins[*path, key] = origin
        elif isinstance(value, dict) and isinstance(own[key], dict):
            _note(document, value, own[key], (*path, key), origin)
