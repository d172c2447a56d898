"""Turns: how many threads may be in a place at once, first come, first served."""

from collections import deque
from threading import Lock


class Turns:
    """A context manager that lets `at_once` threads in, in the order in which they came.

    A plain lock would let a thread that leaves and returns pass those who wait.
    """

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: deque[Lock] = deque()
        self._lock = Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:  # then nobody waits
                self._free -= 1
                return
            gate = Lock()
            gate.acquire()
            self._waiting.append(gate)
        gate.acquire()  # until one who leaves opens it

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1
