"""Looks into the typed sections of a scenario: which keys stand where, and which kinds a section can be of."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel

from splitfed.scenario_file import Path

Sections = tuple[type[BaseModel], ...]


def sections(annotation: Any) -> Sections:
    """Return the section classes that an annotation allows: several where a section is discriminated by kind."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return tuple(found for part in get_args(annotation) for found in sections(part))


def kind(section: type[BaseModel]) -> str | None:
    """Return the kind that a section class stands for, or None."""
    field = section.model_fields.get("kind")
    return next(iter(get_args(field.annotation)), None) if field else None


def below(here: Sections, key: str | int) -> Sections:
    """Return what may stand under a key of any of these sections."""
    return tuple(
        found
        for section in here
        if isinstance(key, str) and key in section.model_fields
        for found in sections(section.model_fields[key].annotation)
    )


@dataclass(frozen=True)
class Place:
    """Where a validation error points: its path in the file, the section around it (one class), the other kinds that
    this section could be of, and what may stand at the path itself."""

    path: Path
    section: type[BaseModel] | None
    others: Sections
    inside: Sections


def locate(model: type[BaseModel], location: Path, data: Any) -> Place:
    """Turn pydantic's location into a path of the file: the kinds of unions and the names of types are in the former
    but not in the latter."""
    here: Sections = (model,)
    around: Sections = here
    others: Sections = ()
    path: Path = ()
    for i, part in enumerate(location):
        tagged = [section for section in here if len(here) > 1 and kind(section) == part]
        if tagged:
            here, others = (tagged[0],), tuple(s for s in here if s is not tagged[0])
        elif _is_key(data, part) or any(part in s.model_fields for s in here):
            data = data[part] if _is_key(data, part) else None
            around, here, path = here, below(here, part), (*path, part)
            if i < len(location) - 1:
                others = ()
    return Place(path, around[0] if around else None, others, here)


def _is_key(data: Any, part: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


def did_you_mean(word: str, known: list[str]) -> str:
    """Return `, did you mean 'x'?`, or nothing when no known word is close."""
    by_lower = {k.lower(): k for k in known}
    close = get_close_matches(word.lower(), list(by_lower), n=1)
    return f", did you mean {by_lower[close[0]]!r}?" if close else ""
