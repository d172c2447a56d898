"""The base of all typed configuration, and the values and hints that several sections share; each component keeps its
own settings in its room."""

import re
from difflib import SequenceMatcher, get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from splitfed.errors import SplitfedError


class Config(BaseModel):
    """A frozen section of a scenario: unknown keys are refused and nothing is converted behind the user's back. What a
    key means stands in a docstring under it, which the JSON schema and `splitfed list` show."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)


class Broken(ValueError):
    """What a section breaks of the rules between its keys: pairs of a key, such as `server.optimiser`, and a reason."""

    def __init__(self, *problems: tuple[str, str]) -> None:
        super().__init__("; ".join(f"{key}: {why}" for key, why in problems))
        self.problems = problems


def _expand(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


# Lets a scenario write `reducer: none` for `reducer: {kind: none}`.
kind_shorthand = BeforeValidator(_expand)


def read_option(option: str, said: Any, section: Any) -> Any:
    """Read what is said as an option: a section of keys, written as YAML where it is text. Raises SplitfedError, a line
    that names option and key, for what it cannot be."""
    import yaml

    try:
        keys = yaml.safe_load(said) if isinstance(said, str) else said
        return TypeAdapter(section).validate_python(keys)
    except yaml.YAMLError as error:
        raise SplitfedError(f"{option}: is no YAML: {' '.join(str(error).split())[:120]}") from None
    except ValidationError as error:
        first = error.errors()[0]
        known = getattr(section, "model_fields", {})
        where = ".".join(str(part) for part in first["loc"])
        why = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            why = f"unknown key{did_you_mean(str(first['loc'][-1]), list(known))}"
        elif first["type"] == "union_tag_invalid":
            why = f"unknown kind {first['ctx']['tag']!r}, known: {first['ctx']['expected_tags']}"
        elif first["type"] in ("model_type", "model_attributes_type", "union_tag_not_found"):
            why = "write a kind by its name, or keys as {key: value, ...}"
        if isinstance(first["input"], int | float | str) and why.startswith("Input should"):
            why = f"{why.replace('Input should', 'must', 1)}, not {first['input']!r}"
        raise SplitfedError(f"{option}: {where}{': ' if where else ''}{why}") from None


def as_tuple(value: Any) -> Any:
    """Return a list as a tuple, for fields that must be hashable; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


_SIZE = r"^ *[0-9]*\.?[0-9]+ *([kKmMgGtTpPeE][iI]?)?([bB]|[bB][iI][tT])? *$"


BYTE_UNITS = "units are B, kB, MB, GB, TB, PB, EB and KiB, MiB, GiB, TiB, PiB, EiB"


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        if not re.match(_SIZE, value):  # pydantic reads 1,000 as 1
            raise ValueError
        return ByteSize._validate(value, None)  # type: ignore[arg-type]
    except (ValueError, OverflowError, PydanticCustomError):
        negative = " below zero" if value.strip().startswith("-") else ""
        raise ValueError(
            f"{value[:40]!r} is no number of bytes{negative}: write 130MB, 1.5 GiB or 130000000; {BYTE_UNITS}"
        ) from None


_Number = Annotated[int, Field(gt=0)]
_Text = Annotated[str, Field(pattern=_SIZE)]
# `130MB`, `1.5 GiB` or a plain number of bytes.
Bytes = Annotated[_Number, BeforeValidator(_size, json_schema_input_type=_Number | _Text)]


_MOST_MEANT = 4


def did_you_mean(word: str, known: list[str]) -> str:
    """Return `, did you mean 'x'?`, with all words that begin so, or else all that are as close as the closest; nothing
    where no known word is close."""
    typed, by_lower = word.lower(), {k.lower(): k for k in known}
    found = [one for one in by_lower if len(typed) > 1 and one.startswith(typed)]
    if not 0 < len(found) <= _MOST_MEANT:
        close = get_close_matches(typed, list(by_lower), n=_MOST_MEANT)
        found = [one for one in by_lower if one in close and _likeness(one, typed) == _likeness(close[0], typed)]
    names = [repr(by_lower[one]) for one in found]
    return f", did you mean {' or '.join(filter(None, [', '.join(names[:-1]), names[-1]]))}?" if names else ""


def _likeness(one: str, typed: str) -> float:
    return SequenceMatcher(None, one, typed).ratio()
