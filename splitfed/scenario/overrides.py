"""Overrides from the command line: `--set section.key=value` changes one value of a scenario before it is checked,
`--preset` the settings that all others refine."""

import json
from typing import Any

from pydantic import BaseModel

from splitfed.scenario import presets
from splitfed.scenario.document import Document, Origin, Path, Reader, printable, shown
from splitfed.scenario.problems import Sections, below, kind
from splitfed.scenario.yaml import MOST_DEPTH, TOO_DEEP, Unreadable, compose

# Problems of overrides are shown after all lines of the file.
_AFTER_THE_FILE = 10**9
_LONGEST = 200  # letters of an override that a problem repeats


class Change(str):
    """An override that is not written after `--set`: `place` is `file:line`, or what it is on the command line."""

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


def named(preset: str | None) -> list[str]:
    """Return the override that names a preset in place of the file's; nothing where there is none."""
    return [] if preset is None else [Change(f"{presets.KEY}={json.dumps(preset)}", f"--preset {_short(preset)}")]


def override(document: Document, overrides: list[str], model: type[BaseModel]) -> None:
    """Apply overrides in order. Values are YAML (`3`, `1e-4`, `[1, 2]`, `{kind: adc, ratio: 0.1}`; nothing is null),
    sections that are missing are created, `reducer: adc` becomes a section when one of its keys is set, and setting
    another `kind` drops the keys of the old one. A preset is written out before, below what the file says; the last one
    that `named` or a sweep names takes the file's place in all keys that any preset sets. Problems are noted in the
    document."""
    chosen = [text for text in overrides if _names_preset(text)]
    if chosen:
        presets.drop(document)
        # Its settings count as written in the file, so that another kind drops the keys of theirs.
        _try(document, chosen[-1], _AFTER_THE_FILE - 1, model)
    known = presets.write_out(document)
    for i, text in enumerate(overrides):
        if not _names_preset(text):
            _try(document, text, _AFTER_THE_FILE + i, model)
    if presets.refuse_old_place(document) or not known:
        presets.drop(document)  # what these refine is anyone's guess


def _try(document: Document, text: str, order: int, model: type[BaseModel]) -> None:
    """Apply one override, or note what is wrong with it."""
    place = text.place if isinstance(text, Change) else f"--set {_short(text)}"
    origin = Origin(order, place)
    try:
        _apply(document, text, origin, model)
    except _Refused as e:
        document.refuse(e.path, e.why, origin)
    except Unreadable as e:
        document.refuse((), e.why, origin)


def _short(text: str) -> str:
    said = printable(" ".join(text.split()))
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."


def _names_preset(text: str) -> bool:
    return isinstance(text, Change) and text.partition("=")[0].strip() == presets.KEY


def _apply(document: Document, text: str, origin: Origin, model: type[BaseModel]) -> None:
    name, equals, written = text.partition("=")
    parts = [part.strip() for part in name.split(".")]
    if not equals or not all(parts):
        raise _Refused((), "write it as section.key=value")
    if len(parts) > MOST_DEPTH:
        raise _Refused((), TOO_DEEP)
    if parts == [presets.KEY] and not isinstance(text, Change):
        raise _Refused((presets.KEY,), f"is not set but named: write --preset {_short(written)}")
    node = compose(written)
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
