"""The workers of this process: one, or as many as train at the same time; they share what the process holds."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock

import torch

from splitfed.clients.images import Holding
from splitfed.clients.settings import Settings
from splitfed.clients.worker import Worker
from splitfed.errors import RunError, ScenarioError
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment
from splitfed.version import __version__


class _Workers:
    """Workers for one scenario and one client's settings; `free` are those that nobody has leased, by the blocks of
    their fronts."""

    def __init__(self, scenario: Scenario, settings: Settings, told: Sequence[str]) -> None:
        self.scenario, self.settings, self._told = scenario, settings, told
        self.free: dict[int, list[Worker]] = defaultdict(list)
        self._holding: Holding | None = None
        self._profiles = scenario.dealt_profiles()

    def take(self, client: int) -> Worker:
        """Return a worker with a client's front that is free, or a new one."""
        own = self.scenario.cut_as(self._profile(client))
        if free := self.free[own.model.cut]:
            return free.pop()
        worker = Worker(own, self.settings, self._told, self._holding)
        self._holding = worker.holding
        return worker

    def give(self, worker: Worker) -> None:
        """Take a worker back."""
        self.free[worker.scenario.model.cut].append(worker)

    def _profile(self, client: int) -> str:
        """Return a client's profile; none for a client that the run has not, which is told so by its worker."""
        if isinstance(self.scenario.engine, Deployment):
            said = self.settings.profile or ""
            return said if said in self.scenario.federation.profiles else ""
        return self._profiles[client] if client < len(self._profiles) else ""


# The workers for the latest scenario; none in a process that has just started.
kept: dict[tuple[str, Settings, tuple[str, ...]], _Workers] = {}
_lock = Lock()


@contextmanager
def leased(text: str, settings: Settings, told: Sequence[str] = ()) -> Iterator[Worker]:
    """Have a worker for the server's scenario (its YAML) and a client's settings to oneself in the `with` block.

    Only those for the latest scenario are kept; they serve all clients whose settings differ in nothing that concerns
    them. `told` are the class names that came with the message. Raises RunError for a scenario that cannot be read
    here, and a SplitfedError for what this machine lacks: data, or the device.
    """
    same = replace(settings, partition=0, states=None, host=None, ca=None)
    wanted = (text, same, tuple(told) if settings.data is not None else ())
    with _lock:
        if wanted not in kept:
            kept.clear()
            kept[wanted] = _Workers(_parse(text), settings, told)
        workers = kept[wanted]
        worker = workers.take(settings.partition)
        engine = worker.scenario.engine
        # In other engines whoever started this process has set them.
        if threads := settings.threads or (engine.threads if isinstance(engine, Deployment) else None):
            torch.set_num_threads(threads)
    try:
        yield worker
    finally:
        with _lock:
            workers.give(worker)


def _parse(text: str) -> Scenario:
    try:
        return Scenario.parse(text, "the server's scenario")
    except ScenarioError as error:
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        raise RunError(
            f"{error.problems[0]}{more}; this is splitfed {__version__}: is the server's version another?"
        ) from None
