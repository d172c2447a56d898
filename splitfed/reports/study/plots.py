"""Pictures of a comparison, for a column of a paper: 3.3 inches wide, told apart without colour too.

Four of them: accuracy against the bytes of the cut as they were spent, the same against those of both planes, accuracy
against the factor, and bytes by role. A group has the same label and the same look in each. Where all bytes are shown,
a line stands at what the clients' images weigh: beyond it, sending the images would have cost less. Where that is far
from all that was sent, a mark at the edge points there.
"""

from collections import Counter
from io import BytesIO
from itertools import cycle
from math import inf
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from splitfed.errors import RunError
from splitfed.files import told, write
from splitfed.reports import units
from splitfed.reports.plain import legend_label
from splitfed.reports.study.fitting import MORE, add_legend, columns, log_axis, set_ticks, text_width
from splitfed.reports.study.groups import Axis, Group, Spread, so_far
from splitfed.reports.study.labels import short
from splitfed.reports.study.looks import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    STYLE,
    VERMILION,
    WIDTH,
    YELLOW,
    Look,
    look,
)
from splitfed.reports.study.methods import families, uncompressed
from splitfed.scenario.budget import Counted

NAMES = ("curves", "total", "factors", "roles", "time")
SUFFIXES = (".png", ".pdf", ".svg")

_HEIGHT, _ROW = 2.2, 0.14  # inches: of axes with what they are labelled with, and of a row of a legend
_LABEL = 110.0  # points: half of the width, so that bars have the other
_ALIKE = 1.1  # two sets of images that differ by less have one line
_SLICE = 0.01  # of the width of the axes: less would not be seen
_BOTH_WAYS = (
    "parts", "front_weights", "aux_weights", "back_weights", "tail_weights", "exit_weights", "generator_weights",
)  # fmt: skip
_STACKS = (
    ("smashed", BLUE, ""), ("targets", ORANGE, ""), ("side", VERMILION, ""), ("cut_gradient", SKY, "/////"),
    ("tail_gradient", BLUE, "....."), ("tail_smashed", SKY, "....."),
    ("parts, up", PURPLE, ""), ("parts, down", PURPLE, "/////"),
    ("front_weights, up", GREEN, ""), ("front_weights, down", GREEN, "/////"),
    ("aux_weights, up", ORANGE, "....."), ("aux_weights, down", ORANGE, "/////"),
    ("tail_weights, up", GREEN, "....."), ("tail_weights, down", GREEN, "xxxxx"),
    ("exit_weights, up", PURPLE, "....."), ("exit_weights, down", PURPLE, "xxxxx"),
    ("generator_weights, up", SKY, "++++"), ("generator_weights, down", SKY, "xxxxx"),
    ("back_weights, up", VERMILION, "....."), ("back_weights, down", VERMILION, "/////"),
    ("other", YELLOW, ""), ("wasted", BLACK, ""),
)  # fmt: skip
_NAMES = {name for name, _, _ in _STACKS}


def check_path(path: Path) -> None:
    """Raise RunError unless pictures can be of the kind that a path's suffix says."""
    if path.suffix.lower() not in SUFFIXES:
        raise RunError(f"--out {path}: pictures are named {', '.join(f'*{suffix}' for suffix in SUFFIXES)}")


def draw(groups: list[Group], path: Path, of: Counted = "cut", *, timed: bool = False) -> list[Path]:
    """Write the four pictures beside each other, `figure.png` as `figure-curves.png` (by cut bytes),
    `figure-total.png`, `figure-factors.png` and `figure-roles.png`, and return their paths. Factors are `of` the cut,
    or of both planes (`total`). Where all runs are `timed`, `figure-time.png` is by simulated time. Raises RunError
    where they cannot be written."""
    check_path(path)
    written = []
    with matplotlib.rc_context(STYLE):
        figures = [curves(groups), curves(groups, "total"), factors(groups, of), roles(groups)]
        figures += [curves(groups, "simulated")] if timed else []
        for name, figure in zip(NAMES, figures, strict=False):
            target = path.with_name(f"{path.stem}-{name}{path.suffix}")
            save(figure, target)
            written.append(target)
    return written


def save(figure: Figure, path: Path) -> None:
    """Write a picture, and the folder that it goes to. Raises RunError where it cannot be written."""
    # No date in it: the same runs make the same file.
    metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(path.suffix.lower())
    drawn = BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower(), metadata=metadata)
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write(path, drawn.getvalue())


def short_labels(groups: list[Group]) -> list[str]:
    """Return what groups are called in the pictures, no two alike: their labels, or something shorter."""
    size = STYLE["legend.fontsize"]
    named = [(one.name, one.settings) for one in groups]
    return short([one.label for one in groups], named, lambda text: text_width(text, size) <= _LABEL)


@matplotlib.rc_context(STYLE)
def curves(groups: list[Group], of: Axis = "cut") -> Figure:
    """Draw validation accuracy against cumulative bytes, those of the cut or of both planes, or against simulated time:
    a line for each group, the
    mean over its seeds after each round that all of them have, in a band from the lowest to the highest. Each method
    has its colour and marker. Where nothing crosses the cut, a dotted line stands at the height of the last round;
    among bytes of both planes an upright one stands at what the images weigh. What an interrupted run wasted belongs to
    no round and moves no point."""
    labels, weights = short_labels(groups), _weights(groups) if of == "total" else {}
    figure, axes = _figure([*labels, *weights])
    drawn = [_curve(one, of) for one in groups]
    places = [
        x for points, one in zip(drawn, groups, strict=True) for x, _ in points if of == "simulated" or one.sent(of)
    ]
    within = log_axis(axes, places)
    for one, label, (seen, _), points in zip(groups, labels, _looks(groups), drawn, strict=True):
        if points and of != "simulated" and not one.sent(of):
            axes.axhline(points[-1][1].mean, color=seen.colour, linestyle=":", label=legend_label(label))
            continue
        spent, accuracy = [x for x, _ in points], [y for _, y in points]
        axes.plot(spent, [y.mean for y in accuracy], linestyle=seen.line, label=legend_label(label), **seen.points)
        if len(one.runs) > 1:
            low, high = [y.low for y in accuracy], [y.high for y in accuracy]
            axes.fill_between(spent, low, high, color=seen.colour, alpha=0.2, linewidth=0)
    _mark(axes, weights, within)
    _accuracy_on(axes, "validation accuracy")
    axes.set_xlabel("simulated time" if of == "simulated" else f"{of} bytes sent so far")
    add_legend(figure, axes)
    set_ticks(figure, axes, _time if of == "simulated" else _size)
    return figure


@matplotlib.rc_context(STYLE)
def factors(groups: list[Group], of: Counted = "cut") -> Figure:
    """Draw test accuracy against the factor of the cut, or of both planes with what was wasted, with bars from the
    lowest seed to the highest. A line joins what differs only in numbers of its compression; a dotted one goes on at
    the height of uncompressed runs, and of those without a cut, which have no factor of it."""
    labels, seen = short_labels(groups), _looks(groups)
    figure, axes = _figure(labels)
    log_axis(axes, [_factor(one, of) for one in groups if one.sent(of)])
    for method in dict.fromkeys(method for _, method in seen):
        points = sorted((_factor(one, of), one.accuracy.mean, its.colour)
                        for one, (its, of_method) in zip(groups, seen, strict=True)
                        if of_method == method and one.sent(of))  # fmt: skip
        if len(points) > 1:
            x, y, colours = zip(*points, strict=True)
            axes.plot(x, y, color=colours[0], linewidth=0.7, zorder=1.5)
    for one, label, (its, _) in zip(groups, labels, seen, strict=True):
        accuracy = one.accuracy
        if not one.sent(of):
            axes.axhline(accuracy.mean, color=its.colour, linestyle=":", label=legend_label(label))
            continue
        factor = _factor(one, of)
        axes.plot([factor], [accuracy.mean], linestyle="none", label=legend_label(label), **its.points)
        if len(one.runs) > 1:
            bars = [[accuracy.mean - accuracy.low], [accuracy.high - accuracy.mean]]
            axes.errorbar([factor], [accuracy.mean], bars, fmt="none", ecolor=its.colour, elinewidth=0.7, capsize=1.5,
                          capthick=0.7)  # fmt: skip
        if uncompressed(one.settings):
            axes.axhline(accuracy.mean, color=its.colour, linestyle=":", linewidth=0.7, zorder=1)
    _accuracy_on(axes, "test accuracy")
    axes.set_xlabel(f"{of} factor: uncompressed bytes / sent bytes")
    add_legend(figure, axes)
    set_ticks(figure, axes, lambda value: f"{value:g}x")
    return figure


@matplotlib.rc_context(STYLE)
def roles(groups: list[Group]) -> Figure:
    """Draw total bytes as a bar for each group, the mean over its seeds, stacked by role: plain is sent up, hatched
    comes down; dots are of a tail, or of a back that clients hold. `other` are metrics and framing. A bar is as long as
    its bytes; within it, what is too little to see takes a hundredth of the axes from what is most. An upright line
    stands at what the images weigh."""
    sums = [_by_role(one) for one in groups]
    present = [stack for stack in _STACKS if any(found.get(stack[0]) for found in sums)]
    shown = _seen(sums)
    labels, weights = [name for name, _, _ in present], _weights(groups)
    figure, axes = _figure([*labels, *weights], height=0.55 + 0.19 * len(groups))
    y, left = list(range(len(groups))), [0.0] * len(groups)
    for name, colour, hatch in present:
        width = [found.get(name, 0.0) for found in shown]
        axes.barh(y, width, 0.7, left, label=name, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3)
        left = [before + more for before, more in zip(left, width, strict=True)]
    _mark(axes, weights, (0.0, (1 + MORE) * max(left, default=0.0)))
    axes.set_yticks(y, short_labels(groups))
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.tick_params("y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel("bytes sent, both ways")
    add_legend(figure, axes)
    set_ticks(figure, axes, _size)
    return figure


def _figure(labels: list[str], height: float = _HEIGHT) -> tuple[Figure, Axes]:
    """Return a figure with room for a legend of these labels below its axes."""
    rows = -(-len(labels) // columns(labels, WIDTH))
    figure = Figure((WIDTH, height + _ROW * rows), layout="constrained")
    return figure, figure.add_subplot()


def _weights(groups: list[Group]) -> dict[str, float]:
    """Return what the clients' images weigh, in bytes, by a label: once for groups of about the same, as seeds draw
    others of a data set."""
    sets: list[list[int]] = []
    for weight in sorted(one.images_bytes for one in groups if one.images_bytes):
        if sets and weight < _ALIKE * sets[-1][0]:
            sets[-1].append(weight)
        else:
            sets.append([weight])
    return {f"images: {units.size(round(mean))}": mean for mean in (sum(alike) / len(alike) for alike in sets)}


def _mark(axes: Axes, weights: dict[str, float], within: tuple[float, float] | None) -> None:
    """Draw a line at each weight, and beyond these limits (None: there are none) a mark at the edge that it lies
    beyond."""
    (low, high), height = within or (0.0, inf), 0.5
    for (label, weight), line in zip(weights.items(), cycle(("--", "-.", ":")), strict=False):
        if low <= weight <= high:
            axes.axvline(weight, color=BLACK, linestyle=line, linewidth=0.9, zorder=1.5, label=label)
            continue
        place, marker = (0.0, "<") if weight < low else (1.0, ">")
        at_the_edge = Line2D(
            [place], [height], color=BLACK, linestyle="none", marker=marker, markersize=4, transform=axes.transAxes,
            clip_on=False, label=label,
        )  # fmt: skip
        axes.add_artist(at_the_edge)
        height -= 0.1  # another one stands below it


def _looks(groups: list[Group]) -> list[tuple[Look, int]]:
    """Return the look of each group, and the number of its method."""
    found = {
        id(one): (look(method, setting), method)
        for method, members in enumerate(families(groups)) for setting, one in enumerate(members)
    }  # fmt: skip
    return [found[id(one)] for one in groups]


def _curve(one: Group, of: Axis) -> list[tuple[float, Spread]]:
    """Return mean bytes, or seconds, and the spread of accuracy after each round that all runs have evaluated."""
    rows = [{row.round: row for row in run.rounds if row.eval_accuracy is not None} for run in one.runs]
    shared = sorted(set.intersection(*(set(found) for found in rows)))
    return [
        (
            Spread.of(so_far(found[round], of) for found in rows).mean,
            Spread.of(found[round].eval_accuracy or 0.0 for found in rows),
        )
        for round in shared
    ]


def _factor(one: Group, of: Counted) -> float:
    return one.raw(of) / max(1, one.sent(of))


def _by_role(one: Group) -> dict[str, float]:
    found: Counter[str] = Counter({"wasted": one.mean(lambda s: s.bytes_wasted)})
    for run in one.runs:
        for (_, way, role), sizes in run.totals.sums.items():
            name = f"{role}, {way}" if role in _BOTH_WAYS else role
            found[name if name in _NAMES else "other"] += sizes.sent / len(one.runs)  # type: ignore[assignment]
    return dict(found)


def _seen(sums: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return how wide the slices of each bar are drawn, in bytes."""
    least = _SLICE * max((sum(found.values()) for found in sums), default=0.0)
    shown = []
    for found in sums:
        # A short bar has no room for as much: there it is half of an equal share.
        enough = min(least, sum(found.values()) / (2 * max(1, len(found))))
        wide = {name: max(size, enough) if size else 0.0 for name, size in found.items()}
        most = max(found, key=lambda name: found[name], default="")
        if most:
            wide[most] -= sum(wide.values()) - sum(found.values())
        shown.append(wide)
    return shown


def _accuracy_on(axes: Axes, name: str) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.set_ylabel(name)


def _size(value: float) -> str:
    number, unit = units.size(round(value)).split()
    return f"{float(number):g} {unit}"


def _time(value: float) -> str:
    for unit, seconds in (("h", 3600), ("min", 60)):
        if value >= seconds:
            return f"{value / seconds:g} {unit}"
    return f"{value:g} s"
