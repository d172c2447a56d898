"""What happens in simulated time, one event after another, and what several wait for: a capacity, a queue."""

import heapq
import math
from collections.abc import Callable

Action = Callable[[], None]


class Events:
    """Actions in order of time; of those at the same time that with the lower `rank` is first, then who came first.
    `now` is in seconds."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._waiting: list[tuple[float, int, int, Action]] = []
        self._count = 0

    def at(self, time: float, rank: int, action: Action) -> None:
        """Have an action done then, or now where that is past."""
        self._count += 1
        heapq.heappush(self._waiting, (max(time, self.now), rank, self._count, action))

    def run(self) -> None:
        """Let everything happen."""
        while self._waiting:
            self.now, _, _, action = heapq.heappop(self._waiting)
            action()


class Queue:
    """What does one thing at a time, first come, first served."""

    def __init__(self, events: Events) -> None:
        self._events, self._free = events, -math.inf

    def serve(self, seconds: float, rank: int, done: Action) -> None:
        """Do what takes so many seconds, when its turn comes."""
        self._free = max(self._free, self._events.now) + seconds
        self._events.at(self._free, rank, done)


class _Flow:
    __slots__ = ("done", "left", "pace", "rank", "rate")

    def __init__(self, left: float, pace: float, rank: int, done: Action) -> None:
        self.left, self.pace, self.rank, self.done, self.rate = left, pace, rank, done, 0.0


class Shared:
    """A line of so many bytes a second that is shared evenly, but nobody gets more than its own pace takes (max-min
    fairness); None is no bound."""

    def __init__(self, events: Events, capacity: float | None) -> None:
        self._events, self._capacity = events, capacity
        self._flows: list[_Flow] = []
        self._since = events.now
        self._plan = 0  # the number of the last plan for who is through first

    @property
    def bound(self) -> bool:
        """Whether there is a bound, so that one waits for another."""
        return self._capacity is not None

    def send(self, size: float, seconds: float, rank: int, done: Action) -> None:
        """Send so many bytes, which take so many seconds where nobody else is there."""
        self._advance()
        self._flows.append(_Flow(size, size / seconds if seconds > 0 else math.inf, rank, done))
        self._share()

    def _advance(self) -> None:
        now = self._events.now
        for flow in self._flows:
            flow.left -= flow.rate * (now - self._since)
        self._since = now

    def _share(self) -> None:
        """Divide the capacity, and plan when the first is through."""
        assert self._capacity is not None
        left, others = self._capacity, len(self._flows)
        for flow in sorted(self._flows, key=lambda flow: flow.pace):
            flow.rate = min(flow.pace, left / others)
            left, others = left - flow.rate, others - 1
        self._plan += 1
        if self._flows:
            soonest = min(flow.left / flow.rate for flow in self._flows)
            plan, rank = self._plan, min(flow.rank for flow in self._flows)
            self._events.at(self._events.now + max(0.0, soonest), rank, lambda: self._end(plan))

    def _end(self, plan: int) -> None:
        """Let those go who are through, unless someone has come since."""
        if plan != self._plan:
            return
        self._advance()
        # What is left of a flow that is through is a rounding error; time has no smaller step than that of its number.
        slack = 4 * math.ulp(self._events.now)
        through = [flow for flow in self._flows if flow.left <= flow.rate * slack + 1e-9]
        self._flows = [flow for flow in self._flows if flow not in through]
        self._share()
        for flow in sorted(through, key=lambda flow: flow.rank):
            flow.done()
