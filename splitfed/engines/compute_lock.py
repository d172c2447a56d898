"""A baton: of several threads that work for one process, only the one that holds it computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, local

from splitfed.errors import RunError

_held = local()


class Baton:
    """A context manager that a thread computes in. Inside `aside()` the thread is without it, so that others compute
    while it waits. torch's own threads are then not asked for by many at once, nor is its global generator."""

    def __init__(self) -> None:
        self._lock, self._stopped = Lock(), False

    def stop(self) -> None:
        """Let no thread compute that takes the baton from now on: it gets a RunError."""
        self._stopped = True

    def take(self) -> None:
        """Wait for the baton."""
        self._lock.acquire()
        if self._stopped:
            raise RunError("the run has been stopped")

    def give(self) -> None:
        """Let another thread have it."""
        self._lock.release()

    def __enter__(self) -> None:
        _held.baton = self
        try:
            self.take()
        except RunError:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        _held.baton = None
        self.give()


@contextmanager
def aside() -> Iterator[None]:
    """Be without the baton, if this thread has one, for what waits for other threads. Take no lock inside that is still
    held at the end: whoever has the baton then may be waiting for it."""
    baton: Baton | None = getattr(_held, "baton", None)
    if baton is None:
        yield
        return
    baton.give()
    try:
        yield
    finally:
        baton.take()
