"""The picture of an explanation: images with the patches that travel, the merged ones side by side in a frame.

Beside the images of a frame stands a map: the attention of their class tokens, or where tokens travel in part (top-k),
how much of each travels.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor
from torch.nn.functional import interpolate

from splitfed.reports import units
from splitfed.reports.explanation.explain import Explanation
from splitfed.reports.study import plots as pictures
from splitfed.reports.study.looks import BLUE, ORANGE, STYLE, VERMILION, WIDTH

DIMMED = 0.3  # the brightness of a patch that is discarded
TINY = 64  # pixels a side: smaller images are made as large, and need more than darkness to show what is discarded

# In inches, but for the columns: images and maps in a row.
_COLUMNS, _CELL, _GAP, _PADDING, _BETWEEN = 6, 0.482, 0.02, 0.028, 0.035
_NAME, _HEAD, _LEGEND = 0.075, 0.34, 0.14
_PURE, _MIXED, _ALONE = "merged, of one class", "merged, of several classes", "not merged"
_FRAMES: dict[str, tuple[str, Any]] = {
    _PURE: (BLUE, "-"), _MIXED: (VERMILION, (0, (4, 1.2))), _ALONE: ("#888888", "-"),
}  # fmt: skip
_LONGEST_NAME = 12  # letters of this size on an image


@dataclass(frozen=True, slots=True)
class Block:
    """A frame in the picture: the samples shown of one merged sample, and how many it is made of."""

    shown: list[int]
    members: int
    frame: str

    @property
    def cells(self) -> int:
        """How many columns it takes: its images and their map."""
        return len(self.shown) + 1


def layout(explanation: Explanation, images: int) -> list[list[Block]]:
    """Choose the merged samples to show, in the lines of the picture, with so many images in all: those made of several
    images first, and what fills a line rather than what does not fit."""
    waiting = sorted(explanation.members, key=lambda rows: len(rows) == 1)
    lines: list[list[Block]] = []
    left, free = images, 0
    while left and waiting:
        most = min(left, free - 1)
        fitting = (n for n, rows in enumerate(waiting) if min(len(rows), _COLUMNS - 1) <= most)
        if (number := next(fitting, None)) is None:
            if free < _COLUMNS:
                lines, free = [*lines, []], _COLUMNS
                continue
            number = 0  # only the images that may be shown are too few for it
        rows = waiting.pop(number)
        several = len(explanation.labels[rows].unique()) > 1
        block = Block(rows[:most].tolist(), len(rows), _ALONE if len(rows) == 1 else _MIXED if several else _PURE)
        lines[-1].append(block)
        left, free = left - len(block.shown), free - block.cells
    return lines


def draw(explanation: Explanation, images: int) -> Figure:
    """Draw up to so many of the images: dimmed where tokens are discarded, each frame one merged sample.

    An orange line goes around the patches that are kept. Where tokens travel in part (top-k), the more of a token
    travels the brighter is its patch.
    """
    with matplotlib.rc_context(STYLE):
        lines = layout(explanation, images)
        names = [max(len(text) for block in line for text in _texts(explanation, block)) for line in lines]
        frames = [name for name in _FRAMES if any(block.frame == name for line in lines for block in line)]
        legend = _legend_entries(explanation, frames if frames != [_ALONE] else [])
        rows = [_CELL + count * _NAME + 2 * _PADDING + _BETWEEN for count in names]
        height = _HEAD + sum(rows) + _LEGEND * -(-len(legend) // 2) + 0.04
        figure = Figure((WIDTH, height))
        _head(figure, explanation)
        bottom = height - _HEAD + _BETWEEN
        for line, count, row in zip(lines, names, rows, strict=True):
            bottom -= row
            left = 0.02
            for block in line:
                left = _block(figure, explanation, block, left, bottom, count) + _BETWEEN
        figure.legend(
            handles=legend, loc="lower center", ncols=2, handlelength=1.6, columnspacing=1.2, fontsize=6,
            borderaxespad=0.1, labelspacing=0.3,
        )  # fmt: skip
        return figure


def save(figure: Figure, path: Path) -> None:
    """Write the picture. Raises RunError where it cannot be written."""
    with matplotlib.rc_context(STYLE):
        pictures.save(figure, path)


def png(figure: Figure) -> bytes:
    """Return the picture as a PNG file."""
    file = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="png")
    return file.getvalue()


def dimmed(explanation: Explanation, sample: int, times: int = 1) -> np.ndarray:
    """Return an image `[S, S, 3]`, from 0 to 1, darker where its tokens are discarded; so many `times` as large,
    without steps between its pixels."""
    light = _brightness(explanation)[sample].reshape(explanation.grid)
    high, wide = explanation.patch
    light = light.repeat_interleave(high * times, 0).repeat_interleave(wide * times, 1)
    image = explanation.images[sample : sample + 1]
    if times > 1:
        image = interpolate(image, scale_factor=times, mode="bicubic").clamp(0, 1)
    image = image[0].permute(1, 2, 0).clone()
    image[: light.shape[0], : light.shape[1]] *= light.unsqueeze(2)
    return image.numpy()


def _brightness(explanation: Explanation) -> Tensor:
    kept = explanation.kept[:, explanation.prefix :]
    if explanation.in_part:  # by the most that one of the image keeps: else all would be dark
        kept = kept / kept.amax(1, keepdim=True).clamp(min=1e-9)
    return DIMMED + (1 - DIMMED) * kept


def _head(figure: Figure, explanation: Explanation) -> None:
    one = explanation
    of = f"client {one.client}" if one.client is not None else "validation images"
    title = f"{one.scenario.name}, round {one.round}, {of}"
    figure.text(0.5, 1 - 0.05 / figure.get_figheight(), title, ha="center", va="top")
    tokens, after = one.kept.shape[1], int((one.kept > 0).sum(1).float().mean().round())
    done = f"{one.scenario.compression.reducer.kind}: {_change(len(one.groups), len(one.members))} samples, "
    done += (
        f"{units.percent(round(float(one.kept.mean()), 6))} of the values"
        if one.in_part
        else f"{_change(tokens, after)} tokens"
    )
    figure.text(0.5, 1 - 0.18 / figure.get_figheight(), done, ha="center", va="top", fontsize=6.5)


def _change(before: int, after: int) -> str:
    return f"{before} to {after}" if after != before else f"{before}"


def _block(figure: Figure, explanation: Explanation, block: Block, left: float, bottom: float, names: int) -> float:
    """Draw a frame with its images, the names of their classes in so many lines, and the map; return where it ends."""
    wide, high = figure.get_size_inches()
    width = block.cells * _CELL + (block.cells - 1) * _GAP + 2 * _PADDING
    colour, line = _FRAMES[block.frame]
    figure.add_artist(Rectangle(
        (left / wide, bottom / high), width / wide, (_CELL + names * _NAME + 2 * _PADDING) / high, fill=False,
        edgecolor=colour, linestyle=line, linewidth=0.8, transform=figure.transFigure,
    ))  # fmt: skip
    for place, text in enumerate(_texts(explanation, block)):
        x, y = left + _PADDING + place * (_CELL + _GAP), bottom + _PADDING + names * _NAME
        axes = figure.add_axes((x / wide, y / high, _CELL / wide, _CELL / high))
        axes.set_axis_off()
        is_map = place == len(block.shown)
        if is_map:
            _map(axes, explanation, block.shown[0])
        else:
            _image(axes, explanation, block.shown[place])
        for number, part in enumerate(text):
            figure.text(
                (x + _CELL / 2) / wide, (y - (number + 0.95) * _NAME) / high, part, ha="center", va="baseline",
                fontsize=5, style="italic" if is_map else "normal",
            )  # fmt: skip
    return left + width


def _texts(explanation: Explanation, block: Block) -> list[list[str]]:
    """Return the lines of text under each cell of a block."""
    names = [_name(explanation.classes[int(explanation.labels[sample])]) for sample in block.shown]
    more = block.members - len(block.shown)
    return [*names, [_mapped(explanation)[0], *([f"+{more} images"] if more else [])]]


def _image(axes: Axes, explanation: Explanation, sample: int) -> None:
    times = _times(explanation)
    axes.imshow(dimmed(explanation, sample, times), interpolation="antialiased", vmin=0, vmax=1)
    if not explanation.in_part:
        high, wide = (times * side for side in explanation.patch)
        kept = explanation.kept[sample, explanation.prefix :].reshape(explanation.grid).numpy() > 0
        if times > 1:
            axes.add_collection(_hatched(kept, high, wide))
        axes.add_collection(LineCollection(_edges(kept, high, wide), colors=ORANGE, linewidths=0.5))


def _times(explanation: Explanation) -> int:
    """Return how many times as large the images are drawn as they are."""
    return -(-TINY // explanation.images.shape[-1])


def _hatched(kept: np.ndarray, high: int, wide: int) -> PatchCollection:
    """Return hatches over the patches that are not kept: black ones of a tiny image are no darker for being dimmed."""
    patches = [Rectangle((c * wide - 0.5, r * high - 0.5), wide, high) for r, c in np.argwhere(~kept).tolist()]
    return PatchCollection(patches, facecolor="none", edgecolor="#aaaaaa", hatch="//////", linewidth=0)


def _edges(kept: np.ndarray, high: int, wide: int) -> list[list[tuple[float, float]]]:
    """Return the lines between patches that are kept and those that are not, in pixels."""
    across, down = np.argwhere(kept[:, 1:] != kept[:, :-1]).tolist(), np.argwhere(kept[1:] != kept[:-1]).tolist()
    upright = [[((c + 1) * wide - 0.5, y * high - 0.5) for y in (r, r + 1)] for r, c in across]
    level = [[(x * wide - 0.5, (r + 1) * high - 0.5) for x in (c, c + 1)] for r, c in down]
    return upright + level


def _map(axes: Axes, explanation: Explanation, sample: int) -> None:
    """Show what the map is of, the mean over all samples that are merged with this one."""
    rows = explanation.groups == explanation.groups[sample]
    patches = _mapped(explanation)[1][rows][:, explanation.prefix :].mean(0).reshape(explanation.grid)
    axes.imshow(patches.numpy(), cmap="cividis", interpolation="nearest")


def _mapped(explanation: Explanation) -> tuple[str, Tensor]:
    """Return what the maps show, by name and as numbers `[B, n]`."""
    if explanation.attention is None or explanation.in_part:
        return "values kept", explanation.kept
    return "attention", explanation.attention


def _name(name: str) -> list[str]:
    """Break a class's name into two lines at most, each cut where it is longer than an image is wide."""
    lines = wrap(name.replace("_", " "), _LONGEST_NAME, max_lines=2, placeholder="…") or [""]
    return [line if len(line) <= _LONGEST_NAME else f"{line[: _LONGEST_NAME - 1]}…" for line in lines]


def _legend_entries(explanation: Explanation, frames: list[str]) -> list[Patch]:
    entries = [
        Patch(facecolor="none", edgecolor=_FRAMES[name][0], linestyle=_FRAMES[name][1], linewidth=0.8, label=name)
        for name in frames
    ]
    if explanation.in_part:
        entries.append(Patch(facecolor="#bbbbbb", label="bright: more values kept"))
    elif bool((explanation.kept == 0).any()):
        look = "dark, hatched" if _times(explanation) > 1 else "dark"
        entries.append(Patch(
            facecolor="#444444", edgecolor=ORANGE, linewidth=0.6, label=f"{look}: discarded",
            hatch="//////" if _times(explanation) > 1 else None,
        ))  # fmt: skip
    what = _mapped(explanation)[0]
    entries.append(Patch(facecolor=matplotlib.colormaps["cividis"](1.0), label=f"map: yellow most {what}, blue least"))
    return entries
