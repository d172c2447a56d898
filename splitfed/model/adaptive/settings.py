"""The settings of adaptive training. Nothing heavy is imported here, so that a scenario is read without torch."""

import math
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, NonNegativeFloat, PositiveInt, model_validator

from splitfed.compression.expect import Geometry
from splitfed.config import Config

_Share = Annotated[float, Field(gt=0, le=1)]
_Number = Annotated[FiniteFloat, Field(ge=0)]


class Sides(Config):
    """How many blocks of each side train in a mini-batch, on average: 1.5 is one or two."""

    front: _Number | None = None
    """Blocks of the front. Below 1, it is the share of mini-batches in which one trains. Null is all of them."""
    back: _Number | None = None
    """Blocks of the back; null is all of them."""


class AlastConfig(Config):
    """Adaptive Layer Selective Fine-Tuning (ALaST, arXiv 2408.08670): each block has a budget, which follows how much
    it changes the class token. A block of low budget passes fewer tokens on, and in each mini-batch a few blocks train
    while the others stay as they are. In evaluation all blocks see all tokens."""

    kind: Literal["alast"]
    trained: PositiveInt | Sides
    """Blocks that train in a mini-batch: so many of all, as many of each side as an even draw gives it, or by side,
    such as `{front: 0.5, back: 4}`."""
    alpha: NonNegativeFloat = 0.01
    """How far a budget moves, for each unit by which the squared change of the class token differs from that of the
    mini-batch before; a change is the mean over the mini-batch, so this does not depend on its size."""
    low: _Share = 0.5
    """Lowest budget, in (0, 1]; the highest is 1."""
    start: _Share = 0.9
    """Budget that each block begins with, from `low` to 1: the share of its patch tokens that it passes on."""
    choice: Literal["draw", "highest"] = "draw"
    """Which blocks of a side train: drawn, those of higher budget more often (by a softmax), or those of the highest
    budgets."""
    embedding: Literal["with_blocks", "always", "never"] = "with_blocks"
    """When the front's embedding of patches trains: with any block of the front, so that no gradient crosses where none
    trains; in each mini-batch, for which one always crosses; or never, and then it crosses once for each client, and
    nothing is computed back below the lowest block that trains."""

    @model_validator(mode="after")
    def _begins_within_bounds(self) -> "AlastConfig":
        if self.start < self.low:
            raise ValueError(f"start is {self.start:g}, below low ({self.low:g}): raise it, or lower low")
        return self

    def left(self, geometry: Geometry) -> tuple[int, int]:
        """Return how many patch tokens the front leaves: at least, and at the budgets that its blocks begin with."""
        least = first = geometry.tokens - geometry.prefix
        for _ in range(geometry.blocks):
            least, first = passed_on(self.low, least), passed_on(self.start, first)
        return least, first


def passed_on(budget: float, patches: int) -> int:
    """Return how many patch tokens a block of this budget passes on: the floor of that share, and one at least."""
    return max(1, math.floor(budget * patches + 1e-9))  # 0.29 * 100 is 28.999999999999996
