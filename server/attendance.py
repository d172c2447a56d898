"""Who is sampled for a round, and, in a simulation, who of them is there to its end.

A deployment samples as a simulation does, but who finishes in time is seen there, not planned.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from splitfed.batches import count_batches
from splitfed.engines import Deployment
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.trace import Presence


@dataclass(frozen=True, slots=True)
class Plan:
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

    def plan(self, round: int, examples: Mapping[int, int]) -> Plan:
        """Plan a round of these clients, who hold so many examples, in their order."""
        federation, batch = self.scenario.federation, self.scenario.training.batch_size
        if isinstance(self.scenario.engine, Deployment):
            return Plan(dict.fromkeys(examples), 0.0)
        stays = {}
        for client, number in examples.items():
            steps = count_batches(number, batch, federation.local_steps, federation.local_epochs)
            stays[client] = _Stay(self._availability.presence(round, client, steps), steps)
        limit = math.inf if federation.deadline is None else federation.deadline
        return (in_turn if federation.mode == "sl" else at_once)(stays, federation.cohort_size, limit)


@dataclass(frozen=True, slots=True)
class _Stay:
    """A client's presence in a round of so many mini-batches; times are simulated seconds from the round's start."""

    presence: Presence
    steps: int

    @property
    def vanishes(self) -> bool:
        after = self.presence.vanishes_after
        return after is not None and after < self.steps

    @property
    def _steps(self) -> int:
        after = self.presence.vanishes_after
        return self.steps if after is None else min(after, self.steps)

    def end(self, begun: float) -> float:
        """Return when a client that begins then has finished, or vanishes."""
        return begun + self.presence.step_seconds * self._steps

    def done(self, begun: float, over: float) -> int:
        """Return how many mini-batches a client that begins then has trained when the round is over."""
        if self.end(begun) <= over:
            return self._steps
        return math.floor((over - begun) / self.presence.step_seconds) if begun < over else 0


def at_once(stays: Mapping[int, _Stay], enough: int, limit: float) -> Plan:
    """Plan a round in which all begin as soon as they are there.

    It is over when `enough` have finished, when nobody is left to wait for, or at the `limit`. Of those who finish at
    the same time the lower number is first."""
    ends = {client: stay.end(stay.presence.late) for client, stay in stays.items()}
    finish = sorted((ends[client], client) for client, stay in stays.items() if not stay.vanishes)
    taken = [(end, client) for end, client in finish if end <= limit][:enough]
    over = taken[-1][0] if len(taken) == enough else min(limit, max(ends.values(), default=0.0))
    first = {client for _, client in taken}
    vanish = {
        client: None if client in first else stay.done(stay.presence.late, over) for client, stay in stays.items()
    }
    return Plan(vanish, over)


def in_turn(stays: Mapping[int, _Stay], enough: int, limit: float) -> Plan:
    """Plan a round in which each begins when the one before has finished or vanished, and is waited for.

    It is over when `enough` have finished, after the last, or at the `limit`; whose turn has not come by then hears
    nothing of it."""
    vanish: dict[int, int | None] = {}
    now = 0.0
    for client, stay in stays.items():
        if now >= limit or list(vanish.values()).count(None) == enough:
            break
        begun = max(now, stay.presence.late)
        now = stay.end(begun)
        in_time = now <= limit and not stay.vanishes
        now = min(now, limit)
        vanish[client] = None if in_time else stay.done(begun, now)
    return Plan(vanish, now)
