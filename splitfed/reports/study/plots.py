"""Pictures of a comparison, for a column of a paper: 3.3 inches wide, told apart without colour too.

Three of them: accuracy against bytes as they were spent, accuracy against the factor, and bytes by role. Bytes are
those of the cut, or those of both planes. Colours are those of Okabe and Ito, which people with any colour vision can
tell apart.
"""

from collections import Counter
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from splitfed.errors import RunError
from splitfed.reports import units
from splitfed.reports.plain import PLAIN_STYLE, legend_label
from splitfed.reports.study.groups import Counted, Group, Spread, so_far
from splitfed.reports.study.methods import UNCOMPRESSED, families

NAMES = ("curves", "factors", "roles")
SUFFIXES = (".png", ".pdf", ".svg")

WIDTH, _HEIGHT, _ROW = 3.3, 2.2, 0.14
BLUE, VERMILION, _GREEN, _PURPLE, ORANGE, _SKY, _BLACK, _YELLOW = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442",
)  # fmt: skip
# A method's colour and marker: 7 and 9, so that 63 methods differ in one of them. Yellow is too light for lines.
_METHODS = list(zip(
    (BLUE, VERMILION, _GREEN, _PURPLE, ORANGE, _SKY, _BLACK) * 9, ("o", "s", "^", "D", "v", "P", "X", "<", ">") * 7,
    strict=True,
))  # fmt: skip
# The settings of one method, in their order: a line and whether markers are filled.
_MEMBERS = (("-", "full"), ("--", "none"), (":", "full"), ("-.", "none"))
_BOTH_WAYS = ("parts", "front_weights", "back_weights", "tail_weights")
_STACKS = (
    ("smashed", BLUE, ""), ("targets", ORANGE, ""), ("side", VERMILION, ""), ("cut_gradient", _SKY, "/////"),
    ("tail_gradient", BLUE, "....."), ("tail_smashed", _SKY, "....."),
    ("parts, up", _PURPLE, ""), ("parts, down", _PURPLE, "/////"),
    ("front_weights, up", _GREEN, ""), ("front_weights, down", _GREEN, "/////"),
    ("tail_weights, up", _GREEN, "....."), ("tail_weights, down", _GREEN, "xxxxx"),
    ("back_weights, up", VERMILION, "....."), ("back_weights, down", VERMILION, "/////"),
    ("other", _YELLOW, ""), ("wasted", _BLACK, ""),
)  # fmt: skip
_NAMES = {name for name, _, _ in _STACKS}
STYLE: Any = {
    "font.size": 7, "axes.labelsize": 7, "xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "legend.fontsize": 6.5,
    "font.family": "sans-serif", "axes.linewidth": 0.6, "lines.linewidth": 0.9, "lines.markersize": 2.8,
    "lines.markeredgewidth": 0.7,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.minor.width": 0.4, "xtick.minor.size": 1.5,
    "xtick.major.size": 2.5, "ytick.major.size": 2.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.linewidth": 0.4, "grid.color": "#dddddd", "axes.axisbelow": True, "hatch.linewidth": 0.4,
    "legend.frameon": False, "savefig.dpi": 300, "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "splitfed",
    "axes.unicode_minus": False, **PLAIN_STYLE,
}  # fmt: skip


def check_path(path: Path) -> None:
    """Raise RunError unless pictures can be of the kind that a path's suffix says."""
    if path.suffix.lower() not in SUFFIXES:
        raise RunError(f"--out {path}: pictures are named {', '.join(f'*{suffix}' for suffix in SUFFIXES)}")


def draw(groups: list[Group], path: Path, of: Counted = "cut") -> list[Path]:
    """Write the three pictures beside each other, `figure.png` as `figure-curves.png`, `figure-factors.png` and
    `figure-roles.png`, and return their paths. The first two are `of` the cut, or of both planes (`total`). Raises
    RunError where they cannot be written."""
    check_path(path)
    written = []
    with matplotlib.rc_context(STYLE):
        for name, figure in zip(NAMES, (curves(groups, of), factors(groups, of), roles(groups)), strict=True):
            target = path.with_name(f"{path.stem}-{name}{path.suffix}")
            save(figure, target)
            written.append(target)
    return written


def save(figure: Figure, path: Path) -> None:
    """Write a picture, and the folder that it goes to. Raises RunError where it cannot be written."""
    # No date in it: the same runs make the same file.
    metadata = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(path.suffix.lower())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata=metadata)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from error


def curves(groups: list[Group], of: Counted = "cut") -> Figure:
    """Draw validation accuracy against cumulative bytes, those of the cut or of both planes: a line for each group, the
    mean over its seeds after each round that all of them have, in a band from the lowest to the highest. Each method
    has its colour and marker. Where nothing crosses the cut, a dotted line stands at the height of the last round. What
    an interrupted run wasted belongs to no round and moves no point."""
    figure, axes = _figure([one.label for one in groups])
    for (colour, marker), members in zip(_METHODS, families(groups).values(), strict=False):
        for one, (line, fill) in zip(members, cycle(_MEMBERS), strict=False):
            points, label = _curve(one, of), legend_label(one.label)
            if not one.sent(of):
                axes.axhline(points[-1][1].mean, color=colour, linestyle=":", label=label)
                continue
            spent, accuracy = [x for x, _ in points], [y for _, y in points]
            face = "white" if fill == "none" else colour
            axes.plot(spent, [y.mean for y in accuracy], line, color=colour, marker=marker, mfc=face, label=label)
            if len(one.runs) > 1:
                low, high = [y.low for y in accuracy], [y.high for y in accuracy]
                axes.fill_between(spent, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    _decades(axes, _short)
    _accuracy_on(axes, "validation accuracy")
    axes.set_xlabel(f"{of} bytes sent so far")
    _legend(figure, axes)
    return figure


def factors(groups: list[Group], of: Counted = "cut") -> Figure:
    """Draw test accuracy against the factor of the cut, or of both planes with what was wasted, with bars from the
    lowest seed to the highest. A line joins what differs only in numbers of its compression; a dotted one goes on at
    the height of uncompressed runs, and of those without a cut, which have no factor of it."""
    found = families(groups)
    figure, axes = _figure(list(found))
    for (colour, marker), (name, members) in zip(_METHODS, found.items(), strict=False):
        label = legend_label(name)
        if not members[0].sent(of):
            axes.axhline(members[0].accuracy.mean, color=colour, linestyle=":", label=label)
            continue
        points = sorted(((_factor(one, of), one.accuracy) for one in members), key=lambda point: point[0])
        x, y = [factor for factor, _ in points], [accuracy.mean for _, accuracy in points]
        axes.plot(x, y, color=colour, marker=marker, label=label)
        if any(len(one.runs) > 1 for one in members):
            below, above = [a.mean - a.low for _, a in points], [a.high - a.mean for _, a in points]
            axes.errorbar(x, y, [below, above], fmt="none", ecolor=colour, elinewidth=0.7, capsize=1.5, capthick=0.7)
        if name.startswith(UNCOMPRESSED):
            axes.axhline(y[0], color=colour, linestyle=":", linewidth=0.7, zorder=1)
    axes.set_xscale("log")
    _decades(axes, lambda value: f"{value:g}x")
    _accuracy_on(axes, "test accuracy")
    axes.set_xlabel(f"{of} factor: uncompressed bytes / sent bytes")
    _legend(figure, axes)
    return figure


def roles(groups: list[Group]) -> Figure:
    """Draw total bytes as a bar for each group, the mean over its seeds, stacked by role: plain is sent up, hatched
    comes down; dots are of a tail, or of a back that clients hold. `other` are metrics and framing."""
    sums = [_by_role(one) for one in groups]
    present = [stack for stack in _STACKS if any(found.get(stack[0]) for found in sums)]
    figure, axes = _figure([name for name, _, _ in present], height=0.55 + 0.19 * len(groups))
    y, left = list(range(len(groups))), [0.0] * len(groups)
    for name, colour, hatch in present:
        width = [found.get(name, 0.0) for found in sums]
        axes.barh(y, width, 0.7, left, label=name, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3)
        left = [before + more for before, more in zip(left, width, strict=True)]
    axes.set_yticks(y, [one.label for one in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.tick_params("y", length=0)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.set_xlabel("bytes sent, both ways")
    _legend(figure, axes)
    return figure


def _figure(labels: list[str], height: float = _HEIGHT) -> tuple[Figure, Axes]:
    """Return a figure with room for a legend of these labels below its axes."""
    rows = -(-len(labels) // _columns(labels))
    figure = Figure((WIDTH, height + _ROW * rows), layout="constrained")
    return figure, figure.add_subplot()


def _columns(labels: list[str]) -> int:
    """Return how many entries of a legend fit into a row."""
    return 1 if max(map(len, labels), default=0) > 26 else 2


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=_columns(labels), handlelength=2.6, columnspacing=1.2
    )


def _curve(one: Group, of: Counted) -> list[tuple[float, Spread]]:
    """Return mean bytes and the spread of accuracy after each round that all runs have evaluated."""
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


def _decades(axes: Axes, text: Callable[[float], str]) -> None:
    low, high = axes.get_xlim()
    subs = (1.0,) if high / low > 300 else (1.0, 3.0) if high / low > 30 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _accuracy_on(axes: Axes, name: str) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.set_ylabel(name)


def _short(value: float) -> str:
    number, unit = units.size(round(value)).split()
    return f"{float(number):g} {unit}"
