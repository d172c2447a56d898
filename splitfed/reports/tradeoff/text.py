"""The trade-off in words and numbers: what each rate reaches for a part of the bytes of sending every image."""

from rich.table import Table

from splitfed.inference.tradeoff import Measured, Point
from splitfed.reports.tables import new_table, to_csv
from splitfed.reports.units import flops, percent, size

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_CSV = ("rate", "threshold", "share", "bytes", "accuracy", "at_random", "client_operations", "server_operations")


def within(points: list[Point], share: float) -> Point:
    """Return the point of most bytes among those that take no more than this share of the bytes of sending all."""
    most = max(point.bytes for point in points)
    return max((point for point in points if point.bytes <= share * most), key=lambda point: point.bytes)


def table(found: Measured, curves: dict[str, list[Point]]) -> Table:
    """Return a row for each rate: the bytes of an image that is sent, and the accuracy for shares of them, that of as
    many images sent at random in brackets."""
    shares = SHARES if found.blocks else (1.0,)
    made = new_table("rate", ["bytes\nan image", *(f"accuracy\nat {100 * share:.0f} %" for share in shares)])
    for rate, points in curves.items():
        cells = []
        for share in shares:
            point = within(points, share)
            middle = 0 < share < 1 and point.at_random is not None
            cells.append(percent(point.accuracy) + (f" ({percent(point.at_random)})" if middle else ""))
        made.add_row(rate, size(round(max(point.bytes for point in points))), *cells)
    return made


def notes(found: Measured) -> list[str]:
    """Return what the table is to be held against."""
    whole = float(found.whole.float().mean())
    heads = [
        f"exit after block {block}: {percent(float(right.float().mean()))}, {flops(found.operations[block])}"
        for block, right in zip(found.blocks, found.right, strict=True)
    ]
    return [
        f"{len(found):,} images"
        + ("; in brackets: as many for each exit and sent, drawn at random" if found.blocks else ""),
        *heads,
        f"the front alone: {flops(found.operations[-1])}",
        f"the whole model at the client: {percent(whole)}, {flops(found.all_operations)}, nothing sent",
        f"the image sent as it is stored: {percent(whole)}, {size(round(found.stored))}",
    ]


def csv(curves: dict[str, list[Point]]) -> str:
    """Return a row for each point of each rate."""
    rows = [
        dict(
            zip(_CSV, (p.rate, p.threshold, p.share, p.bytes, p.accuracy, p.at_random, p.client, p.server), strict=True)
        )
        for points in curves.values()
        for p in points
    ]
    return to_csv(list(_CSV), rows)
