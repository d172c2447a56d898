"""Ray for the length of a run: one of its own on this machine, the cluster at an address, or one that is up already.

What is started here is gone afterwards, its processes, ports and folder, and nobody else can reach it: it listens on
loopback alone and asks for a token that only this process and its children know.
"""

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import ray
from ray._private import ray_constants, worker

from splitfed.errors import RunError
from splitfed.scenario.engine import Ray
from splitfed.waiting import waiting

_LOOPBACK = "127.0.0.1"
CONNECT_SECONDS = 5.0  # until a cluster must have answered at its address
_QUIET: Any = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def connected(address: str | None, variables: dict[str, str]) -> Iterator[dict[str, str]]:
    """Have Ray up in the `with` block: the cluster at an address, or one of its own; one that is up is left up.

    Yields those of the environment variables that actors must still be given: processes of its own start with them, and
    are there sooner so. Raises RunError where Ray cannot be started, or no cluster answers at the address."""
    if ray.is_initialized():
        yield variables
        return
    folder = None
    on_terminate = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    # Whatever its settings, Ray tells of a process that died in the middle of our lines; the round tells of it too.
    silence = patch.object(worker, "print_to_stdstream", lambda *_, **__: None, create=True)
    try:
        with _uninterrupted():
            silence.start()
            if address is None:
                # Under /tmp: the path of a socket may have 107 letters, and Ray's own part of it is 70.
                folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp" if os.access("/tmp", os.W_OK) else None)
                _start(folder, variables)
                variables = {}
            else:
                join(address)
            if _in_main_thread():  # Ray's own handler prints a stack and aborts
                signal.signal(signal.SIGTERM, _exit if on_terminate == signal.SIG_DFL else on_terminate)
        yield variables
    finally:
        with _uninterrupted():
            ray.shutdown()
            silence.stop()
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
            if _in_main_thread():
                signal.signal(signal.SIGTERM, on_terminate)


def _exit(number: int, _: object) -> None:
    sys.exit(128 + number)


def _start(folder: str, variables: dict[str, str]) -> None:
    # Without a token of ours Ray writes one into the user's home. It stays set: Ray reads it once for a process.
    if "RAY_AUTH_TOKEN_PATH" not in os.environ and not (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        # As Ray does by itself on macOS: else it listens on all interfaces, and fails where there are none.
        with waiting("starting Ray"), patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False, create=True):
            ray.init("local", _temp_dir=folder, **_QUIET)
    except Exception as error:
        raise RunError(f"Ray cannot be started on this machine: {_line(error)}") from error
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def join(address: str) -> None:
    """Use the cluster at an address. Raises RunError where none answers, or it cannot be used."""
    nobody = RunError(
        f"engine.address: no Ray cluster answers at {address}: start one with `ray start --head`, or leave it out"
    )
    if address != "auto" and "RAY_USE_TLS" not in os.environ:  # Ray itself would try for minutes, and then end us
        with grpc.insecure_channel(address) as channel:
            try:
                grpc.channel_ready_future(channel).result(CONNECT_SECONDS)
            except grpc.FutureTimeoutError:
                raise nobody from None
    try:
        with waiting(f"joining the Ray cluster at {address}"):
            ray.init(address, **_QUIET)
    except ConnectionError as error:
        raise nobody from error
    except Exception as error:
        raise RunError(f"engine.address: the cluster at {address} cannot be used: {_line(error)}") from error


def _line(error: Exception) -> str:
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


def host() -> str:
    """Return the address by which all of Ray's machines can reach this one: loopback where there is no other."""
    here = ray.get_runtime_context().get_node_id()
    alone = all(node["NodeID"] == here for node in _machines())
    return _LOOPBACK if alone else ray.util.get_node_ip_address()


def room(engine: Ray) -> int:
    """Return how many clients of `engine.client_cpus` and `client_gpus` Ray has room for, at least one.

    Raises RunError where no machine has room for any."""
    have = [(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in _machines()]
    cpus, gpus = (max((machine[kind] for machine in have), default=0.0) for kind in (0, 1))
    if cpus < engine.client_cpus:
        raise RunError(
            f"engine.client_cpus: {engine.client_cpus} cores for a client, but no machine of Ray's has more than "
            f"{cpus:g}: lower it"
        )
    if gpus < engine.client_gpus:
        raise RunError(
            f"engine.client_gpus: {engine.client_gpus:g} for a client, but no machine of Ray's has more than {gpus:g}: "
            "lower it; with 0 clients train on CPUs"
        )
    places = sum(min(int(cpus // engine.client_cpus), _on_gpus(gpus, engine.client_gpus)) for cpus, gpus in have)
    if not places:
        raise RunError("engine: no machine of Ray's has both engine.client_cpus and engine.client_gpus: lower one")
    return places


def _on_gpus(gpus: float, wanted: float) -> int:
    if wanted == 0:
        return 1 << 31
    return int(gpus) * int(1 / wanted + 1e-9) if wanted < 1 else int(gpus // wanted)  # a share lies on one GPU


def _machines() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off until the block is done: in the middle of starting or stopping Ray it would leave processes."""
    if not _in_main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
