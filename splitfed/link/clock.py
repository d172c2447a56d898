"""What clients and the server do at the same time, in simulated time: computing, sending, waiting for each other.

Nothing here knows of a model or of bytes that were really sent: a `Course` says what a client does, and `together` when
it has done it.
"""

import math
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from splitfed.link.connection import Link, Way
from splitfed.link.events import Action, Events, Lane, Moment, Queue, Shared
from splitfed.seeds import Key


@dataclass(frozen=True, slots=True)
class Exchange:
    """A frame of `up` bytes, before which a client computes so many seconds, and its answer of `down` bytes, for which
    the server computes so many (`serve`)."""

    before: float
    up: int
    serve: float
    down: int


@dataclass(frozen=True, slots=True)
class Step:
    """A mini-batch at a client: its exchanges, none where all of it stays there, and the seconds that it computes when
    the last is answered."""

    exchanges: tuple[Exchange, ...]
    after: float


@dataclass(frozen=True, slots=True)
class Course:
    """What a client does when it is called: it begins so many seconds `late`, is sent `order` bytes, has its
    mini-batches and the `end` of its stream, and answers with `reply` bytes; None: it vanishes before.

    Of several at the same time the one with the lower `rank` is first. What is drawn of its link comes from `key`.
    It goes on to the next mini-batch while `ahead` others, each of one exchange, are not answered.
    """

    late: float
    order: int
    steps: Sequence[Step]
    end: Exchange | None
    reply: int | None
    link: Link | None
    key: Key
    rank: int = 0
    ahead: int = 0


@dataclass(slots=True)
class Moments:
    """When a client is through with each mini-batch, and with everything, and when each of its frames was there for the
    server to compute: seconds after the round's start."""

    steps: list[float] = field(default_factory=list)
    end: float = 0.0
    arrivals: list[float] = field(default_factory=list)


class Back(Protocol):
    """What the server computes with, as clients wait for it."""

    def serve(self, client: int, seconds: float, rank: int, done: Action) -> None:
        """Compute what a client's frame needs."""

    def leave(self, client: int) -> None:
        """Hear that no frame of a client comes any more."""


class OneByOne(Back):
    """Mini-batches one after another, as they come."""

    def __init__(self, events: Events) -> None:
        self._queue = Queue(events)

    def serve(self, client: int, seconds: float, rank: int, done: Action) -> None:
        """Compute it when its turn comes."""
        self._queue.serve(seconds, rank, done)

    def leave(self, client: int) -> None:
        """Nobody waits for it."""


class Jointly(Back):
    """Joint steps, each of a mini-batch of every client that is expected. A step waits with `patience`, once it has its
    first and the one before is done; who was missed is expected again from its next mini-batch on."""

    def __init__(self, events: Events, clients: Sequence[int], patience: float) -> None:
        self._events, self._patience = events, patience
        self._expected, self._missed = set(clients), set[int]()
        self._gathered: dict[int, tuple[float, int, Action]] = {}
        self._since, self._busy, self._step = 0.0, False, 0

    def serve(self, client: int, seconds: float, rank: int, done: Action) -> None:
        """Compute it with those of the others."""
        if not self._gathered and not self._busy:
            self._wait()
        self._gathered[client] = seconds, rank, done
        self._missed.discard(client)
        self._look()

    def leave(self, client: int) -> None:
        """Expect a client no longer."""
        self._expected.discard(client)
        self._look()

    def _wait(self) -> None:
        step = self._step
        self._events.at(self._events.now + self._patience, 0, lambda: self._train() if step == self._step else None)

    def _look(self) -> None:
        if not self._busy and self._gathered and self._expected - self._missed <= self._gathered.keys():
            self._train()

    def _train(self) -> None:
        if self._busy or not self._gathered:
            return
        joined, self._gathered = self._gathered, {}
        self._missed, self._busy, self._step = self._expected - joined.keys(), True, self._step + 1

        def end() -> None:
            self._busy = False
            if self._gathered:
                self._wait()
            for _, rank, done in joined.values():
                self._events.at(self._events.now, rank, done)
            self._look()

        self._events.at(self._events.now + math.fsum(one[0] for one in joined.values()), 0, end)


# At a time of its own a client waits for something that others wait for too, and goes on when that is done.
_Wait = tuple[float, Callable[[Action], None]]
_Waits = Generator[_Wait, None, None]
_Passes = Generator[_Wait, None, float]  # returns when it is over


@dataclass(frozen=True, slots=True)
class Site:
    """What clients share: the server's link, in bytes a second each way (None: no bound), and whether their
    mini-batches make joint steps, which wait with so much `patience` (None: each is a step of its own)."""

    up: float | None = None
    down: float | None = None
    patience: float | None = None

    def together(self, courses: Mapping[int, Course], begun: float, now: float = 0.0) -> dict[int, Moments]:
        """Return the moments of clients who are called at once, so many seconds after the round's start, which is `now`
        in the time of the whole run."""
        wave = _Wave(self, courses, begun, now)
        return wave.run()


class _Wave:
    def __init__(self, site: Site, courses: Mapping[int, Course], begun: float, now: float) -> None:
        self._courses, self._begun, self._now = courses, begun, now
        self._events = Events(begun)
        self._up, self._down = Shared(self._events, site.up), Shared(self._events, site.down)
        joint = None if site.patience is None else Jointly(self._events, list(courses), site.patience)
        self._joint, self._back = joint is not None, joint or OneByOne(self._events)
        self._moments = {client: Moments() for client in courses}

    def run(self) -> dict[int, Moments]:
        for client, course in self._courses.items():
            self._go_on(self._live(client, course), course.rank)
        self._events.run()
        return self._moments

    def _go_on(self, life: _Waits, rank: int) -> None:
        if (waits := next(life, None)) is not None:
            moment, wait = waits
            self._events.at(moment, rank, lambda: wait(lambda: self._go_on(life, rank)))

    def _live(self, client: int, course: Course) -> _Waits:
        mine, rank = self._moments[client], course.rank
        messaging = 0.0 if course.link is None else course.link.messaging
        now = max(self._begun, course.late) + messaging
        orders, replies = self._ways(course, "control")
        down, up = self._ways(course, "data")
        now = yield from self._pass(now, orders, course.order, self._down, rank)
        train = self._ahead if course.ahead else self._in_turn
        now = yield from train(now, client, course, up, down)
        if self._joint:
            yield now, partial(self._leave, client)
        if course.end is not None:
            end = course.end
            now = yield from self._pass(now, up, end.up, self._up, rank)
            now = yield from self._pass(now, down, end.down, self._down, rank)
        if course.reply is not None:
            now = yield from self._pass(now + messaging, replies, course.reply, self._up, rank)
        mine.end = now

    def _in_turn(self, now: float, client: int, course: Course, up: Way | None, down: Way | None) -> _Passes:
        """Go through the mini-batches one after another; return when the last is through."""
        connected = course.link is None
        for step in course.steps:
            for exchange in step.exchanges:
                now += exchange.before
                if not connected and course.link is not None:
                    now, connected = now + course.link.connecting, True
                now = yield from self._exchange(now, client, exchange, up, down, course.rank)
            now += step.after
            self._moments[client].steps.append(now)
        return now

    def _ahead(self, now: float, client: int, course: Course, up: Way | None, down: Way | None) -> _Passes:
        """Go through the mini-batches as `_in_turn` does, but that some are under way while the client computes."""
        lanes, waiting = (Lane(), Lane()), deque[tuple[Moment, float]]()
        connected = course.link is None
        for step in course.steps:
            (exchange,) = step.exchanges
            now += exchange.before
            if not connected and course.link is not None:
                now, connected = now + course.link.connecting, True
            answer = Moment()
            self._go_on(self._flight(now, client, exchange, (up, down), lanes, answer, course.rank), course.rank)
            waiting.append((answer, step.after))
            if len(waiting) > course.ahead:
                now = yield from self._answered(now, client, *waiting.popleft())
        while waiting:
            now = yield from self._answered(now, client, *waiting.popleft())
        return now

    def _answered(self, now: float, client: int, answer: Moment, after: float) -> _Passes:
        """Wait for an answer and compute what it is for; return when that is done."""
        yield now, answer.wait
        now = self._events.now + after
        self._moments[client].steps.append(now)
        return now

    def _flight(
        self, now: float, client: int, one: Exchange, ways: tuple[Way | None, Way | None], lanes: tuple[Lane, Lane],
        answer: Moment, rank: int,
    ) -> _Waits:  # fmt: skip
        """Let a frame and its answer pass, each behind those before it."""
        now = yield from self._follow(now, ways[0], one.up, self._up, lanes[0], rank)
        self._moments[client].arrivals.append(now)
        yield now, lambda go_on: self._back.serve(client, one.serve, rank, go_on)
        now = yield from self._follow(self._events.now, ways[1], one.down, self._down, lanes[1], rank)
        yield now, answer.reach

    def _follow(self, now: float, way: Way | None, size: int, shared: Shared, lane: Lane, rank: int) -> _Passes:
        """Send so many bytes when those before have left; return when they are there, as TCP has it after those."""
        yield now, lane.enter
        gone, after = yield from self._leaving(self._events.now, way, size, shared, rank, follows=True)
        yield gone, lane.leave
        lane.last = max(lane.last, gone + after)
        return lane.last

    def _leave(self, client: int, go_on: Action) -> None:
        self._back.leave(client)
        go_on()

    def _ways(self, course: Course, plane: str) -> tuple[Way | None, Way | None]:
        """Return the ways down and up."""
        if (link := course.link) is None:
            return None, None
        key = course.key.at(plane)
        down = Way(link.down.later(self._now), link, key.at("down"))
        up = Way(link.up.later(self._now), link, key.at("up"))
        if plane == "data":
            down.join(up)
        return down, up

    def _exchange(self, now: float, client: int, one: Exchange, up: Way | None, down: Way | None, rank: int) -> _Passes:
        now = yield from self._pass(now, up, one.up, self._up, rank)
        self._moments[client].arrivals.append(now)
        if one.serve or self._joint:
            yield now, lambda go_on: self._back.serve(client, one.serve, rank, go_on)
            now = self._events.now
        return (yield from self._pass(now, down, one.down, self._down, rank))

    def _pass(self, now: float, way: Way | None, size: int, shared: Shared, rank: int) -> _Passes:
        """Send so many bytes; return when they are there."""
        gone, after = yield from self._leaving(now, way, size, shared, rank)
        return gone + after

    def _leaving(
        self, now: float, way: Way | None, size: int, shared: Shared, rank: int, follows: bool = False
    ) -> Generator[_Wait, None, tuple[float, float]]:
        """Send so many bytes; return when the last of them has left, and how many seconds later it is there."""
        if not size:
            return now, 0.0
        gone, after = (now, 0.0) if way is None else way.send(now, size, follows)
        if shared.bound:
            yield now, partial(shared.send, size, gone - now, rank)
            gone = self._events.now
        return gone, after
