"""Accuracy over a noisy channel drawn: by SNR, a line for each number of symbols, and the other way round."""

from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from splitfed.reports.study.looks import BLUE, GREEN, ORANGE, PURPLE, SKY, STYLE, VERMILION, WIDTH
from splitfed.reports.study.plots import save
from splitfed.reports.tradeoff.noisy import Point
from splitfed.reports.tradeoff.noisy_text import by_ratio

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)
_LINES = ("-", "--", "-.")


@matplotlib.rc_context(STYLE)
def draw(points: list[Point], path: Path) -> None:
    """Draw two pictures side by side into a file; thin dotted lines are digits at the channel's capacity. Raises
    RunError where it cannot be written."""
    figure = Figure(figsize=(2 * WIDTH, 2.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for look, (_, row) in zip(_looks(), by_ratio(points).items(), strict=False):
        _line(left, row, [point.snr for point in row], f"{row[0].symbols:,} symbols an image", look)
    snrs = sorted({point.snr for point in points})
    for look, snr in zip(_looks(), snrs, strict=False):
        column = sorted((point for point in points if point.snr == snr), key=lambda point: point.symbols)
        _line(right, column, [point.per_value for point in column], f"{snr:g} dB", look)
    left.set_ylabel("accuracy")
    left.set_xlabel("signal over noise, dB")
    right.set_xlabel("symbols a pixel value")
    right.set_xlim(left=0)
    for axes in (left, right):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        axes.legend()
    save(figure, path)


def _looks() -> "cycle[tuple[str, str]]":
    return cycle((colour, line) for line in _LINES for colour in _COLOURS)


def _line(axes: Axes, points: list[Point], places: list[float], label: str, look: tuple[str, str]) -> None:
    colour, line = look
    axes.plot(places, [point.accuracy for point in points], line, color=colour, marker="o", label=label)
    digital = [point.digital.accuracy if point.digital else float("nan") for point in points]
    axes.plot(places, digital, ":", color=colour, linewidth=0.6)
