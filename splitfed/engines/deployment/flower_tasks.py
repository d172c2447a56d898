"""Flower tasks that this process takes on itself, instead of a new process that Flower would start for each message.

A task is claimed at the Runtime API of a SuperLink or SuperNode that we started, pulled, kept alive by heartbeats, and
reported. Flower's own helpers for this send the process SIGINT when a task is gone; here that is an exception.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PushTaskOutputRequest, SendTaskHeartbeatRequest
from flwr.supercore.error import FlowerError
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import (
    ProtobufCall,
    ProtobufClient,
    ProtobufClientInterceptor,
    ProtobufRequestContext,
)
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.retry.retry_invoker import constant
from flwr.supercore.runtime import RuntimeHttpClient

from splitfed.engines.deployment.processes import own_context
from splitfed.engines.deployment.proof import HEADER, proof
from splitfed.errors import SplitfedError
from splitfed.wire.records import shown

# A claimed task is given up by Flower after 30 s without a sign of life, a started one after 60 s.
_HEARTBEAT_SECONDS = 10.0
Client = TypeVar("Client", bound=ProtobufClient)
_CALL_SECONDS, _RETRY_SECONDS = 30.0, 0.2
_UNAVAILABLE = (502, 503, 504)
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})


class TaskEnded(SplitfedError):
    """A task that is ours no longer: its run was stopped, or Flower gave it up after a minute without a heartbeat."""


class ApiError(SplitfedError):
    """A call that a SuperLink or SuperNode of ours refused; `code` is Flower's, 0 where it gave none."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class _Refusals:
    """Signs a request with the proof that we started the other side, and turns its refusal into our errors."""

    def __init__(self, secret: bytes, token: str | None) -> None:
        self._proof, self._token = proof(secret), token

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers[HEADER] = self._proof
        response = call_next(context)
        if not response.is_error or response.status_code in _UNAVAILABLE:
            return response
        known = FlowerError.from_json(response.text)
        text = shown(known.message if known else f"HTTP {response.status_code} {response.text}")
        if response.status_code in (401, 403) and self._token:
            raise TaskEnded(f"Flower ended this task: {text}")
        raise ApiError(f"{context.rpc_method}: {text}", known.code if known else 0)


def connect(
    kind: type[Client],
    address: str,
    ca: Path | None,
    secret: bytes,
    *,
    token: str | None = None,
    patience: float = 20.0,
) -> Client:
    """Return a client of a SuperLink or SuperNode that we started, at `address` (host:port); over TLS with `ca`.

    While it does not answer, calls are repeated for `patience` seconds; then httpx.TransportError comes through.
    """
    interceptors: list[ProtobufClientInterceptor] = [_Refusals(secret, token)]
    interceptors += [SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE)]
    interceptors += [RuntimeTokenHttpInterceptor(token)] if token else []
    verify = own_context(ca) if ca else False
    client = kind.__new__(kind)  # Flower's own `__init__` fails where the user's environment names a SOCKS proxy
    client._base_url = f"{'https' if ca else 'http'}://{address}"
    client._interceptors, client._retry_invoker = tuple(interceptors), _retries(patience)
    client._client = httpx.Client(verify=verify, timeout=_CALL_SECONDS, trust_env=False)
    return client


def _retries(patience: float) -> RetryInvoker:
    return RetryInvoker(
        lambda: constant(_RETRY_SECONDS),
        (httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=patience,
        jitter=None,
    )


@dataclass(frozen=True, slots=True)
class Claim:
    """A task that is ours: the run it belongs to, and the token that every call about it needs."""

    run_id: int
    token: str


def acquire(client: RuntimeHttpClient, kind: str) -> Claim | None:
    """Claim the oldest waiting task of a kind (Flower's TaskType), or return None where none waits."""
    answer = client.AcquireTask(AcquireTaskRequest(supported_task_types=[kind]))
    return Claim(answer.task.run_id, answer.token) if answer.token else None


def finish(client: RuntimeHttpClient, sub_status: str, details: str = "") -> None:
    """Report how a task ended (Flower's SubStatus); nothing is raised where nobody wants to know any more."""
    with suppress(httpx.HTTPError, SplitfedError):
        client.PushTaskOutput(PushTaskOutputRequest(sub_status=sub_status, details=details))


@contextmanager
def heartbeat(client: RuntimeHttpClient) -> Iterator[threading.Event]:
    """Keep a task ours while the block runs; the event is set when it is not."""
    stop, lost = threading.Event(), threading.Event()

    def beat() -> None:
        while not stop.wait(_HEARTBEAT_SECONDS):
            try:
                if not client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                    lost.set()
            except SplitfedError:
                lost.set()
            except httpx.HTTPError:
                continue

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        stop.set()


NAME, PUBLISHER = "splitfed", "splitfed"


def bundle(run_config: Mapping[str, str | int | float | bool]) -> bytes:
    """Return a Flower app bundle (FAB) that names the installed package's apps; nodes get `run_config` in their
    context.

    Raises ValueError where Flower would refuse it.
    """
    import tomli_w
    from flwr.cli.build import build_fab_from_files

    from splitfed.version import __version__

    components = {"serverapp": "splitfed.server.app:app", "clientapp": "splitfed.clients.app:app"}
    app = {"publisher": PUBLISHER, "components": components, "config": dict(run_config)}
    # No dependencies: Flower would install what they name, and both sides run what they have.
    project = {"name": NAME, "version": __version__, "description": "Federated split learning", "license": "Apache-2.0"}
    text = tomli_w.dumps({"project": {**project, "dependencies": []}, "tool": {"flwr": {"app": app}}})
    return build_fab_from_files({"pyproject.toml": text.encode()})[0]
