"""The base of all typed configuration, and the values and hints that several sections share; each component keeps its
own settings in its room."""

import re
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field


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


def as_tuple(value: Any) -> Any:
    """Return a list as a tuple, for fields that must be hashable; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


_SIZE = r"^ *[0-9]*\.?[0-9]+ *([kKmMgGtTpPeE][iI]?)?([bB]|[bB][iI][tT])? *$"


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    size = ByteSize._validate(value, None)  # type: ignore[arg-type]
    if not re.match(_SIZE, value):  # pydantic reads 1,000 as 1
        raise ValueError(f"{value[:40]!r} is no number of bytes: write 130MB, 1.5 GiB or 130000000")
    return size


_Number = Annotated[int, Field(gt=0)]
_Text = Annotated[str, Field(pattern=_SIZE)]
# `130MB`, `1.5 GiB` or a plain number of bytes.
Bytes = Annotated[_Number, BeforeValidator(_size, json_schema_input_type=_Number | _Text)]


def did_you_mean(word: str, known: list[str]) -> str:
    """Return `, did you mean 'x'?`, or nothing when no known word is close."""
    by_lower = {k.lower(): k for k in known}
    close = get_close_matches(word.lower(), list(by_lower), n=1)
    return f", did you mean {by_lower[close[0]]!r}?" if close else ""
