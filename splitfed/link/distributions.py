"""What is drawn from the seed for each client: seconds, and rates."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from splitfed.config import Config
from splitfed.link.quantities import (
    LEAST_RATE,
    MOST_RATE,
    Rate,
    Seconds,
    read_rate,
    read_seconds,
)
from splitfed.seeds import Key


class ConstantSeconds(Config):
    """Always `value` seconds; a plain number means this."""

    kind: Literal["constant"] = "constant"
    value: Seconds
    """The number of seconds."""

    def draw(self, key: Key) -> float:
        """Return the value, in seconds."""
        return self.value


class UniformSeconds(Config):
    """Any number of seconds from `low` to `high` alike."""

    kind: Literal["uniform"] = "uniform"
    low: Seconds
    """The fewest seconds."""
    high: Seconds
    """The most seconds."""

    @model_validator(mode="after")
    def _in_order(self) -> "UniformSeconds":
        _check_order(self.low, self.high)
        return self

    def draw(self, key: Key) -> float:
        """Return a number of seconds; the same key gives the same."""
        return float(key.numpy().uniform(self.low, self.high))


class ExponentialSeconds(Config):
    """Mostly less than the mean, and seldom much more: waiting for what comes at random."""

    kind: Literal["exponential"] = "exponential"
    mean: Annotated[Seconds, Field(gt=0)]
    """Seconds on average."""

    def draw(self, key: Key) -> float:
        """Return a number of seconds; the same key gives the same."""
        return float(key.numpy().exponential(self.mean))


class LogNormalSeconds(Config):
    """Seconds whose logarithm is normal: never below zero, and now and then many times the median."""

    kind: Literal["lognormal"] = "lognormal"
    median: Annotated[Seconds, Field(gt=0)]
    """Seconds that half of the draws are below."""
    sigma: float = Field(gt=0, le=5)
    """Standard deviation of the natural logarithm: with 0.7, one in six is twice the median or more."""

    def draw(self, key: Key) -> float:
        """Return a number of seconds; the same key gives the same."""
        return self.median * math.exp(self.sigma * float(key.numpy().standard_normal()))


class ConstantRate(Config):
    """Always `value` bits a second; a rate alone, such as 5Mbit, means this."""

    kind: Literal["constant"] = "constant"
    value: Rate
    """Bits a second, such as 5Mbit."""

    def draw(self, key: Key) -> float:
        """Return the value, in bits a second."""
        return self.value


class UniformRate(Config):
    """Any rate from `low` to `high` alike."""

    kind: Literal["uniform"] = "uniform"
    low: Rate
    """The slowest rate."""
    high: Rate
    """The fastest rate."""

    @model_validator(mode="after")
    def _in_order(self) -> "UniformRate":
        _check_order(self.low, self.high)
        return self

    def draw(self, key: Key) -> float:
        """Return a number of bits a second; the same key gives the same."""
        return float(key.numpy().uniform(self.low, self.high))


class LogNormalRate(Config):
    """Rates whose logarithm is normal, as those of real lines about are: some are many times the median, or a small
    part of it."""

    kind: Literal["lognormal"] = "lognormal"
    median: Rate
    """The rate that half of the draws are below."""
    sigma: float = Field(gt=0, le=5)
    """Standard deviation of the natural logarithm: with 0.7, one in six is twice the median or more, and as many half
    of it or less."""

    def draw(self, key: Key) -> float:
        """Return a number of bits a second; the same key gives the same."""
        drawn = self.median * math.exp(self.sigma * float(key.numpy().standard_normal()))
        return min(max(drawn, LEAST_RATE), MOST_RATE)


def _check_order(low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"low is {low:g}, more than high, {high:g}: change places")


def _constant_seconds(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return {"kind": "constant", "value": read_seconds(value)}
    return value


def _constant_rate(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return {"kind": "constant", "value": read_rate(value)}
    return value


_AnySeconds = Annotated[
    ConstantSeconds | UniformSeconds | ExponentialSeconds | LogNormalSeconds, Field(discriminator="kind")
]
_AnyRate = Annotated[ConstantRate | UniformRate | LogNormalRate, Field(discriminator="kind")]

SecondsDrawn = Annotated[_AnySeconds, BeforeValidator(_constant_seconds, json_schema_input_type=Seconds | _AnySeconds)]
RateDrawn = Annotated[_AnyRate, BeforeValidator(_constant_rate, json_schema_input_type=Rate | _AnyRate)]
