"""What people read is rounded as they round: half up, by an exact count."""

import math
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitfed.reports import units

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15, "EB": 10**18}


def half_up(exact: Fraction, digits: int) -> Fraction:
    """The nearest number of so many decimals, the upper one of two that are as near."""
    return Fraction(math.floor(exact * 10**digits + Fraction(1, 2)), 10**digits)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1.00 kB"), (1004, "1.00 kB"), (1005, "1.01 kB"),
        (999_994, "999.99 kB"), (999_995, "1.00 MB"), (1_490_000, "1.49 MB"), (126_000_000, "126.00 MB"),
        (999_999_999, "1.00 GB"), (10**15, "1.00 PB"), (5 * 10**21, "5000.00 EB"),
    ],
)  # fmt: skip
def test_size(count: int, text: str) -> None:
    assert units.size(count) == text


@given(st.integers(1, 10**20))
def test_size_is_within_half_of_its_last_digit(count: int) -> None:
    figure, unit = units.size(count).split()
    step = Fraction(UNITS[unit], 1 if unit == "B" else 100)
    assert abs(Fraction(figure) * UNITS[unit] - count) <= step / 2
    assert Fraction(figure) > 0
    assert len(figure) <= 6 or unit == "EB", "six characters are what the columns of a round have room for"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (12.34, "12.3 s"), (12.25, "12.3 s"), (59.94, "59.9 s"), (59.97, "1 min 00 s"),
        (65, "1 min 05 s"), (62.5, "1 min 03 s"), (3599.4, "59 min 59 s"), (3599.6, "1 h 00 min"),
        (7380, "2 h 03 min"), (86399, "1 d 00 h"), (100_800, "1 d 04 h"),
    ],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("raw", "sent", "text"),
    [
        (0, 0, "-"), (7, 0, "-"), (1, 1, "1.00x"), (998, 1000, "1.00x"), (994, 1000, "0.99x"), (995, 1000, "1.00x"),
        (9994, 1000, "9.99x"), (9995, 1000, "10.0x"), (10, 1, "10.0x"), (1235, 100, "12.4x"), (1234, 100, "12.3x"),
        (12_399, 10, "1239.9x"), (0, 5, "0.00x"),
    ],
)  # fmt: skip
def test_factor(raw: int, sent: int, text: str) -> None:
    assert units.factor(raw, sent) == text


@given(st.integers(0, 10**18), st.integers(1, 10**18))
def test_factor_is_the_nearest_to_the_quotient(raw: int, sent: int) -> None:
    shown = Fraction(units.factor(raw, sent).removesuffix("x"))
    assert shown == half_up(Fraction(raw, sent), 2 if shown < 10 else 1)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "-"), (0.0, "0.0 %"), (1.0, "100.0 %"), (0.29, "29.0 %"), (0.57, "57.0 %"), (0.89972, "90.0 %"),
        (7 / 16, "43.8 %"), (0.43749999999999994, "43.8 %"), (0.99999, "100.0 %"), (1.0325, "103.3 %"),
        (1e-9, "0.0 %"), (math.nan, "nan"), (math.inf, "inf"),
    ],
)  # fmt: skip
def test_percent(share: float | None, text: str) -> None:
    assert units.percent(share) == text


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_percent_is_the_nearest_to_the_share_counted(pair: tuple[int, int]) -> None:
    right, of = pair
    assert Fraction(units.percent(right / of).removesuffix(" %")) == half_up(Fraction(100 * right, of), 1)


@pytest.mark.parametrize(
    ("count", "budget", "text"),
    [
        (5, None, "-"), (0, 3, "0.0 %"), (1, 3, "33.3 %"), (2, 3, "66.6 %"), (9996, 10_000, "99.9 %"),
        (10**18 - 1, 10**18, "99.9 %"), (10**18, 10**18, "100.0 %"), (10**18 + 1, 10**18, "100.1 %"),
    ],
)  # fmt: skip
def test_a_budget_is_never_said_to_have_room_or_to_be_kept_where_it_is_not(
    count: int, budget: int | None, text: str
) -> None:
    assert units.spent(count, budget) == text


@given(st.integers(0, 10**12), st.integers(1, 10**12))
def test_a_budgets_percent_stands_on_its_side_of_a_hundred(count: int, budget: int) -> None:
    shown, true = Fraction(units.spent(count, budget).removesuffix(" %")), Fraction(100 * count, budget)
    assert (shown < 100, shown > 100) == (true < 100, true > 100)
    assert abs(shown - true) < Fraction(1, 10)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0.0000"), (2.30259, "2.3026"), (0.03125, "0.0313"), (0.0004, "4.0e-04"), (12345.6, "1.2e+04"),
     (math.nan, "nan"), (math.inf, "inf"), (999.99999, "1000.0000"), (-2.30255, "-2.3026")],
)  # fmt: skip
def test_number(value: float | None, text: str) -> None:
    assert units.number(value) == text


@given(st.decimals(-(10**6), 10**6, places=5), st.integers(0, 4))
def test_a_decimal_is_rounded_as_python_rounds_half_up(exact: Decimal, digits: int) -> None:
    wanted = exact.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    assert Decimal(units.decimal(float(exact), digits)) == wanted
