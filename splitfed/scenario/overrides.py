"""Overrides from the command line: `--set section.key=value` changes one value of a scenario before it is checked."""

from typing import Any

from pydantic import BaseModel

from splitfed.compression.presets import PRESETS, written_out
from splitfed.config import did_you_mean
from splitfed.scenario.document import Document, Origin, Path, Reader, printable, shown
from splitfed.scenario.problems import Sections, below, kind
from splitfed.scenario.yaml import MOST_DEPTH, TOO_DEEP, Unreadable, compose

# Problems of overrides are shown after all lines of the file.
_AFTER_THE_FILE = 10**9
_LONGEST = 200  # letters of an override that a problem repeats


class Change(str):
    """An override that is written in a file, not on the command line: `place` is `file:line`."""

    place: str

    def __new__(cls, text: str, place: str) -> "Change":
        """Make one of `section.key=value`."""
        change = super().__new__(cls, text)
        change.place = place
        return change


class _Refused(Exception):
    def __init__(self, path: Path, why: str) -> None:
        super().__init__(why)
        self.path, self.why = path, why


def override(document: Document, overrides: list[str], model: type[BaseModel]) -> None:
    """Apply overrides in order. Values are YAML (`3`, `1e-4`, `[1, 2]`, `{kind: adc, ratio: 0.1}`; nothing is null),
    sections that are missing are created, `reducer: adc` becomes a section when one of its keys is set, and setting
    another `kind` drops the keys of the old one. A preset of the compression is written out, see `write_out`.
    Problems are noted in the document."""
    write_out(document, _AFTER_THE_FILE)
    for i, text in enumerate(overrides):
        said = printable(" ".join(text.split()))
        said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
        place = text.place if isinstance(text, Change) else f"--set {said}"
        origin = Origin(_AFTER_THE_FILE + i, place)
        try:
            _apply(document, text, origin, model)
            write_out(document, _AFTER_THE_FILE)
        except _Refused as e:
            document.refuse(e.path, e.why, origin)
        except Unreadable as e:
            document.refuse((), e.why, origin)


def _apply(document: Document, text: str, origin: Origin, model: type[BaseModel]) -> None:
    name, equals, written = text.partition("=")
    parts = [part.strip() for part in name.split(".")]
    if not equals or not all(parts):
        raise _Refused((), "write it as section.key=value")
    if len(parts) > MOST_DEPTH:
        raise _Refused((), TOO_DEEP)
    node = compose(written)
    if tuple(parts) == PRESET:
        drop_file(document, _AFTER_THE_FILE)
    holder, path = _holder(document, parts, origin, (model,))
    key = _key(holder, parts[-1], path)
    path = (*path, key)
    for old in [p for p in document.origins if p[: len(path)] == path]:
        del document.origins[old]
    document.origins[path] = origin
    value = None if node is None else Reader(document, origin.place, origin).read(node, path)
    if key == "kind" and holder.get("kind", value) != value:
        _drop_old_kind(document, holder, path[:-1], origin)
    holder[key] = value


def _holder(document: Document, parts: list[str], origin: Origin, here: Sections) -> tuple[Any, Path]:
    """Return the section or list that holds the last part, and its path."""
    holder: Any = document.data
    path: Path = ()
    for part in parts[:-1]:
        key = _key(holder, part, path)
        here, path = below(here, key), (*path, key)
        value = holder[key] if isinstance(holder, list) else holder.get(key)
        if value is None:
            value = {}
            document.origins[path] = origin
        elif isinstance(value, str) and here and all(kind(section) for section in here):
            value = {"kind": value}
        elif not isinstance(value, dict | list):
            raise _Refused(path, f"is {shown(value)}, not a section that could hold {parts[-1]!r}")
        holder[key] = value
        holder = value
    return holder, path


def _key(holder: Any, part: str, path: Path) -> Any:
    if isinstance(holder, dict):
        return part
    if not part.isdecimal():
        raise _Refused((*path, part), f"the list has no key {part!r}, only items, counted from 0")
    if len(part) > 9 or int(part) >= len(holder):
        raise _Refused((*path, part), f"there is no item {part}, the list has {len(holder)}, counted from 0")
    return int(part)


def _drop_old_kind(document: Document, section: dict[str, Any], path: Path, origin: Origin) -> None:
    # Keys that an override set, before the kind or after it, are meant for the new kind.
    for key in [k for k in section if k != "kind" and document.origin((*path, k)).order < _AFTER_THE_FILE]:
        del section[key]
    document.origins[path] = origin


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
