"""Says what a program is doing where that takes long: a line for each thing that takes more than two seconds.

Whoever runs the program lets it `speak`; where nobody does, as in a library, nothing is said.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer

PATIENCE = 2.0  # seconds


@contextmanager
def speak(say: Callable[[str], None]) -> Iterator[None]:
    """Have `say` called, from another thread, with what takes longer than `PATIENCE` within the `with` block."""

    def later(what: str) -> Timer:
        timer = Timer(PATIENCE, say, (f"{what} ...",))
        timer.daemon = True
        return timer

    _listening.append(later)
    try:
        yield
    finally:
        _listening.remove(later)


_listening: list[Callable[[str], Timer]] = []


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Do `what` the `with` block does, such as "loading the data", and have it said if it takes long."""
    timers = [later(what) for later in _listening]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
