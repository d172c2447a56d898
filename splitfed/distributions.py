"""Distributions of seconds that a scenario can name: how late clients are, and how slow."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from splitfed.config import Config
from splitfed.seeds import Key

# Thirty years: whatever is drawn can be added up.
_MOST = 1e9
_Seconds = Annotated[float, Field(ge=0, le=_MOST)]
_Positive = Annotated[float, Field(gt=0, le=_MOST)]


class ConstantSeconds(Config):
    """Always `value` seconds; a plain number means this."""

    kind: Literal["constant"] = "constant"
    value: _Seconds

    def draw(self, key: Key) -> float:
        """Return the value, in seconds."""
        return self.value


class UniformSeconds(Config):
    """Any number of seconds from `low` to `high` alike."""

    kind: Literal["uniform"] = "uniform"
    low: _Seconds
    high: _Seconds

    @model_validator(mode="after")
    def _in_order(self) -> "UniformSeconds":
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g}, more than high, {self.high:g}: change places")
        return self

    def draw(self, key: Key) -> float:
        """Return a number of seconds; the same key gives the same."""
        return float(key.numpy().uniform(self.low, self.high))


class ExponentialSeconds(Config):
    """`mean` seconds on average, mostly less and seldom much more: waiting for what comes at random."""

    kind: Literal["exponential"] = "exponential"
    mean: _Positive

    def draw(self, key: Key) -> float:
        """Return a number of seconds; the same key gives the same."""
        return float(key.numpy().exponential(self.mean))


class LogNormalSeconds(Config):
    """Half are below `median` seconds; the logarithm is normal with the standard deviation `sigma`: with 0.7, one in
    six is twice the median or more."""

    kind: Literal["lognormal"] = "lognormal"
    median: _Positive
    sigma: float = Field(gt=0, le=5)

    def draw(self, key: Key) -> float:
        """Return a number of seconds; the same key gives the same."""
        return self.median * math.exp(self.sigma * float(key.numpy().standard_normal()))


_Any = Annotated[ConstantSeconds | UniformSeconds | ExponentialSeconds | LogNormalSeconds, Field(discriminator="kind")]


def _constant(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if not 0 <= value <= _MOST:
        raise ValueError(f"must be a number of seconds from 0 to {_MOST:g}, not {value:g}")
    return {"kind": "constant", "value": value}


Distribution = Annotated[_Any, BeforeValidator(_constant, json_schema_input_type=_Seconds | _Any)]
