"""Figures as people read and round them: half goes up. Of a budget alone, nothing that is left is rounded away."""

import math
from decimal import ROUND_HALF_UP, Decimal

NONE = "-"
_NOISE = Decimal("1e-12")  # what the last bits of a float may be off by, where the number is
_PRECISE = 1000


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
    if seconds < 59.95:
        return f"{decimal(seconds, 1)} s"
    minutes, rest = divmod(_whole(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(_whole(seconds / 60), 60)
    if hours < 24:
        return f"{hours} h {rest:02d} min"
    days, rest = divmod(_whole(seconds / 3600), 24)
    return f"{days} d {rest:02d} h"


def factor(raw: int, sent: int) -> str:
    """Return how many times fewer bytes were sent: `0.97x`, `9.99x`, `12.3x`; `-` where nothing was sent."""
    if sent <= 0:
        return NONE
    # Integers only, as for sizes; 9.995 is 10.0x, as everything from 10 on has one digit.
    hundredths = (200 * raw + sent) // (2 * sent)
    if hundredths < 1000:
        return f"{hundredths // 100}.{hundredths % 100:02d}x"
    tenths = (20 * raw + sent) // (2 * sent)
    return f"{tenths // 10}.{tenths % 10}x"


def times(count: int, of: int | None) -> str:
    """Return how many times something is contained: `29 times`, `2.88 times`, `0.6 times`, `0.042 times`; nearest to
    once it is `1.0 times` to the byte alone, more is `1.01 times` and less `0.99 times`; `-` for nothing known."""
    return _times(Decimal(count) / Decimal(of)) + " times" if of else NONE


def contained(factor: float | None) -> str:
    """Return how many times something is contained as a table shows it: `29x`, `0.6x`, by the rules of `times`; `-`
    where nothing tells."""
    return NONE if factor is None else f"{_times(_meant(factor))}x"


def _times(exact: Decimal) -> str:
    if exact >= Decimal("9.995"):
        return f"{_whole(exact):,}"
    digits = 2 if exact >= Decimal("0.0995") or not exact else 1 - exact.adjusted()
    near = exact.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    if near == 1 != exact:
        near += Decimal("0.01") if exact > 1 else Decimal("-0.01")
    whole, _, rest = f"{near:f}".partition(".")
    return f"{whole}.{rest.rstrip('0') or '0'}"


def percent(share: float | None) -> str:
    """Return a share of 1 in percent, with one digit: `86.2 %`; `-` where there is none."""
    if share is None:
        return NONE
    return f"{decimal(100 * _meant(share), 1)} %" if math.isfinite(share) else str(float(share))


def spent(count: int, budget: int | None) -> str:
    """Return how much of a budget is spent, in percent. It is `100.0 %` to the byte alone: 99.96 % is `99.9 %`, for
    there is room left, and 100.04 % is `100.1 %`, for it was not kept; `-` without a budget."""
    if not budget:
        return NONE
    thousandths = 1000 * count // budget if count < budget else -(-1000 * count // budget)
    return f"{thousandths // 10}.{thousandths % 10} %"


def number(value: float | None) -> str:
    """Return a loss with four decimals, or in powers of ten where those would not show it; `-` where there is none."""
    if value is None:
        return NONE
    if value == 0 or 0.001 <= abs(value) < 1000:
        return decimal(value, 4)
    return f"{value:.1e}" if math.isfinite(value) else str(float(value))


def decimal(value: float | Decimal, digits: int) -> str:
    """Return a finite number with so many decimals, the last one rounded half up (away from zero)."""
    return str(_meant(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def _whole(value: float | Decimal) -> int:
    return int(decimal(value, 0))


def _meant(value: float | Decimal) -> Decimal:
    """Return the number that a float stands for: 0.4375, where a mean or a sum left 0.43749999999999994."""
    exact = value if isinstance(value, Decimal) else Decimal(repr(float(value)))
    return exact.quantize(_NOISE) if abs(exact) < _PRECISE else exact
