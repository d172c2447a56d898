"""Turns: so many threads at a time, first come, first served."""

from collections import deque
from threading import Lock


class Turns:
    """A context manager that lets `at_once` threads in, in the order in which they came.

    Nothing of the standard library does this for a thread that is to go on as itself:

    - `threading.Lock` and `threading.Semaphore` promise no order. A thread that leaves and comes right back passes
      those who wait, so one busy stream would keep the back from all others.
    - `concurrent.futures.ThreadPoolExecutor` keeps the order, but works in threads of its own. Every mini-batch would
      be handed to one and back, torch would keep threads and memory for each of them, and Ctrl-C, which comes to the
      thread that asked, would end its waiting while the mini-batch went on.

    Each who waits has a lock of its own, which whoever leaves opens. So it wakes one thread, the one whose turn it is.
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
