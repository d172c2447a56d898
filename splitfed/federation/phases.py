"""What teaches the front, round by round: phases follow one another in one scenario.

A phase is no mode: a mode says who updates which weights of the back, a phase what the front learns from.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, PositiveInt

from splitfed.config import Config, kind_shorthand


class Gradient(Config):
    """The front learns from the gradient at the cut, which the server sends back for each mini-batch."""

    learns: ClassVar[bool] = True  # whether the front changes

    kind: Literal["gradient"] = "gradient"
    rounds: PositiveInt | None = None
    """How many rounds the phase lasts; null, which the last phase alone may say, is all that are left."""


class Frozen(Config):
    """The front stays as it is, without dropout, and the back alone learns: no gradient comes down, no strategy is
    asked, clients need no optimiser, and the front crosses to each of them once more at most."""

    learns: ClassVar[bool] = False

    kind: Literal["frozen"] = "frozen"
    rounds: PositiveInt | None = None
    """How many rounds the phase lasts; null, which the last phase alone may say, is all that are left."""


PhaseConfig = Annotated[Gradient | Frozen, Field(discriminator="kind"), kind_shorthand]


class Phase(NamedTuple):
    """A phase of a run: its settings, and its first round."""

    settings: Gradient | Frozen
    first: int

    @property
    def frozen(self) -> bool:
        """Whether the front stays as it is."""
        return not self.settings.learns


def phase_of(phases: Sequence[Gradient | Frozen], round: int) -> Phase:
    """Return the phase that a round is in; where there are none, the gradient teaches the front throughout."""
    first = 1
    for settings in phases:
        if settings.rounds is None or settings is phases[-1] or round < first + settings.rounds:
            return Phase(settings, first)
        first += settings.rounds
    return Phase(Gradient(), 1)
