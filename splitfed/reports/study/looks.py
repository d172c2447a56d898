"""How pictures look: colours, lines and letters for a column of a paper, 3.3 inches wide, without colour too.

Colours are those of Okabe and Ito, which people with any colour vision can tell apart.
"""

from typing import Any, NamedTuple

from matplotlib.colors import to_hex, to_rgb

from splitfed.reports.plain import PLAIN_STYLE

WIDTH = 3.3  # inches
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, YELLOW = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442",
)  # fmt: skip
# A method's colour and marker: 7 and 13, so that 91 methods differ in one of them. Yellow is too light for lines.
_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d")
# A setting's line, and how much of its marker is filled: 5 and 6, so that 30 settings of a method differ in one.
_LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (3, 1, 1, 1, 1, 1)))
_FILLS = ("full", "none", "left", "top", "right", "bottom")
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


class Look(NamedTuple):
    """What tells a group from the others in a picture."""

    colour: str
    marker: str
    line: Any
    fill: Any

    @property
    def points(self) -> dict[str, Any]:
        """What matplotlib calls it, but for the line."""
        return {
            "color": self.colour, "marker": self.marker, "fillstyle": self.fill, "markerfacecoloralt": "white",
        }  # fmt: skip


def look(method: int, setting: int) -> Look:
    """Return the look of a setting, by its number, of a method. No two settings of a method look the same: after each
    thirty of them the colour is lighter."""
    light = 0.7 ** (setting // (len(_LINES) * len(_FILLS)))
    red, green, blue = (1 - light * (1 - part) for part in to_rgb(_COLOURS[method % len(_COLOURS)]))
    colour = to_hex((red, green, blue))
    return Look(
        colour.upper(), _MARKERS[method % len(_MARKERS)], _LINES[setting % len(_LINES)], _FILLS[setting % len(_FILLS)]
    )
