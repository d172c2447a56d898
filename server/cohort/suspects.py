"""Who is left out of a round that came to nothing, until it comes to something.

A deployment ends for no client's sake. A round that is dropped, as what its clients sent is within bounds and yet
nothing goes on with it, starts again without those who stand out; where nobody does, without half of them, and so on,
until a try is sound or one is left, who was the reason then. So a round has tries for each client, and no more.
"""

from collections.abc import Collection, Iterable, Mapping
from logging import getLogger
from statistics import median_low

from splitfed.server.cohort.claims import MOST_TIMES
from splitfed.server.cohort.refusals import Refusals
from splitfed.server.memory.memory import Memory

log = getLogger("splitfed")


class Suspects:
    """Who sits out the tries of the open round. `refusals` hear of those who stood out far, or were alone in a try that
    was dropped, once a try without them is sound."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals
        self._refused, self._blamed, self._doubted = set[int](), set[int](), set[int]()

    @property
    def out(self) -> set[int]:
        """Who has no part in the next try."""
        return self._refused | self._blamed | self._doubted

    def leave_out(self, refused: Iterable[int]) -> None:
        """Leave out clients who cannot go on themselves, or were refused for it."""
        self._refused |= set(refused)

    def blame(self, round: int, standing: Mapping[int, float]) -> None:
        """Leave out whoever stands out, of clients that stand out so many times in a try that was dropped. Who was
        refused in it may have been so for what another has done."""
        self._refusals.forgive(round)
        if len(standing) == 1:
            self._blamed |= set(standing)
            self._doubted = set()
        elif far := {client: times for client, times in sorted(standing.items()) if times > MOST_TIMES}:
            self._blamed |= far.keys()
            for client in far:
                log.warning("round %d: client %d is suspected: %s", round, client, _why(far[client]))
        else:
            ranked = sorted(standing, key=lambda client: -standing[client])
            self._doubted |= set(ranked[: len(ranked) // 2])

    def found(self, round: int) -> None:
        """Hear that a try is sound: in the next round all have a part again, who have not been refused too often."""
        for client in sorted(self._blamed):
            self._refusals.count(client, round)
        self.clear()

    def acquit(self, round: int) -> None:
        """Let everybody in again, and hold nothing of the round against them: it was none of them alone."""
        self._refusals.forgive(round)
        self.clear()

    def clear(self) -> None:
        """Let everybody in again."""
        self._refused, self._blamed, self._doubted = set(), set(), set()

    def forget(self, round: int, memory: Memory) -> None:
        """Have memory forget who stands out far in it, after a pass that was dropped."""
        found = standing([largest := memory.largest()], largest)
        for client in sorted(client for client, times in found.items() if times > MOST_TIMES):
            log.warning("round %d: memory forgets client %d: %s", round, client, _why(found[client]))
            memory.store.forget([client], round)
            self._refusals.count(client, round)


def _why(times: float) -> str:
    return f"what it sent is {times:.3g} times as large as the middle one of the others'"


def standing(measures: Iterable[Mapping[int, float]], clients: Collection[int]) -> dict[int, float]:
    """Return how many times as large as the middle one of the others' is what each of the clients sent, by the measure
    in which that is most; 0 where nothing was measured, or nobody else was."""
    found = dict.fromkeys(clients, 0.0)
    for measure in measures:
        for client in found.keys() & measure.keys():
            others = [number for other, number in measure.items() if other != client]
            middle = median_low(others) if others else 0.0
            found[client] = max(found[client], measure[client] / middle if middle else 0.0)
    return found
