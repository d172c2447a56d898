"""Figures as people read them, never better than they are: factors and shares are cut off, not rounded up."""

import math
from decimal import ROUND_FLOOR, Decimal

NONE = "-"


def size(count: int) -> str:
    """Return a number of bytes in decimal units, rounded half up: `999 B`, `1.49 MB`."""
    return _scaled(count, "B")


def flops(count: float) -> str:
    """Return a number of floating-point operations in decimal units, rounded half up: `325.31 MFLOP`."""
    return _scaled(round(count), "FLOP")


def _scaled(count: int, of: str) -> str:
    if count < 1000:
        return f"{count} {of}"
    unit, name = 1000, "k"
    for bigger in "MGTPE":
        # Integers only: a float would lose the last bytes, and 999,995 must become 1.00 MB, not 1000.00 kB.
        if _hundredths(count, unit) < 100_000:
            break
        unit, name = unit * 1000, bigger
    whole, rest = divmod(_hundredths(count, unit), 100)
    return f"{whole}.{rest:02d} {name}{of}"


def _hundredths(count: int, unit: int) -> int:
    return (count * 100 + unit // 2) // unit


def duration(seconds: float) -> str:
    """Return a number of seconds: `12.3 s`, `1 min 05 s`, `2 h 03 min`, `1 d 04 h`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(round(seconds / 60), 60)
    if hours < 24:
        return f"{hours} h {rest:02d} min"
    days, rest = divmod(round(seconds / 3600), 24)
    return f"{days} d {rest:02d} h"


def factor(raw: int, sent: int) -> str:
    """Return how many times fewer bytes were sent, cut off: `0.97x`, `9.99x`, `12.3x`; `-` where nothing was sent."""
    if sent <= 0:
        return NONE
    if raw < 10 * sent:
        whole, rest = divmod(raw * 100 // sent, 100)
        return f"{whole}.{rest:02d}x"
    whole, rest = divmod(raw * 10 // sent, 10)
    return f"{whole}.{rest}x"


def percent(share: float | None) -> str:
    """Return a share of 1 in percent, cut off after one digit: `86.1 %`; `-` where there is none."""
    if share is None:
        return NONE
    if not math.isfinite(share):
        return str(float(share))
    # The shortest decimal that means this float: 29 of 100 is 29.0 %, though the float lies a little below it.
    return f"{(Decimal(repr(float(share))) * 100).quantize(Decimal('0.1'), ROUND_FLOOR)} %"


def number(value: float | None) -> str:
    """Return a loss with four decimals, or in powers of ten where those would not show it; `-` where there is none."""
    if value is None:
        return NONE
    if value == 0 or 0.001 <= abs(value) < 1000 or not math.isfinite(value):
        return f"{value:.4f}"
    return f"{value:.1e}"
