"""Who of a round finishes first and in time, and when it is over."""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from splitfed.link.clock import Course, Moments

Together = Callable[[Mapping[int, Course], float], Mapping[int, Moments]]
"""The moments of clients who are called at once, so many seconds after the round's start."""


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """A round of a simulation: who is sent the order to train, in order, and after how many mini-batches each vanishes
    (None: it is taken); how many simulated seconds the round lasts, and whether its deadline ends it; and in which
    order mini-batches come to the server, each by its client."""

    vanish: Mapping[int, int | None]
    seconds: float
    overdue: bool = False
    turns: Sequence[int] = ()


def planned(courses: Mapping[int, Course], wave: int, together: Together, enough: int, limit: float) -> RoundPlan:
    """Plan a round in which `wave` clients at a time train, in order.

    A wave is over when its last client has finished or vanished, the round after its last wave, when `enough` have
    finished, or at the `limit`. Whose wave has not begun by then hears nothing of it. Of those who finish at the same
    time the lowest rank is first.
    """
    vanish: dict[int, int | None] = {}
    turns: list[int] = []
    now, missing, overdue = 0.0, enough, False
    for here in _waves(list(courses), wave):
        if now >= limit or not missing:
            break
        moments = together({client: courses[client] for client in here}, now)
        finish = sorted(
            (moments[client].end, courses[client].rank, client) for client in here if courses[client].reply is not None
        )
        taken = [one for one in finish if one[0] <= limit][:missing]
        missing -= len(taken)
        last = max(one.end for one in moments.values())
        overdue = bool(missing) and last > limit
        now = min(limit, last) if missing else taken[-1][0]
        first_ones = {client for _, _, client in taken}
        for client in here:
            vanish[client] = None if client in first_ones else bisect_right(moments[client].steps, now)
        come = [(moment, courses[client].rank, client) for client in here for moment in moments[client].arrivals]
        turns += [client for _, _, client in sorted(come)]
    return RoundPlan(vanish, now, overdue, turns)


def lasted(
    courses: Mapping[int, Course], wave: int, together: Together, taken: Collection[int], enough: int, limit: float
) -> float:  # fmt: skip
    """Return how many seconds a round lasted of which these clients were taken, by the same rules."""
    now, missing = 0.0, enough
    for here in _waves(list(courses), wave):
        if now >= limit or not missing:
            break
        moments = together({client: courses[client] for client in here}, now)
        among = [moments[client].end for client in here if client in taken]
        missing -= len(among)
        now = min(limit, max(one.end for one in moments.values()) if missing or not among else max(among))
    return now


def _waves(order: Sequence[int], wave: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(order), max(1, wave)):
        yield order[first : first + wave]
