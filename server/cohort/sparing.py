"""Lines of which anybody may cause as many as he likes, where there are no keys: what is told of them."""

import time
from collections.abc import Callable
from logging import getLogger

log = getLogger("splitfed")

_SECONDS, _LONGEST = 60.0, 3600.0


class Sparing:
    """Tells at most so many warnings in a minute, and where they do not cease, in two minutes, four, at last an hour;
    of the others how many there were.

    `clock` tells seconds."""

    def __init__(self, most: int, clock: Callable[[], float] = lambda: time.monotonic()) -> None:
        self._most, self._clock = most, clock
        self._since, self._seconds = clock(), _SECONDS
        self._told = self._kept = 0

    def warn(self, text: str) -> None:
        """Tell a line, or count it."""
        past = self._clock() - self._since
        if past >= self._seconds:
            ceased = self._told < self._most / 2 or past >= 2 * self._seconds
            self._seconds = _SECONDS if ceased else min(2 * self._seconds, _LONGEST)
            if self._kept:
                log.warning("%d lines more, of nodes that were refused, were left out", self._kept)
            self._since, self._told, self._kept = self._clock(), 0, 0
        if self._told == self._most:
            self._kept += 1
            return
        self._told += 1
        log.warning("%s", text)


def worth_telling(times: int) -> bool:
    """Whether to tell of what has happened so many times now: of the first few, and then ever more seldom."""
    return times <= 8 or times & (times - 1) == 0
