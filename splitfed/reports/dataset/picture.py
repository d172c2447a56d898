"""The picture of a partition: how many images of each class each client holds, or beyond 100 clients, how many clients
are how large and how skewed; and below, where clients see their images in ways of their own, an image in each of them.
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from splitfed.reports.dataset.describe import Description
from splitfed.reports.dataset.text import partition_line
from splitfed.reports.study import plots as pictures
from splitfed.reports.study.looks import BLUE, STYLE, VERMILION, WIDTH

MOST_CLIENTS = 100  # of which each has a line that can be told from the next
_SHADES = LinearSegmentedColormap.from_list("images", ["#d0e4f4", BLUE, "#001f33"])
_IN_A_ROW, _SIDE = 6, 0.62  # examples, and what one takes with its name, in inches
_NAMED, _LONGEST = 20, 14  # classes that have room for their names, and letters of one


def draw(one: Description) -> Figure:
    """Draw the partition, for a column of a paper."""
    with matplotlib.rc_context(STYLE):
        return _map(one) if len(one.held) <= MOST_CLIENTS else _distributions(one)


def save(figure: Figure, path: Path) -> None:
    """Write the picture. Raises RunError where it cannot be written."""
    with matplotlib.rc_context(STYLE):
        pictures.save(figure, path)


def _map(one: Description) -> Figure:
    """Draw a line for each client, a column for each class, and the images of a client as a bar beside its line."""
    clients, classes = one.held.shape
    named = classes <= _NAMED
    figure, above = _figure(one, min(4.2, max(1.5, 0.9 + 0.13 * clients)) + 0.3 * named)
    left, right = above.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    # The darker the more, and white where there is none: seen alike with any colour vision, and without.
    held = np.ma.masked_equal(one.held.numpy(), 0)
    drawn = left.imshow(held, aspect="auto", cmap=_SHADES, interpolation="nearest", vmin=0)
    left.grid(False)
    left.spines[:].set_visible(True)
    left.set_ylabel("client")
    if named:
        names = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in one.classes]
        upright = max(map(len, names)) > 2
        left.set_xticks(range(classes), names, rotation=90 if upright else 0)
    else:
        left.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    left.set_xlabel("class")
    left.yaxis.set_major_locator(MaxNLocator(min(10, clients), integer=True))
    if one.views and clients <= _NAMED:
        left.set_yticks(range(clients), [f"{view}  {client}" for client, view in enumerate(one.views)], fontsize=5)
    right.barh(range(clients), one.images.numpy(), 0.8, color=BLUE)
    right.set_ylim(clients - 0.5, -0.5)
    right.tick_params("y", length=0, labelleft=False)
    right.grid(False, axis="y")
    right.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    right.set_xlabel("images")
    label = f"{_title(one)}\nimages of a class"
    bar = above.colorbar(drawn, ax=left, location="top", aspect=40, pad=0.02, label=label)
    bar.outline.set_linewidth(0.4)
    bar.ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def _distributions(one: Description) -> Figure:
    """Draw how many clients hold how many images, how many classes, and how skewed their classes are."""
    figure, above = _figure(one, 3.6)
    axes: list[Axes] = list(above.subplots(3, 1))
    distances = one.distances.numpy()
    _histogram(axes[0], one.images.numpy(), "images of a client")
    _histogram(axes[1], one.kinds.numpy(), f"classes of a client, of {len(one.classes)}")
    _histogram(axes[2], distances[~np.isnan(distances)], "label skew: distance from all images' shares, 0 to 1")
    axes[2].set_xlim(0, 1)
    axes[0].set_title(_title(one), fontsize=7)
    return figure


def _figure(one: Description, height: float) -> tuple[Figure, Figure | SubFigure]:
    """Return a figure and its upper part, of so many inches; below are the examples, if there are any."""
    if not one.examples:
        figure = Figure((WIDTH, height), layout="constrained")
        return figure, figure
    rows = -(-len(one.examples) // _IN_A_ROW)
    figure = Figure((WIDTH, height + rows * _SIDE), layout="constrained")
    parts: np.ndarray = figure.subfigures(2, 1, squeeze=False, height_ratios=(height, rows * _SIDE))
    above, below = parts.ravel()
    axes = below.subplots(rows, _IN_A_ROW, squeeze=False).ravel()
    for place in axes:
        place.axis("off")
    for place, (name, image) in zip(axes, one.examples.items(), strict=False):
        place.imshow(image)
        place.set_title(name, fontsize=5, pad=2)
    return figure, above


def _histogram(axes: Axes, values: np.ndarray, name: str) -> None:
    if values.dtype.kind == "i":  # bins of whole numbers, all as wide
        width = max(1, -(-(int(values.max()) - int(values.min()) + 1) // 40))
        bins = np.arange(int(values.min()), int(values.max()) + width + 1, width) - 0.5
    else:
        bins = np.linspace(0, 1, 51)
    axes.hist(values, bins.tolist(), color=BLUE, edgecolor="white", linewidth=0.2)
    axes.axvline(float(np.median(values)), color=VERMILION, linestyle="--", linewidth=0.9, label="median")
    axes.legend(loc="best", handlelength=1.6)
    axes.set_xlabel(name)
    axes.set_ylabel("clients")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=values.dtype.kind == "i"))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _title(one: Description) -> str:
    return f"{one.scenario.name}: {partition_line(one)}, {len(one.held):,} clients"
