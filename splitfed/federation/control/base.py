"""The contract of a controller, also of one of the user's own: at which operating point a client's next round is.

The platform keeps account of what is spent (`splitfed.federation.control.account`); a controller weighs that
against what a point is good for.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Option:
    """An operating point as it would be for one client in the coming round: bytes both ways and seconds (None: nothing
    tells yet), by what was measured so far; the `cost` that this adds to the target's queue, in units of about a
    round's allowance; and the `utility` that the scenario gives it (None: it gives none)."""

    name: str
    bytes: float
    seconds: float | None
    cost: float
    utility: float | None = None


class Controller(ABC):
    """Chooses for each client and round. The keys of `control` beside `kind`, `target` and `points` are the arguments
    with which it is made."""

    @abstractmethod
    def choose(self, round: int, client: int, queue: float, options: Sequence[Option]) -> str:
        """Return the name of one of the options, which are in the order of the scenario. `queue` is by how much more
        was spent than the target allows, of this client or where all have one target of all: never below 0."""

    def learn(self, round: int, client: int, point: str, gain: float | None) -> None:
        """Hear what came of a round that a client finished at this point: by how much its training loss is lower than
        in its last one; None in its first."""
        return  # who has no use for it need not listen

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round needs, of numbers, texts, lists and dictionaries: all attributes, unless a class
        says otherwise."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what an earlier attempt's `state_dict` returned."""
        vars(self).update(state)
