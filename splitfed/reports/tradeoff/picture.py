"""The trade-off drawn: accuracy against bytes, and against a client's operations, a line for each rate."""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from splitfed.inference.tradeoff import Measured, Point
from splitfed.reports import units
from splitfed.reports.plain import legend_label
from splitfed.reports.study.looks import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, STYLE, VERMILION, WIDTH
from splitfed.reports.study.plots import save

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)
_LINES = ("-", "--", "-.", ":")


@matplotlib.rc_context(STYLE)
def draw(found: Measured, curves: dict[str, list[Point]], path: Path) -> None:
    """Draw two pictures side by side into a file. Thin dotted lines are as many images sent at random, the mark is the
    whole model: with the image sent as it is stored, and with nothing sent. Raises RunError where it cannot be
    written."""
    figure = Figure(figsize=(2 * WIDTH, 2.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    whole = float(found.whole.float().mean())
    looks = zip(cycle(_COLOURS), (line for line in _LINES for _ in _COLOURS), strict=False)
    for (rate, points), (colour, line) in zip(curves.items(), looks, strict=False):
        ordered = sorted(points, key=lambda point: point.bytes)
        mark = "o" if len(points) == 1 else ""
        left.plot(
            [p.bytes for p in ordered], [p.accuracy for p in ordered], line, color=colour, marker=mark,
            label=legend_label(rate),
        )  # fmt: skip
        if all(p.at_random is not None for p in points):
            left.plot([p.bytes for p in ordered], [p.at_random for p in ordered], ":", color=colour, linewidth=0.6)
        ordered = sorted(points, key=lambda point: point.client)
        right.plot([p.client for p in ordered], [p.accuracy for p in ordered], line, color=colour, marker=mark)
    left.plot([found.stored], [whole], "*", color=BLACK, label="the image, as it is stored")
    right.plot([found.all_operations], [whole], "*", color=BLACK)
    left.set_ylabel("accuracy")
    left.set_xlabel("bytes an image")
    right.set_xlabel("operations an image at the client")
    for axes, name in ((left, lambda count: units.size(round(count))), (right, lambda count: units.flops(count))):
        _finish(axes, name)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save(figure, path)


def _finish(axes: Axes, name: Callable[[float], str]) -> None:
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: name(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
