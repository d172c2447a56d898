"""The clock of a simulation: plans how long clients will take, and tells how long they took.

A plan is made before a round, of what will be sent at most; what the round lasted is told afterwards, from what was
sent. Who is taken is the plan's to say alone.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from splitfed.data.batches import batch_sizes
from splitfed.federation.profiles import links
from splitfed.federation.trace import Presence
from splitfed.link.clock import Course, Exchange, Moments, Site, Step
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment
from splitfed.scenario.sections import COMMON, Terms
from splitfed.seeds import Key
from splitfed.server.clock.plan import RoundPlan, lasted, planned
from splitfed.server.clock.traffic import Foresees, Sent, Traffic
from splitfed.split.computing.seconds import Work


class Clock:
    """Tells simulated time, which passes where a scenario is `timed`, and never in a deployment. What was sent it hears
    by `traffic`; what will be, `foresee` tells, of clients under their `terms`, or else it counts as nothing. `took` is
    how many seconds each client of the last round was at it. Raises ScenarioError for a recording of a
    link that cannot be read."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.key = scenario, Key(scenario.seed)
        self.timed = scenario.timed and not isinstance(scenario.engine, Deployment)
        self.traffic = Traffic()
        self.foresee: Foresees | None = None
        self.terms: Callable[[int], Terms] = lambda client: COMMON
        self.took: dict[int, float] = {}
        federation = scenario.federation
        self.work = Work(scenario)
        self._links = links(federation.profiles, scenario.link, self.work.profile, self.key.at("link"), folder)
        own = federation.server.link
        patience = federation.patience_seconds if federation.mode == "psl" else None
        # Joint steps wait for each other where nothing is sent, too.
        self._site = Site(_bytes(own.up), _bytes(own.down), patience)
        self._each = 2 if federation.private else 1  # exchanges of a mini-batch
        self._limit = math.inf if federation.deadline is None else federation.deadline

    def plan(
        self, round: int, stays: Mapping[int, Presence], steps: Mapping[int, int], images: Mapping[int, int], now: float
    ) -> RoundPlan:  # fmt: skip
        """Plan a round of clients who stay so long, compute so many mini-batches and train on so many images, in their
        order; it begins `now`, in simulated seconds."""
        courses = {}
        for client, stay in stays.items():
            after = stay.vanishes_after
            trains = steps[client] if after is None else min(after, steps[client])
            sent = self._foreseen(round, client, trains, images.get(client, 0))
            sizes = self._sizes(trains, images.get(client, 0))
            courses[client] = self._training(round, client, stay, sizes, sent, trains < steps[client])
        together = partial(self._site.together, now=now)
        return planned(courses, self._wave(len(stays)), together, self.scenario.federation.cohort_size, self._limit)

    def trained(
        self, round: int, plan: RoundPlan, stays: Mapping[int, Presence], steps: Mapping[int, int],
        images: Mapping[int, int], taken: Collection[int], now: float,
    ) -> float:  # fmt: skip
        """Return how many seconds a planned round lasted that began `now`, and of which these clients were taken."""
        sent = self.traffic.take()
        self.took = dict.fromkeys(plan.vanish, plan.seconds) if self.timed else {}
        if not self.timed or plan.overdue:
            return plan.seconds
        courses = dict[int, Course]()

        def together(these: Mapping[int, Course], begun: float) -> Mapping[int, Moments]:
            moments = self._site.together(these, begun, now=now)
            self.took |= {one: moments[one].end - max(begun, courses[one].late) for one in these}
            return moments

        for client, vanishes in plan.vanish.items():
            trains = steps[client] if vanishes is None else vanishes
            given, sizes = sent.get(client, Sent()), self._sizes(trains, images.get(client, 0))
            courses[client] = self._training(round, client, stays[client], sizes, given, vanishes is not None)
        enough = self.scenario.federation.cohort_size
        return lasted(courses, self._wave(len(stays)), together, taken, enough, self._limit)

    def alone(
        self, round: int, client: int, stay: Presence, steps: int, images: int, sent: Sent, now: float
    ) -> float | None:  # fmt: skip
        """Return how many seconds a client would be at a round that begins `now`, if nobody shared the server with it
        and it sent that; None where nothing tells."""
        if not self.timed:
            return None
        course = self._training(round, client, stay, self._sizes(steps, images), sent, False)
        moments = Site(self._site.up, self._site.down).together({client: course}, 0.0, now)
        return moments[client].end - course.late

    def foretold(self, round: int, steps: int, images: int, terms: Terms) -> Sent:
        """Return what a client under these terms sends and is sent that computes so many mini-batches, before any
        lossless stage."""
        sizes, phase = self._sizes(steps, images), self.scenario.phase(round)
        assert self.foresee is not None
        return self.foresee(phase, [sizes[step] for step in self._sends(round, steps)], terms)

    def forget(self) -> None:
        """Forget what was sent so far: it is of no call that is timed."""
        self.traffic.take()

    def recalled(self, samples: int) -> float:
        """Return how many seconds a pass over so many samples in memory lasted."""
        return self.work.recalling(samples) if self.timed else 0.0

    def asked(self, round: int, what: Literal["align", "evaluate"], now: float, images: Mapping[int, int]) -> float:
        """Return how many seconds a call lasted that began `now`, in which all who have a part are asked at once: to
        evaluate the model on so many images, or to align, whose computing is left out."""
        sent = self.traffic.take()
        if not self.timed or not sent:
            return 0.0
        courses = {}
        for client, one in sorted(sent.items()):
            each, there = self._asking(client, what, images.get(client, 0), len(one.frames))
            steps = [Step((Exchange(each, up, there, down),), 0.0) for up, down in one.frames]
            steps = steps or [Step((), each)]  # where all of it stays with the client
            key = self.key.at("link", what, round, client)
            courses[client] = Course(0.0, one.order, steps, _end(one), one.reply, self._links(client), key)
        moments = Site(self._site.up, self._site.down).together(courses, 0.0, now)
        return max(one.end for one in moments.values())

    def _asking(self, client: int, what: str, images: int, frames: int) -> tuple[float, float]:
        if what != "evaluate":
            return 0.0, 0.0
        here, there = self.work.evaluating(client, images)
        return here / max(1, frames), there / max(1, frames)

    def _wave(self, clients: int) -> int:
        """Return how many train at a time."""
        federation = self.scenario.federation
        # With `order: fixed` clients of sfl-v2 take turns only so that runs repeat: they stand for some that do not.
        return clients if federation.mode == "sfl-v2" and federation.one_by_one else federation.at_once

    def _training(
        self, round: int, client: int, stay: Presence, sizes: Sequence[int], sent: Sent, vanishes: bool
    ) -> Course:  # fmt: skip
        """Return the course of a client that computes mini-batches of so many images, and sends that."""
        frames, sends, made = iter(sent.frames), set(self._sends(round, len(sizes))), list[Step]()
        phase, seconds = self.scenario.phase(round), self.work.told(client, stay.step_seconds)
        for step, images in enumerate(sizes):
            pairs = list(islice(frames, self._each)) if step in sends else []
            if step in sends and not pairs:
                break  # it was refused, and came to no more
            made.append(self.work.training(client, images, phase, step in sends, seconds).step(pairs))
        rank = self.key.at("availability", round, client, "rank").integer()
        key = self.key.at("link", "train", round, client)
        end, reply = (None, None) if vanishes else (_end(sent), sent.reply)
        ahead = self.scenario.ahead(round)
        return Course(stay.late, sent.order, made, end, reply, self._links(client), key, rank, ahead)

    def _sizes(self, steps: int, images: int) -> list[int]:
        """Return how many images are in each mini-batch of a client that trains on so many."""
        return batch_sizes(images, self.scenario.training.batch_size, steps)

    def _sends(self, round: int, steps: int) -> range:
        """Return which of so many mini-batches cross."""
        every = self.scenario.phase(round).upload_every if self.scenario.federation.splits else None
        return range(0, steps, every) if every else range(0)

    def _foreseen(self, round: int, client: int, steps: int, images: int) -> Sent:
        federation = self.scenario.federation
        if self.foresee is None or not (federation.decides_by_time or self.scenario.side_by_side):
            return Sent(frames=[(0, 0)] * (len(self._sends(round, steps)) * self._each))
        return self.foretold(round, steps, images, self.terms(client))


def _end(sent: Sent) -> Exchange | None:
    return None if sent.end is None else Exchange(0.0, sent.end[0], 0.0, sent.end[1])


def _bytes(rate: float | None) -> float | None:
    return None if rate is None else rate / 8
