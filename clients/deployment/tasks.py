"""The client's worker: runs the messages that its SuperNode receives, in this process, which stays warm in between.

Only the app that it is given runs, whatever came with the run: the bundle of an app that Flower hands over is neither
unpacked nor imported.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from splitfed.engines.deployment.flower_tasks import acquire, connect, finish, heartbeat
from splitfed.errors import Diverged, SplitfedError, telling_missing
from splitfed.wire.messages import DIVERGED

_POLL_SECONDS = 0.2
# The SuperNode is a child on this machine: where it does not answer for so long, it is gone.
PATIENCE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """What became of one message: `seconds` since it started; its `reply`, and the `error` where it failed or its reply
    was not wanted."""

    kind: Literal["started", "done", "failed", "unwanted"]
    message_type: str
    run_id: int
    seconds: float = 0.0
    error: BaseException | None = None
    message: Message | None = None
    reply: Message | None = None


class TaskLoop:
    """Runs the tasks of the SuperNode at `address` (host:port on this machine), one after another.

    Handlers find `node_config_extra` in their context's `node_config`; it stays in this process.
    """

    def __init__(self, address: str, secret: bytes, node_config_extra: Mapping[str, Any] | None = None) -> None:
        self._address, self._secret, self._extra = address, secret, dict(node_config_extra or {})

    def run(
        self,
        app: ClientApp,
        on_event: Callable[[TaskEvent], None] = lambda event: None,
        stop: threading.Event | None = None,
    ) -> None:
        """Run messages until `stop` is set or the SuperNode is gone. A handler's exception goes to the server as an
        error reply, and the loop goes on; a KeyboardInterrupt is told to the server too, and comes through."""
        stop = stop or threading.Event()
        with self._connect() as client:
            while not stop.is_set():
                try:
                    claim = acquire(client, TaskType.CLIENT_APP)
                except httpx.TransportError:
                    return
                if claim is None:
                    stop.wait(_POLL_SECONDS)
                    continue
                with self._connect(claim.token) as owner, heartbeat(owner):
                    self._perform(owner, app, on_event)

    def _connect(self, token: str | None = None) -> RuntimeHttpClient:
        return connect(RuntimeHttpClient, self._address, None, self._secret, token=token, patience=PATIENCE_SECONDS)

    def _perform(self, client: RuntimeHttpClient, app: ClientApp, on_event: Callable[[TaskEvent], None]) -> None:
        try:
            message, context, run, _ = pull_task_input(client)
        except BaseException as lost:
            finish(client, SubStatus.FAILED, reason(lost))
            if not isinstance(lost, Exception):
                raise
            on_event(TaskEvent("unwanted", "", 0, error=lost))
            return
        kind, started = message.metadata.message_type, time.monotonic()
        on_event(TaskEvent("started", kind, run.run_id))
        reply, error = self._answer(app, message, context)
        seconds = time.monotonic() - started
        try:
            push_message(client, reply, context)
            # A failed handler's context is not kept, as in Flower.
            ended = (context, SubStatus.COMPLETED, "") if error is None else (None, SubStatus.FAILED, reason(error))
            push_task_output(client, *ended)
        except (SplitfedError, httpx.HTTPError) as unwanted:
            on_event(TaskEvent("unwanted", kind, run.run_id, seconds, unwanted))
        else:
            on_event(TaskEvent("failed" if error else "done", kind, run.run_id, seconds, error, message, reply))
        if error is not None and not isinstance(error, Exception):
            raise error

    def _answer(self, app: ClientApp, message: Message, context: Context) -> tuple[Message, BaseException | None]:
        configured = context.node_config
        context.node_config = {**configured, **self._extra}
        try:
            with telling_missing():
                return app(message, context), None
        except BaseException as error:
            code = DIVERGED if isinstance(error, Diverged) else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(Error(code, reason(error)), reply_to=message), error
        finally:
            context.node_config = configured


def reason(error: BaseException) -> str:
    """Return the line that the server shows for a client's error."""
    text = " ".join(str(error).split())
    if isinstance(error, SplitfedError):
        return text
    if isinstance(error, KeyboardInterrupt):
        return "the client was stopped by its user"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
