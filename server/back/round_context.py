"""What the sessions of a round are given to work with."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from splitfed.model.adaptive.alast import Numbers
from splitfed.run.ledger import Ledger
from splitfed.seeds import Key
from splitfed.server.back.passes import Passes
from splitfed.server.back.steps import Steps
from splitfed.split.cut import Cut
from splitfed.wire.frame import Place

OnStep = Callable[[int, int], None]


def nobody_hears(round: int, client: int) -> None:
    """Be the `on_step` of a round that nobody watches."""


@dataclass(frozen=True, slots=True)
class Own:
    """What is another for one client in a round: its cut, and of how many of its mini-batches one is answered with its
    gradient."""

    cut: Cut
    answer_every: int = 1


@dataclass(frozen=True, slots=True)
class RoundContext:
    """What all sessions of a round, or of the evaluation after it, have in common.

    `key` is for what is drawn in this round, `clock` tells seconds, and `on_step(round, client)` hears of every
    mini-batch that was trained. Of `answer_every` so many of a client's mini-batches the first is answered with its
    gradient; 0 is none, and of those none where no block of the front is drawn by `numbers`. A client may be `ahead`
    of an answer by so many mini-batches.
    """

    round: int
    cut: Cut
    ledger: Ledger
    key: Key
    clock: Callable[[], float]
    steps: Steps
    passes: Passes
    on_step: OnStep
    reporting: Lock
    answer_every: int = 1
    ahead: int = 0
    numbers: Numbers | None = None

    def answers(self, before: int, place: Place) -> bool:
        """Tell whether the mini-batch of this place is answered with its gradient, the client having sent so many
        `before`."""
        answered = self.answer_every > 0 and before % self.answer_every == 0
        return answered and (self.numbers is None or self.numbers.front_learns(*place))

    def trained(self, client: int) -> None:
        """Report that a mini-batch of a client was trained; one thread at a time does."""
        with self.reporting:
            self.on_step(self.round, client)
