"""Quantities of links and devices as a scenario writes them: `5Mbit`, `60ms`, `0.1%`, `5GFLOPS`."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

# From the slowest modem to more than any cable carries: nothing that follows from them overflows.
LEAST_RATE, MOST_RATE = 1e3, 1e12
# Thirty years: whatever is drawn can be added up.
MOST_SECONDS = 1e9
MOST_LATENCY, MOST_LOSS = 60.0, 0.2

_NUMBER = r"([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)"
_TIMES_OF = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}
_RATE = re.compile(rf" *{_NUMBER} *([kKmMgGtT]?)(?:bit|bps|bit/s) *")
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_TIME = re.compile(rf" *{_NUMBER} *(us|ms|s|min|h) *")
_PERCENT = re.compile(rf" *{_NUMBER} *% *")
_RATE_WAY = "write 5Mbit, or 5000000 for as many bits a second"
_TIME_WAY = "write 60ms, or 0.06 for as many seconds"
_LOSS_WAY = "write 0.1%, or 0.001"
_SPEED = re.compile(rf" *{_NUMBER} *([kKmMgGtTpP]?)(?:FLOPS|FLOP/s) *")
_SPEED_WAY = "write 5GFLOPS, or 5e9 for as many operations a second"
LEAST_SPEED, MOST_SPEED = 1e3, 1e18


def _read(pattern: re.Pattern[str], units: Mapping[str, float], what: str, way: str, low: float, high: float) -> Any:
    def read(value: Any) -> Any:
        number = value
        if isinstance(value, str):
            if not (found := pattern.fullmatch(value)):
                raise ValueError(f"{value[:40]!r} is no {what}: {way}")
            number = float(found[1]) * units[found[2].lower() if len(found.groups()) > 1 else ""]
        if isinstance(number, bool) or not isinstance(number, int | float):
            return value  # pydantic says what it is
        number = min(max(number, -1e300), 1e300)  # a whole number may be too long for a float
        if not low <= number <= high:
            raise ValueError(f"must be a {what} from {low:g} to {high:g}, not {number:g}: {way}")
        return float(number)

    return read


def _quantity(read: Callable[[Any], Any], pattern: re.Pattern[str], low: float, high: float) -> Any:
    number = Annotated[float, Field(ge=low, le=high)]
    text = Annotated[str, Field(pattern=f"^{pattern.pattern}$")]
    return Annotated[float, BeforeValidator(read, json_schema_input_type=number | text)]


read_rate = _read(_RATE, _TIMES_OF, "rate in bits a second", _RATE_WAY, LEAST_RATE, MOST_RATE)
read_seconds = _read(_TIME, _TIMES, "number of seconds", _TIME_WAY, 0.0, MOST_SECONDS)
_read_latency = _read(_TIME, _TIMES, "number of seconds", _TIME_WAY, 0.0, MOST_LATENCY)
_read_loss = _read(_PERCENT, {"": 0.01}, "share of packets", _LOSS_WAY, 0.0, MOST_LOSS)

_read_speed = _read(_SPEED, _TIMES_OF, "number of operations a second", _SPEED_WAY, LEAST_SPEED, MOST_SPEED)

# `5Mbit`, `1.5 Gbit/s`, `250kbps` or a plain number of bits a second.
Rate = _quantity(read_rate, _RATE, LEAST_RATE, MOST_RATE)
# `90s`, `2min` or a plain number of seconds.
Seconds = _quantity(read_seconds, _TIME, 0, MOST_SECONDS)
# `60ms`, a minute at most.
Latency = _quantity(_read_latency, _TIME, 0, MOST_LATENCY)
# `0.1%` or a plain share, a fifth at most.
Loss = _quantity(_read_loss, _PERCENT, 0, MOST_LOSS)
# `5GFLOPS` or a plain number of operations a second.
Speed = _quantity(_read_speed, _SPEED, LEAST_SPEED, MOST_SPEED)
