"""Who is sampled for a round, and, in a simulation, who of them is there to its end.

A deployment samples as a simulation does, but who finishes in time is seen there, not planned.
"""

from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path

import torch

from splitfed.errors import ScenarioError
from splitfed.federation.trace import Presence
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment
from splitfed.seeds import Key
from splitfed.server.clock.clock import Clock
from splitfed.server.clock.plan import RoundPlan
from splitfed.server.clock.traffic import Sent


class Attendance:
    """Samples the clients of each round and plans their presence, both from the seed alone.

    `timed` says that rounds have simulated seconds; where it is so, or rounds have a deadline, a round may end with
    nobody taken. Raises ScenarioError for a trace, or a recording of a link, that cannot be read.
    """

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.key = scenario, Key(scenario.seed)
        federation = scenario.federation
        self.clock = Clock(scenario, folder)
        self.timed = self.clock.timed
        self.may_end_empty = self.timed or federation.deadline is not None
        self._availability = federation.availability.open(self.key.at("availability"), federation.clients, folder)
        if self._availability.tells_seconds and any(one.device.flops for one in federation.profiles.values()):
            raise ScenarioError([
                "federation.availability: its step_seconds and device.flops of federation.profiles both tell what a "
                "mini-batch takes: keep one of them"
            ])  # fmt: skip

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

    def plan(
        self, round: int, planned_steps: Mapping[int, int], images: Mapping[int, int] | None = None, now: float = 0.0
    ) -> RoundPlan:  # fmt: skip
        """Plan a round of these clients, who compute so many mini-batches and train on so many images, in their order;
        it begins `now`, in simulated seconds."""
        if isinstance(self.scenario.engine, Deployment):
            return RoundPlan(dict.fromkeys(planned_steps), 0.0)
        return self.clock.plan(round, self._stays(round, planned_steps), planned_steps, images or {}, now)

    def alone(
        self, round: int, client: int, steps: int, images: int, sent: Sent, now: float
    ) -> float | None:  # fmt: skip
        """Return how many simulated seconds a client would be at a round, if it sent that and were alone; None where
        nothing tells."""
        stay = self._stays(round, {client: steps})[client]
        return self.clock.alone(round, client, stay, steps, images, sent, now)

    def lasted(
        self, round: int, plan: RoundPlan, planned_steps: Mapping[int, int], images: Mapping[int, int],
        taken: Collection[int], now: float,
    ) -> float:  # fmt: skip
        """Return how many simulated seconds a round lasted that was planned so, and of which these were taken."""
        return self.clock.trained(round, plan, self._stays(round, planned_steps), planned_steps, images, taken, now)

    def _stays(self, round: int, planned_steps: Mapping[int, int]) -> dict[int, Presence]:
        return {client: self._availability.presence(round, client, steps) for client, steps in planned_steps.items()}
