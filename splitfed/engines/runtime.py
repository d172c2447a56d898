"""What the process that starts a run lends the ServerApp in it: who watches, and where clients may reach it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # with it comes the scenario, which the processes of a deployment that train nothing do without
    from splitfed.run.observer import Observer


@dataclass(frozen=True, slots=True)
class ServerTls:
    """The files by which a server proves who it is: its certificate (PEM, with the chain) and private key."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Runtime:
    """Set around a run; the defaults are those of a run whose clients are all in this process.

    Clients reach the split server at `host`:`port` (port 0 takes a free one); `public` is set where their training
    messages must name the host too, because they joined none. `roster` returns which client each node is, by its key;
    where there is none, nodes say it themselves. `waits` lets clients come and go: the run begins when `enough` of them
    (None: all) are there, and tells them when it is over. `expect` hears how many bytes a client's message may have.
    """

    observers: "tuple[Observer, ...]" = ()
    host: str = "127.0.0.1"
    port: int = 0
    public: str | None = None
    tls: ServerTls | None = None
    roster: Callable[[], Mapping[int, int]] | None = None
    waits: bool = False
    enough: int | None = None
    expect: Callable[[int], object] = lambda most: None


_runtime: ContextVar[Runtime | None] = ContextVar("runtime", default=None)


def runtime() -> Runtime:
    """Return what was lent to the run in progress."""
    return _runtime.get() or Runtime()


@contextmanager
def lent(runtime: Runtime) -> Iterator[None]:
    """Lend this to the ServerApp that the `with` block runs."""
    token = _runtime.set(runtime)
    try:
        yield
    finally:
        _runtime.reset(token)
