"""The processes in which clients train under Ray: what they run, who takes a message, and what if one dies."""

import os
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from time import monotonic
from typing import Any

import ray
import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.server.superlink.fleet.vce.backend.backend import Backend
from flwr.simulation.ray_transport.ray_actor import ClientAppActor
from ray.exceptions import RayError, RayTaskError

from splitfed.errors import SplitfedError

START_SECONDS = 180.0  # until there is an actor; an idle machine needs 3


@dataclass(frozen=True, slots=True)
class Guarded:
    """The ClientApp as an actor runs it: on its threads, where the run was started, and with one line for an error."""

    app: ClientApp
    threads: int
    folder: str

    def __call__(self, message: Message, context: Context) -> Message:
        torch.set_num_threads(self.threads)
        with suppress(OSError):  # another machine of a cluster may not have it
            os.chdir(self.folder)
        try:
            return self.app(message, context)
        except SplitfedError as error:
            reason = str(error)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({os.path.basename(last.filename)}:{last.lineno})"
        return _failure(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)


def _failure(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code, " ".join(reason.split())), reply_to=message)


class Actors(Backend):
    """The processes in which clients train, `number` of them, each with `options` of Ray's.

    Each takes any client's message, one at a time. For one that dies its message is answered with an error, and another
    takes its place. `problem` says, in one line, why no client will ever answer.
    """

    def __init__(self, number: int, options: dict[str, Any]) -> None:
        self.problem: str | None = None
        self._number, self._options = number, options
        self._app: Any = None
        self._actors: set[Any] = set()
        self._idle: SimpleQueue[Any] = SimpleQueue()
        self._lock, self._stopped = Lock(), False
        self._ready, self._none_since = 0, monotonic()

    @property
    def num_workers(self) -> int:
        """How many messages are under way at once."""
        return self._number

    def is_worker_idle(self) -> bool:
        """Return whether a message would be taken at once."""
        return not self._idle.empty()

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        """Start the processes; returns before they are up."""
        self._app = app_fn
        for _ in range(self._number):
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._stopped:
                return
            actor = ClientAppActor.options(**self._options).remote()  # type: ignore[attr-defined]
            self._actors.add(actor)
        actor.__ray_ready__.remote().future().add_done_callback(lambda future: self._started(actor, future))

    def _started(self, actor: Any, ready: Future) -> None:
        error = ready.exception()
        with self._lock:
            if error is None:
                self._ready += 1
                self._idle.put(actor)
                return
            self._actors.discard(actor)
            if not self._actors and not self._stopped:
                self.problem = f"engine ray: no client's process starts: {str(error).splitlines()[0]}"

    def stuck(self) -> str | None:
        """Return why no client will ever answer, if none will."""
        if self.problem is None and not self._ready and monotonic() - self._none_since > START_SECONDS:
            self.problem = "engine ray: no client's process could start: are all of Ray's cores or GPUs taken?"
        return self.problem

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        """Run the ClientApp on a message where there is a process free for it, and return its reply and new context."""
        actor = self._idle.get()
        if actor is None:
            return _failure(message, ErrorCode.CLIENT_APP_CRASHED, "the run has ended"), context
        try:
            _, reply, context = ray.get(actor.run.remote(self._app, message, "", context))
        except Exception as error:
            self._replace(actor)
            return _failure(message, ErrorCode.CLIENT_APP_CRASHED, _reason(error)), context
        self._idle.put(actor)
        return reply, context

    def _replace(self, actor: Any) -> None:
        self._start()
        with self._lock:
            self._actors.discard(actor)
            self._ready -= 1
            self._none_since = monotonic()
        with suppress(RayError):
            ray.kill(actor)

    def terminate(self) -> None:
        """End all processes, and with them the waiting for their replies."""
        with self._lock:
            self._stopped = True
            actors, self._actors = self._actors, set()
        for actor in actors:
            with suppress(RayError):
                ray.kill(actor)
        for _ in range(self._number):
            self._idle.put(None)


def _reason(error: Exception) -> str:
    if isinstance(error, RayTaskError):  # before the ClientApp's own code ran, for instance where it cannot be imported
        return f"{type(error.cause).__name__}: {error.cause}"
    return f"the client's process died ({type(error).__name__})"
