"""The base of all typed configuration; each component keeps its own config class beside it."""

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Config(BaseModel):
    """A frozen section of a scenario: unknown keys are refused and nothing is converted behind the user's back."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Misplaced(ValueError):
    """A problem that a validator of a whole section finds with one `key` in it, such as `server.optimiser`."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(why)
        self.key = key


def _expand(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


# Lets a scenario write `reducer: none` for `reducer: {kind: none}`.
kind_shorthand = BeforeValidator(_expand)
