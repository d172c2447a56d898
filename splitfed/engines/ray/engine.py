"""The Ray engine: Flower's simulation runtime, with clients in Ray actors and the ServerApp in this process.

Flower runs the ServerApp in a thread beside its runtime. Here it is the other way round, so that Ctrl-C, errors and
what is lent to the run reach the ServerApp as they do inline.
"""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from threading import Event, Thread
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.compat.client.run_info_store import DeprecatedRunInfoStore, RunInfo
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.fleet.vce.vce_api import _register_nodes, run_api
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.serverapp import ServerApp
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from splitfed.engines import allocator
from splitfed.engines.inline import UserConfig
from splitfed.engines.ray.actors import Actors, Guarded
from splitfed.engines.ray.cluster import connected, host, room
from splitfed.engines.runtime import lent, runtime
from splitfed.errors import RunError
from splitfed.scenario.engine import Ray

_RUN, _TASK = 1, 1
_STOP_SECONDS = 10.0


class WatchedGrid(InMemoryGrid):
    """Flower's own grid, but that it raises a RunError where nobody would ever answer."""

    def __init__(self, states: LinkStateFactory, stuck: Callable[[], str | None]) -> None:
        super().__init__(states)
        self._stuck = stuck

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come."""
        if problem := self._stuck():
            raise RunError(problem)
        return super().pull_messages(message_ids)


def run_ray(
    server_app: ServerApp, client_app: ClientApp, clients: int, run_config: UserConfig, engine: Ray, together: int = 1
) -> None:  # fmt: skip
    """Run the ServerApp here and the ClientApp in Ray until the ServerApp ends; its exceptions come through.

    A client's exception comes as an error reply. Raises RunError where Ray does not start or has no room, also for so
    many clients that must train `together`."""
    with connected(engine.address, _variables(engine)) as variables:
        number = min(room(engine), clients, _at_once())
        if number < together:
            raise RunError(
                f"federation.wave: {together} clients wait for each other, but {number} is all that Ray and Flower's "
                f"simulation train at once here: set it to {number} or less, or give a client less in engine"
            )
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = _TASK, _RUN, SUPERLINK_NODE_ID
        states = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
        run = _registered(states)
        nodes = _register_nodes(clients, states)
        stores = {node: _store(node, client, clients, run_config) for node, client in nodes.items()}
        options: dict[str, Any] = {"num_cpus": engine.client_cpus, "num_gpus": engine.client_gpus}
        if variables:
            options["runtime_env"] = {"env_vars": variables}
        actors = Actors(number, options)
        hosted: Any = Guarded(client_app, engine.threads or engine.client_cpus, os.getcwd())
        over = Event()

        def serve() -> None:
            try:
                run_api(lambda: hosted, lambda: actors, nodes, states, stores, over, VceMetrics())
            except Exception as error:
                actors.problem = f"engine ray: Flower's simulation runtime failed: {error.__cause__ or error}"

        runtime_thread = Thread(target=serve, name="flower-runtime", daemon=True)
        runtime_thread.start()
        try:
            here = host()
            grid = WatchedGrid(states, actors.stuck)
            grid.set_run(run)
            with lent(replace(runtime(), host=here, public=here)):
                server_app(grid, Context(_RUN, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config)))
        finally:
            over.set()
            actors.terminate()
            runtime_thread.join(_STOP_SECONDS)


def _registered(states: LinkStateFactory) -> Run:
    run = Run.create_empty(_RUN)
    run.primary_task_id, run.federation_id = _TASK, NOOP_FEDERATION_ID
    state: Any = states.state()
    state.run_ids[_RUN] = RunRecord(run=run)
    state.task_store[_TASK] = Task(task_id=_TASK, run_id=_RUN)
    return run


def _store(node: int, client: int, clients: int, run_config: UserConfig) -> DeprecatedRunInfoStore:
    config: UserConfig = {"partition-id": client, "num-partitions": clients}
    store = DeprecatedRunInfoStore(node, config)
    # Flower itself reads a run's configuration from an app folder, and there is none.
    store.run_infos[_RUN] = RunInfo(Context(_RUN, node, config, RecordDict(), dict(run_config)), dict(run_config))
    return store


def _at_once() -> int:
    """Return how many messages Flower's simulation has under way at once, however many actors there are."""
    cpus = getattr(os, "process_cpu_count", os.cpu_count)()
    return min(32, (cpus or 1) + 4)


def _variables(engine: Ray) -> dict[str, str]:
    """Return the environment in which clients' processes start."""
    variables = {"OMP_NUM_THREADS": str(engine.threads or engine.client_cpus)}
    if "OMP_WAIT_POLICY" not in os.environ:
        variables["GOMP_SPINCOUNT"] = "10000"  # see `splitfed.cli.main`
    if engine.address is None:  # the same modules as here, in the same order
        variables["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    if not engine.client_gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    passed_on = ("FLWR_TELEMETRY_ENABLED", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", *allocator.SETTINGS)
    return variables | {name: os.environ[name] for name in passed_on if name in os.environ}
