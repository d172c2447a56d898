"""Overrides from the command line: `--set section.key=value` changes one value of a scenario before it is checked."""

from typing import Any

from pydantic import BaseModel

from splitfed import scenario_presets
from splitfed.scenario_file import Document, Origin, Path, Reader, shown
from splitfed.scenario_schema import Sections, below, kind
from splitfed.scenario_yaml import Unreadable, compose

# Problems of overrides are shown after all lines of the file.
_AFTER_THE_FILE = 10**9


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
    another `kind` drops the keys of the old one. A preset of the compression is written out, see `scenario_presets`.
    Problems are noted in the document."""
    scenario_presets.write_out(document, _AFTER_THE_FILE)
    for i, text in enumerate(overrides):
        shown = " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
        place = text.place if isinstance(text, Change) else f"--set {shown}"
        origin = Origin(_AFTER_THE_FILE + i, place)
        try:
            _apply(document, text, origin, model)
            scenario_presets.write_out(document, _AFTER_THE_FILE)
        except _Refused as e:
            document.refuse(e.path, e.why, origin)
        except Unreadable as e:
            document.refuse((), e.why, origin)


def _apply(document: Document, text: str, origin: Origin, model: type[BaseModel]) -> None:
    name, equals, written = text.partition("=")
    parts = [part.strip() for part in name.split(".")]
    if not equals or not all(parts):
        raise _Refused((), "write it as section.key=value")
    node = compose(written)
    if tuple(parts) == scenario_presets.PRESET:
        scenario_presets.drop_file(document, _AFTER_THE_FILE)
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
