"""Says in plain words, and at a line of the file, what validation found wrong with a scenario."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import ErrorDetails

from splitfed.compression.plugins import UNUSABLE
from splitfed.config import Broken, did_you_mean
from splitfed.scenario.document import Document, Path, shown

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


M = TypeVar("M", bound=BaseModel)


def valid_part(model: type[M], data: dict[str, Any]) -> M:
    """Return a section with those of its fields that are valid by themselves; it lacks the others, and reading one of
    them is an AttributeError."""
    valid: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        try:
            given = {name: data[name]} if name in data else {}
            valid[name] = getattr(_alone(model, name).model_validate(given), name)
        except ValidationError:
            # Of sections by name, such as profiles, there is no valid part: who reads one would miss the others.
            inside = () if get_origin(field.annotation) is dict else sections(field.annotation)
            if len(inside) == 1 and isinstance(data.get(name), dict):
                valid[name] = valid_part(inside[0], data[name])
    part = model.model_construct(**valid)
    for name in model.model_fields.keys() - valid.keys():
        part.__dict__.pop(name, None)  # its default, which is not what was written
    return part


@cache
def _alone(model: type[BaseModel], name: str) -> type[BaseModel]:
    """Return a section with one field of another."""
    field: dict[str, Any] = {name: (model.model_fields[name].annotation, model.model_fields[name])}
    return create_model(name, __config__=ConfigDict(strict=True), **field)


@dataclass(frozen=True)
class Location:
    """Where a validation error points: its path in the file, the section around it (one class), the other kinds that
    this section could be of, and what may stand at the path itself."""

    path: Path
    section: type[BaseModel] | None
    others: Sections
    inside: Sections


def locate(model: type[BaseModel], location: Path, data: Any) -> Location:
    """Turn pydantic's location into a path of the file: the kinds of unions and the names of types are in the former
    but not in the latter."""
    here: Sections = (model,)
    around: Sections = here
    others: Sections = ()
    path: Path = ()
    named = False  # whether the next part is a name of the user's own, of one of several such sections
    for i, part in enumerate(location):
        if named and _is_key(data, part):
            data, around, path, named = data[part], here, (*path, part), False
            continue
        tagged = [section for section in here if len(here) > 1 and kind(section) == part]
        if tagged:
            here, others = (tagged[0],), tuple(s for s in here if s is not tagged[0])
        elif _is_key(data, part) or any(part in s.model_fields for s in here):
            data = data[part] if _is_key(data, part) else None
            named = any(_is_mapping(section, part) for section in here)
            around, here, path = here, below(here, part), (*path, part)
            if i < len(location) - 1:
                others = ()
    return Location(path, around[0] if around else None, others, here)


def _is_mapping(section: type[BaseModel], key: str | int) -> bool:
    field = section.model_fields.get(key) if isinstance(key, str) else None
    return field is not None and get_origin(field.annotation) is dict and bool(sections(field.annotation))


def _is_key(data: Any, part: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


# What a value must be, by the type of the error; several of them at one key are joined with "or".
_MUST_BE = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_unicode": "text of valid characters",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a section",
    "mapping_type": "a section",
    "model_type": "a section",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "none_required": "null",
    "path_type": "a path",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
}


def note(
    error: ValidationError, document: Document, model: type[BaseModel], rules: Iterable[tuple[str, str]] = ()
) -> None:
    """Add every problem of a validation error to the document, one line per key; beside them the keys, each with the
    reason, that break `rules`."""
    known = {problem.path for problem in document.problems if problem.path}
    for path, errors in _by_place(error, model, document.data, rules).items():
        if any(path[: len(k)] == k for k in known):
            continue
        origin = document.origin(path)
        kind_at = (*path, "kind")
        if errors[0][0]["type"] in ("union_tag_invalid", UNUSABLE) and kind_at in document.origins:
            origin = document.origins[kind_at]
        document.refuse(path, _why(errors, _value(document.data, path)), origin)


def first(error: ValidationError, model: type[BaseModel], data: Any) -> str:
    """Return the key of the first problem that `data` has as a section of this `model`, and the reason, in the words of
    a scenario's problems: `reducer.budget: must be greater than 0, not 0`."""
    path, errors = next(iter(_by_place(error, model, data).items()))
    return f"{'.'.join(map(str, path))}: {_why(errors, _value(data, path))}"


_Errors = list[tuple[ErrorDetails, Location]]


def _by_place(
    error: ValidationError, model: type[BaseModel], data: Any, rules: Iterable[tuple[str, str]] = ()
) -> dict[Path, _Errors]:  # fmt: skip
    """Return the problems of each key that has some, but for what only follows from others."""
    found: dict[Path, _Errors] = {}
    for details in (*_details(error), *(_of_rule((), key, why) for key, why in rules)):
        place = locate(model, details["loc"], data)
        found.setdefault(place.path, []).append((details, place))
    # Where the kind itself is wrong, what the other keys should be is anyone's guess.
    guesses = {path[:-1] for path in found if path and path[-1] == "kind"}

    def follows(path: Path, errors: _Errors) -> bool:
        if path and path[-1] != "kind" and path[:-1] in guesses:
            return True
        # Of a union of a section and something else, what is wrong inside the section tells more; and of items, what is
        # wrong with each: pydantic counts those alone that are right.
        inside = any(len(other) > len(path) and other[: len(path)] == path for other in found)
        return inside and all(
            one["type"].endswith("_type") or _long_enough(one, _value(data, path)) for one, _ in errors
        )

    return {path: errors for path, errors in found.items() if not follows(path, errors)}


def _long_enough(details: ErrorDetails, value: Any) -> bool:
    return (
        details["type"] == "too_short"
        and isinstance(value, list | tuple | dict)
        and len(value) >= details["ctx"]["min_length"]
    )


def _details(error: ValidationError) -> Iterator[ErrorDetails]:
    """Yield the problems of an error; one by one those that a whole section has with its keys."""
    for details in error.errors(include_url=False):
        why = details.get("ctx", {}).get("error")
        if isinstance(why, Broken):
            yield from (_of_rule(details["loc"], *problem) for problem in why.problems)
        else:
            yield details


def _of_rule(section: Path, key: str, why: str) -> ErrorDetails:
    return {"type": "value_error", "loc": (*section, *key.split(".")), "msg": why, "input": None, "ctx": {"error": why}}


def _why(errors: list[tuple[ErrorDetails, Location]], value: Any) -> str:
    # Of a union, say what is wrong in the branch whose type fits; only if none fits, list all types.
    fits = [e for e in errors if not e[0]["type"].endswith("_type")]
    no_word = not isinstance(value, str) and all(details["type"] == "literal_error" for details, _ in fits)
    telling = errors if no_word or not fits else fits
    must_be = [_MUST_BE[e["type"]].format(**e.get("ctx", {})) for e, _ in telling if e["type"] in _MUST_BE]
    if not must_be or telling[0][1].path[-1:] == ("kind",):
        return "; ".join(dict.fromkeys(_one(details, place, value) for details, place in telling))
    if "a number" in must_be:
        must_be = [noun for noun in must_be if noun != "a whole number"]
    why = f"must be {' or '.join(dict.fromkeys(must_be))}, not {shown(value)}"
    if isinstance(value, str):
        words = [w for e, _ in errors if e["type"] == "literal_error" for w in _quoted(e["ctx"]["expected"])]
        why += did_you_mean(value, words)
    return why


def _one(details: ErrorDetails, place: Location, value: Any) -> str:
    context = details.get("ctx", {})
    match details["type"]:
        case "extra_forbidden":
            return _unknown_key(place)
        case "missing":
            way = getattr(place.section, "missing", {}).get(place.path[-1]) if place.path else None
            return "is missing" + (f": {way}" if way else "")
        case "union_tag_not_found":
            return f"'kind' is missing: one of {_listed(_kinds(place))}"
        case "union_tag_invalid":
            return _unknown_kind(str(context["tag"]), _quoted(context["expected_tags"]), place)
        case "literal_error":
            return _unknown_kind(details["input"], _quoted(context["expected"]), place)
        case "model_attributes_type":
            return f"must be one of {_listed(_kinds(place))} or a section of such a kind, not {shown(value)}"
        case "value_error" | "assertion_error":
            return str(context["error"])
        case "invalid_key":
            return "a key must be text"
    message = re.sub(r"^(Input|Value|String|List|Tuple|Dictionary) should ", "must ", details["msg"])
    return message[:1].lower() + message[1:].replace(" after validation", "")


def _unknown_kind(tag: Any, known: list[str], place: Location) -> str:
    hint = did_you_mean(str(tag), known)
    if not hint and place.path[-1:] in (("reducer",), ("codec",)):
        hint = ", and no installed package brings it"
    return f"unknown kind {shown(tag)}, known: {_listed(known)}{hint}"


def _unknown_key(place: Location) -> str:
    key = str(place.path[-1])
    known = list(place.section.model_fields) if place.section else []
    if why := getattr(place.section, "refused", {}).get(key):
        return f"cannot be set: {why}"
    if close := did_you_mean(key, known):
        return f"unknown key{close}"
    own = kind(place.section) if place.section else None
    homes = [k for other in place.others if key in other.model_fields and (k := kind(other))]
    if homes:
        return f"unknown key for kind {own!r}, it belongs to {_listed(homes)}"
    known = [k for k in known if k != "kind"]
    where = "here" if own is None else f"for kind {own!r}"
    return f"unknown key {where}, " + (f"known: {_listed(known)}" if known else "it has no keys")


def _kinds(place: Location) -> list[str]:
    return [k for section in place.inside if (k := kind(section))]


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(repr(word) for word in words)


def _value(data: Any, path: Path) -> Any:
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data
