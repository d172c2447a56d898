"""How what a peer wrote is read: a record by what is declared of each of its fields, a text as one short line.

A field's declaration is its type, with bounds and the key under which it crosses: `Annotated[Whole, Field(le=9,
alias="num-steps")]`. What is not declared is refused.
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from itertools import islice
from reprlib import repr as short
from typing import Annotated, Any, ClassVar, Self, get_type_hints

from pydantic import AllowInfNan, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from splitfed.errors import WireError

MOST_TEXT = 500  # characters of a peer's text that are shown
_MOST_KEYS, _MOST_KEY = 32, 100
_MOST_SHOWN = 40


def _exactly(kind: type) -> BeforeValidator:
    def check(value: Any) -> Any:
        if type(value) is not kind:  # a bool is an int too, and a library may take an int for a float
            raise PydanticCustomError("kind", f"it must be {kind.__name__}")
        return value

    return BeforeValidator(check)


# What a field can be. Nothing becomes another type: Flower's records keep them apart.
Whole = Annotated[int, _exactly(int), Field(ge=0)]
Real = Annotated[float, _exactly(float), AllowInfNan(False)]
Flag = Annotated[bool, _exactly(bool)]
Text = Annotated[str, _exactly(str)]
Blob = Annotated[bytes, _exactly(bytes)]


class Record:
    """A dataclass that crosses as one of Flower's records."""

    __slots__ = ()
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Read a record. Raises WireError for a key that is not declared or is missing, for another type, and for a
        value out of bounds."""
        if len(record) > _MOST_KEYS or any(len(key) > _MOST_KEY for key in record):
            raise WireError(f"it has {len(record)} keys, or long ones: {names(record)}")
        kind: Any = cls
        try:
            return _adapter(kind).validate_python(dict(record))
        except ValidationError as error:
            raise WireError(_told(error, record)) from None

    def items(self) -> dict[str, Any]:
        """Return the values by the keys under which they cross; those that are as if they were not there are left
        out."""
        kind: Any = type(self)
        found = {key: (getattr(self, name), default) for name, (key, default) in _keys(kind).items()}
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, (value, default) in found.items()
            if value != default
        }


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


@cache
def _keys(kind: Any) -> dict[str, tuple[str, Any]]:
    hints = get_type_hints(kind, include_extras=True)
    keys: dict[str, tuple[str, Any]] = {}
    for field in fields(kind):
        declared = getattr(hints[field.name], "__metadata__", ())
        aliases = [one.alias for one in declared if isinstance(one, FieldInfo) and one.alias]
        keys[field.name] = aliases[-1] if aliases else field.name, field.default
    return keys


def _told(error: ValidationError, record: Mapping[str, Any]) -> str:
    """Return the first thing that is wrong with a record."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    key, kind = first["loc"][0], first["type"]
    named = shown(key, _MOST_SHOWN)
    if kind == "unexpected_keyword_argument":
        return f"it has '{named}', which nobody asked for"
    if kind == "missing":
        return f"it has no '{named}'"
    found, why = shown(_value(record.get(str(key))), _MOST_SHOWN), first["msg"]
    return f"its '{named}' is {found}: {why[:1].lower()}{why[1:]}"


def _value(value: Any) -> str:
    """Return a value in few characters, and without making all of them first."""
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, bytes | list) else short(value)


def names(record: Mapping[str, Any]) -> str:
    """Return the names in what a peer sent, as text that can be shown."""
    return shown(", ".join(name[:_MOST_KEY] for name in islice(record, _MOST_KEYS)) or "nothing", 4 * _MOST_SHOWN)


def shown(text: object, most: int = MOST_TEXT) -> str:
    """Return a peer's text as a terminal and a log can bear it: one line of at most so many characters, in which
    whatever is no letter or sign is written as an escape."""
    told = text if isinstance(text, str) else _value(text)
    line = " ".join(told[: 4 * most].split())
    plain = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)
    return plain if len(plain) <= most and len(told) <= 4 * most else plain[: most - 3] + "..."
