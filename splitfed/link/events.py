"""What happens in simulated time, one event after another, and what several wait for: a capacity, a queue."""

import heapq
import math
from collections import deque
from collections.abc import Callable

import numpy as np

Action = Callable[[], None]

_NOTHING = 1e-9  # bytes


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


class Moment:
    """Something that happens once, and what one waits to do then."""

    def __init__(self) -> None:
        self._reached = False
        self._action: Action | None = None

    def reach(self, then: Action) -> None:
        """Let it happen, and then do this."""
        self._reached = True
        if self._action is not None:
            self._action()
        then()

    def wait(self, action: Action) -> None:
        """Have an action done when it happens, or at once if it has."""
        self._action = action
        if self._reached:
            action()


class Lane:
    """What one passes after another, in the order in which they come; `last` is when the latest was at the other
    end."""

    def __init__(self) -> None:
        self.last = -math.inf
        self._busy, self._waiting = False, deque[Action]()

    def enter(self, action: Action) -> None:
        """Have an action done when all before have left."""
        if self._busy:
            self._waiting.append(action)
        else:
            self._busy = True
            action()

    def leave(self, then: Action) -> None:
        """Let the next one in, and then do this."""
        if self._waiting:
            self._waiting.popleft()()
        else:
            self._busy = False
        then()


class Shared:
    """A line of so many bytes a second that is shared evenly, but nobody gets more than its own pace takes (max-min
    fairness); None is no bound."""

    def __init__(self, events: Events, capacity: float | None) -> None:
        self._events, self._capacity = events, math.inf if capacity is None else capacity
        self.bound = capacity is not None  # so that one may wait for another
        # Who sends, the slowest by its own pace first: rank, what is done at the end; pace, rate, and what is left.
        self._sending: list[tuple[int, Action]] = []
        self._pace = self._rate = self._left = np.empty(0)
        self._since = events.now
        self._plan = 0  # the number of the last plan for who is through first

    def send(self, size: float, seconds: float, rank: int, done: Action) -> None:
        """Send so many bytes, which take so many seconds where nobody else is there."""
        self._advance()
        pace = min(size / seconds, self._capacity) if seconds > 0 else self._capacity
        place = int(np.searchsorted(self._pace, pace, "right"))
        self._sending.insert(place, (rank, done))
        self._pace, self._left = np.insert(self._pace, place, pace), np.insert(self._left, place, size)
        self._share()

    def _advance(self) -> None:
        now = self._events.now
        if self._sending:
            self._left = self._left - self._rate * (now - self._since)
        self._since = now

    def _share(self) -> None:
        """Divide the line, and plan when the first is through."""
        self._plan += 1
        if not (count := len(self._sending)):
            return
        # What those who are slower than an even share leave is shared by the others.
        even = (self._capacity - (np.cumsum(self._pace) - self._pace)) / np.arange(count, 0, -1)
        slower = int(np.argmin(np.append(self._pace <= even, False)))
        self._rate = self._pace.copy()
        if slower < count:
            self._rate[slower:] = even[slower]
        needs = self._left / self._rate
        first, plan = int(np.argmin(needs)), self._plan
        at = self._events.now + max(0.0, float(needs[first]))
        self._events.at(at, self._sending[first][0], lambda: self._end(plan, at))

    def _end(self, plan: int, at: float) -> None:
        """Let those go who are through, unless someone has come or gone since."""
        if plan != self._plan:
            return
        self._advance()
        # What is left of those who are through is a rounding error; time has no smaller step than that of its number.
        through = self._left <= self._rate * 4 * math.ulp(at) + _NOTHING
        ended = [one for one, over in zip(self._sending, through, strict=True) if over]
        self._sending = [one for one, over in zip(self._sending, through, strict=True) if not over]
        self._pace, self._left = self._pace[~through], self._left[~through]
        self._rate = self._rate[~through]
        self._share()
        for _, done in sorted(ended, key=lambda one: one[0]):
            done()
