"""Who is sampled for a round, and, in a simulation, who of them is there to its end.

A deployment samples as a simulation does, but who finishes in time is seen there, not planned.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from splitfed.federation.trace import Presence
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment
from splitfed.seeds import Key


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """A round of a simulation: who is sent the order to train, in order, and after how many mini-batches each vanishes
    (None: it is taken); and how many simulated seconds the round lasts."""

    vanish: Mapping[int, int | None]
    seconds: float


class Attendance:
    """Samples the clients of each round and plans their presence, both from the seed alone.

    `timed` says that rounds have simulated seconds; where it is so, or rounds have a deadline, a round may end with
    nobody taken. Raises ScenarioError for a trace that cannot be read.
    """

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.key = scenario, Key(scenario.seed)
        federation = scenario.federation
        self.timed = federation.availability.timed
        self.may_end_empty = self.timed or federation.deadline is not None
        self._availability = federation.availability.open(self.key.at("availability"), federation.clients, folder)

    def sample(self, round: int, there: set[int]) -> list[int]:
        """Return the clients of a round, among those who are there; where they train one after another, in this
        order. It may be that all are away."""
        federation = self.scenario.federation
        order = torch.randperm(federation.clients, generator=self.key.at("cohort", round).generator()).tolist()
        present = self.present(round, there)
        drawn = list(islice((client for client in order if client in present), federation.sampled))
        return drawn if federation.one_by_one else sorted(drawn)

    def present(self, round: int, there: set[int]) -> set[int]:
        """Return those of the clients who are not away in a round."""
        return {client for client in there if not self._availability.away(round, client)}

    def plan(self, round: int, planned_steps: Mapping[int, int]) -> RoundPlan:
        """Plan a round of these clients, who send so many mini-batches, in their order."""
        federation = self.scenario.federation
        if isinstance(self.scenario.engine, Deployment):
            return RoundPlan(dict.fromkeys(planned_steps), 0.0)
        stays = {}
        for client, steps in planned_steps.items():
            rank = self.key.at("availability", round, client, "rank").integer()
            stays[client] = Stay(self._availability.presence(round, client, steps), steps, rank)
        limit = math.inf if federation.deadline is None else federation.deadline
        # With `order: fixed` clients of sfl-v2 take turns only so that runs repeat: they stand for some that do not.
        wave = len(stays) if federation.mode == "sfl-v2" and federation.one_by_one else federation.at_once
        pace = in_step if federation.mode == "psl" else each_alone
        return planned(stays, wave, pace, federation.cohort_size, limit)


@dataclass(frozen=True, slots=True)
class Stay:
    """A client's presence in a round of so many mini-batches. Of those who finish at the same time the lowest `rank` is
    first: were it the number, some would never be taken."""

    presence: Presence
    steps: int
    rank: int = 0

    @property
    def trained(self) -> int:
        """How many mini-batches it trains if the round is not over before."""
        after = self.presence.vanishes_after
        return self.steps if after is None else min(after, self.steps)


# At how many simulated seconds after the round's start each client of a wave is through with each of its mini-batches.
Moments = Mapping[int, Sequence[float]]
Pace = Callable[[Mapping[int, Stay], float], Moments]


def each_alone(stays: Mapping[int, Stay], begun: float) -> Moments:
    """Return the moments of clients of whom none waits for another, in a wave that has begun then."""
    return {
        client: [
            max(begun, stay.presence.late) + stay.presence.step_seconds * (step + 1) for step in range(stay.trained)
        ]
        for client, stay in stays.items()
    }


def in_step(stays: Mapping[int, Stay], begun: float) -> Moments:
    """Return the moments of clients in joint steps: one takes as long as its slowest, who comes late joins the next."""
    moments: dict[int, list[float]] = {client: [] for client in stays}
    now = begun
    while left := [client for client, stay in stays.items() if len(moments[client]) < stay.trained]:
        now = max(now, min(stays[client].presence.late for client in left))
        there = [client for client in left if stays[client].presence.late <= now]
        now += max(stays[client].presence.step_seconds for client in there)
        for client in there:
            moments[client].append(now)
    return moments


def planned(stays: Mapping[int, Stay], wave: int, pace: Pace, enough: int, limit: float) -> RoundPlan:
    """Plan a round in which `wave` clients at a time train, in order.

    A wave is over when its last client has finished or vanished, the round after its last wave, when `enough` have
    finished, or at the `limit`. Whose wave has not begun by then hears nothing of it."""
    vanish: dict[int, int | None] = {}
    now, missing, order = 0.0, enough, list(stays)
    for first in range(0, len(order), max(1, wave)):
        if now >= limit or not missing:
            break
        here = {client: stays[client] for client in order[first : first + wave]}
        moments = pace(here, now)
        ends = {client: done[-1] if done else max(now, here[client].presence.late) for client, done in moments.items()}
        finish = sorted(
            (ends[client], stay.rank, client) for client, stay in here.items() if stay.trained == stay.steps
        )
        taken = [one for one in finish if one[0] <= limit][:missing]
        missing -= len(taken)
        now = min(limit, max(ends.values())) if missing else taken[-1][0]
        first_ones = {client for _, _, client in taken}
        for client, done in moments.items():
            vanish[client] = None if client in first_ones else bisect_right(done, now)
    return RoundPlan(vanish, now)
