"""What makes pictures fit: ticks that do not run into each other, and legends no wider than the picture."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath
from matplotlib.ticker import FixedFormatter, FixedLocator, LogLocator, MaxNLocator, NullFormatter

MORE = 0.1  # of the length of an axis: so much longer it may be made for a line
_BETWEEN = 4.0  # points between two texts beside each other
_HANDLE, _COLUMN = 2.6, 1.2  # of a legend, in letters: a handle, and the space between columns


def log_axis(axes: Axes, places: Sequence[float]) -> tuple[float, float] | None:
    """Make the horizontal axis logarithmic, for points at these places, before any is drawn; return the limits within
    which a line stretches it little, or not at all, None where there is no point."""
    axes.set_xscale("log")
    if not places or min(places) <= 0:
        return None
    low, high = min(places), max(places)
    if high < 1.0001 * low:
        axes.set_xlim(low / 3, high * 3)  # a single place would have no tick beside it, and no width
        return low / 3, high * 3
    more = (high / low) ** MORE
    return low / more, high * more


def set_ticks(figure: Figure, axes: Axes, text: Callable[[float], str]) -> None:
    """Set the ticks of the horizontal axis, which has its final limits: the first of some good choices whose texts
    differ and have room beside each other."""
    axes.xaxis.set_major_formatter(lambda value, _: text(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure.draw_without_rendering()  # lays it out
    width = 72 / figure.dpi * axes.get_window_extent().width
    low, high = axes.get_xlim()
    best: list[float] = []
    for ticks in _choices(low, high, axes.get_xscale() == "log"):
        if len(best) < len(ticks) <= 6 and _have_room(axes, ticks, [text(tick) for tick in ticks], width):
            best = ticks
        if len(best) >= 3:
            break
    axes.xaxis.set_major_locator(FixedLocator(best))
    axes.xaxis.set_major_formatter(FixedFormatter([text(tick) for tick in best]))


def _choices(low: float, high: float, log: bool) -> Iterator[list[float]]:
    """Yield ticks between the limits, the better ones first."""
    if log:
        for subs in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
            yield _inside(LogLocator(subs=subs, numticks=99).tick_values(low, high), low, high)
        decades = _inside(LogLocator(numticks=99).tick_values(low, high), low, high)
        for step in range(2, len(decades)):
            yield decades[::step]
    for most in (5, 4, 3, 2, 1):
        yield _inside(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high), low, high)


def _inside(ticks: Iterable[float], low: float, high: float) -> list[float]:
    return [float(tick) for tick in ticks if low <= tick <= high]


def _have_room(axes: Axes, ticks: list[float], texts: list[str], width: float) -> bool:
    if len(set(texts)) < len(texts):
        return False
    places = axes.transAxes.inverted().transform(
        axes.transData.transform([(tick, 0.5) for tick in ticks])
    )[:, 0] * width  # fmt: skip
    half = [text_width(text, rcParams["xtick.labelsize"]) / 2 for text in texts]
    return all(right - left >= half[n] + half[n + 1] + _BETWEEN for n, (left, right) in enumerate(pairwise(places)))


def text_width(text: str, size: float) -> float:
    """Return how wide a text is, in points."""
    font = FontProperties(family=rcParams["font.family"], size=size)
    return float(TextToPath().get_text_width_height_descent(text, font, ismath=False)[0])


def columns(labels: list[str], width: float) -> int:
    """Return how many entries of a legend fit into a row of so many inches: two, or one."""
    size = rcParams["legend.fontsize"]
    widest = max((text_width(label, size) for label in labels), default=0.0)
    entry = widest + (_HANDLE + rcParams["legend.handletextpad"]) * size
    around = (2 * rcParams["legend.borderpad"] + 2 * rcParams["legend.borderaxespad"] + _COLUMN) * size
    return 2 if 2 * entry + around <= 72 * width else 1


def add_legend(figure: Figure, axes: Axes) -> None:
    """Put a legend of all that is drawn below the axes."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns(labels, figure.get_figwidth()),
        handlelength=_HANDLE, columnspacing=_COLUMN,
    )  # fmt: skip
