"""Accuracy over a noisy channel in words and numbers: a row for each number of symbols, a column for each SNR."""

from rich.table import Table

from splitfed.inference.tradeoff import Measured
from splitfed.reports.tables import new_table, to_csv
from splitfed.reports.tradeoff.noisy import Point
from splitfed.reports.units import decimal, percent

_CSV = (
    "ratio", "snr", "symbols", "symbols_per_value", "accuracy", "capacity_bytes", "digital", "digital_bytes",
    "digital_accuracy",
)  # fmt: skip


def by_ratio(points: list[Point]) -> dict[float, list[Point]]:
    """Return the points of each ratio, by rising SNR."""
    found: dict[float, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.snr):
        found.setdefault(point.ratio, []).append(point)
    return found


def table(points: list[Point]) -> Table:
    """Return a row for each ratio: the symbols of an image, those of a pixel value, and the accuracy at each SNR, that
    of digits in brackets."""
    rows = by_ratio(points)
    snrs = [point.snr for point in next(iter(rows.values()))]
    heads = ["symbols\nan image", "a pixel\nvalue", *(f"accuracy\nat {snr:g} dB" for snr in snrs)]
    made = new_table("ratio", heads)
    for ratio, row in rows.items():
        cells = [f"{percent(one.accuracy)} ({percent(one.digital.accuracy) if one.digital else '-'})" for one in row]
        made.add_row(f"{ratio:g}", f"{row[0].symbols:,}", decimal(row[0].per_value, 3), *cells)
    return made


def notes(found: Measured) -> list[str]:
    """Return what the table is to be held against."""
    whole = float(found.whole.float().mean())
    return [
        f"{len(found):,} images; in brackets: the best of the same symbols as digits, 2 to 8 bits each, as many as the "
        "channel's capacity carries without error",
        f"the run's own ratio, without noise: {percent(whole)}",
    ]


def csv(points: list[Point]) -> str:
    """Return a row for each point."""
    rows = [
        dict(
            zip(
                _CSV, (p.ratio, p.snr, p.symbols, p.per_value, p.accuracy, p.capacity,
                       *((p.digital.rate, p.digital.bytes, p.digital.accuracy) if p.digital else (None,) * 3)),
                strict=True,
            )
        )
        for p in points
    ]  # fmt: skip
    return to_csv(list(_CSV), rows)
