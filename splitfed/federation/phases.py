"""What teaches the front, round by round: phases follow one another in one scenario.

A phase is no mode: a mode says who updates which weights of the back, a phase what the front learns from.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt

from splitfed.config import Config, kind_shorthand


class Gradient(Config):
    """The front learns from the gradient at the cut, which the server sends back for each mini-batch."""

    learns: ClassVar[bool] = True  # whether the front changes

    kind: Literal["gradient"] = "gradient"
    rounds: PositiveInt | None = None
    """How many rounds the phase lasts; null, which the last phase alone may say, is all that are left."""


class Local(Config):
    """The front learns from a loss at the client: an auxiliary net, which begins as a copy of the first blocks of the
    back with its norm and head, stands in for the back there, and no gradient comes down (CSE-FSL, arXiv 2507.15816;
    Ampere, arXiv 2507.07130), or few do (`align_every`).

    It sees what the front makes, before any reducer. Its weights cross with the front's, under the same codec, and are
    averaged or handed on with them; they all are trained, whatever `model.adapter` says. When the phase ends both sides
    drop it.
    """

    learns: ClassVar[bool] = True

    kind: Literal["local"] = "local"
    rounds: PositiveInt | None = None
    """How many rounds the phase lasts; null, which the last phase alone may say, is all that are left."""
    blocks: PositiveInt = 1
    """How many blocks the auxiliary net has; as many as the back makes it a copy of all of that."""
    upload_every: PositiveInt | None = 5
    """Of how many mini-batches one goes up for the back to learn from: the first of a client's round, and every so
    many-th after it. 1 is all of them. With null none goes up, and the back rests until another phase."""
    align_every: NonNegativeInt = 0
    """Of how many mini-batches that go up one is answered with its gradient at the cut, under the packing of
    `cut_gradient`: the first of a client's round, and every so many-th after it. The client fits its auxiliary net to
    that gradient, and to nothing else (FSL-SAGE, arXiv 2505.23182): in 10 steps of a new Adam at 1e-3 it lowers ||a -
    g||^2 / ||g||^2, with g the server's gradient, taken back through the reducer to what the front made, and a that of
    the net's own loss there; tokens that the reducer left out count in neither. Fronts learn from the net's loss as
    before. With 0 no gradient comes down, and the net learns from its own loss."""


class Frozen(Config):
    """The front stays as it is, without dropout, and the back alone learns: no gradient comes down, no strategy is
    asked, clients need no optimiser, and the front crosses to each of them once more at most."""

    learns: ClassVar[bool] = False

    kind: Literal["frozen"] = "frozen"
    rounds: PositiveInt | None = None
    """How many rounds the phase lasts; null, which the last phase alone may say, is all that are left."""


Settings = Gradient | Local | Frozen
PhaseConfig = Annotated[Settings, Field(discriminator="kind"), kind_shorthand]


class Phase(NamedTuple):
    """A phase of a run: its settings, and its first round."""

    settings: Settings
    first: int

    @property
    def frozen(self) -> bool:
        """Whether the front stays as it is."""
        return not self.settings.learns

    @property
    def local(self) -> Local | None:
        """What is said of the auxiliary net, where one teaches the front."""
        return self.settings if isinstance(self.settings, Local) else None

    @property
    def upload_every(self) -> int | None:
        """Of how many mini-batches one goes up; None where none does."""
        return self.settings.upload_every if isinstance(self.settings, Local) else 1

    @property
    def answer_every(self) -> int:
        """Of how many mini-batches that go up one is answered with its gradient: the first of a client's round, and
        every so many-th after it. 0 is none."""
        return self.settings.align_every if isinstance(self.settings, Local) else int(self.settings.learns)


def phase_of(phases: Sequence[Settings], round: int) -> Phase:
    """Return the phase that a round is in; where there are none, the gradient teaches the front throughout."""
    first = 1
    for settings in phases:
        if settings.rounds is None or settings is phases[-1] or round < first + settings.rounds:
            return Phase(settings, first)
        first += settings.rounds
    return Phase(Gradient(), 1)


def spans(phases: Sequence[Settings], rounds: int) -> Iterator[tuple[Phase, int]]:
    """Yield the phases of a run of so many rounds, each with how many of them it lasts."""
    first = 1
    for settings in phases or (Gradient(),):
        number = rounds - first + 1 if settings.rounds is None else settings.rounds
        yield Phase(settings, first), number
        first += number


def misfit(phases: Sequence[Settings], blocks: int) -> str | None:
    """Return why phases do not go with a back of so many blocks, or None."""
    for place, phase in enumerate(phases, 1):
        if isinstance(phase, Local) and phase.blocks > blocks:
            way = (
                f"set blocks to {blocks} or less" if blocks > 1 else "set blocks to 1" if blocks else "lower model.cut"
            )
            return f"phase {place} has an auxiliary net of {phase.blocks} blocks, and the back has {blocks}: {way}"
    return None
