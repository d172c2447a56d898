"""The server's task: our ServerApp in this process, as the SuperLink's task for one run."""

import time
from collections.abc import Mapping
from pathlib import Path

import httpx
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto.runtime_pb2 import PullTaskInputRequest
from flwr.serverapp import ServerApp
from flwr.supercore.constant import TaskType
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from splitfed.engines.deployment.flower_tasks import acquire, connect, finish, heartbeat
from splitfed.errors import RunError
from splitfed.server.deployment.http_grid import ArrivingGrid
from splitfed.wire.records import shown

_POLL_SECONDS = 0.2
CLAIM_SECONDS = 30.0  # until the SuperLink must have offered the run's task


def run_server_app(
    app: ServerApp,
    *,
    address: str,
    ca: Path | None,
    secret: bytes,
    run_id: int,
    run_config: Mapping[str, str | int | float | bool],
) -> None:
    """Run `app` here and now as the ServerApp of a run that was started at the SuperLink at `address` (host:port).

    The SuperLink hears how it ended; the app's exceptions come through. Raises RunError where the task is not to be
    had, or the SuperLink stops answering.
    """
    token = _claim(address, ca, secret, run_id)
    with connect(RuntimeHttpClient, address, ca, secret, token=token) as client, heartbeat(client):
        given = client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        context = context_from_proto(given.context)
        context.run_config = dict(run_config)
        grid = ArrivingGrid(client, token)
        grid.set_run(run_from_proto(given.run))
        status, details = SubStatus.FAILED, ""
        try:
            app(grid, context)
            status = SubStatus.COMPLETED
        except KeyboardInterrupt:
            status, details = SubStatus.STOPPED, "stopped by its user"
            raise
        except httpx.HTTPError as error:
            raise RunError(f"the SuperLink at {address} does not answer any more ({shown(str(error))})") from error
        except BaseException as error:
            details = f"{type(error).__name__}: {error}"
            raise
        finally:
            finish(client, status, details)


def _claim(address: str, ca: Path | None, secret: bytes, run_id: int) -> str:
    """Take the run's task. Tasks of other runs that wait in an old database are nobody's: they are ended."""
    limit = time.monotonic() + CLAIM_SECONDS
    with connect(RuntimeHttpClient, address, ca, secret) as client:
        while time.monotonic() < limit:
            claim = acquire(client, TaskType.SERVER_APP)
            if claim is None:
                time.sleep(_POLL_SECONDS)
            elif claim.run_id == run_id:
                return claim.token
            else:
                with connect(RuntimeHttpClient, address, ca, secret, token=claim.token) as other:
                    finish(other, SubStatus.FAILED, "its server is gone")
    raise RunError(f"the SuperLink at {address} has no task for run {run_id}: it was stopped, or somebody else took it")
