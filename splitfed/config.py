"""The base of all typed configuration; each component keeps its own config class beside it."""

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Config(BaseModel):
    """A frozen section of a scenario: unknown keys are refused and nothing is converted behind the user's back."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _expand(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


# Lets a scenario write `reducer: none` for `reducer: {kind: none}`.
kind_shorthand = BeforeValidator(_expand)
