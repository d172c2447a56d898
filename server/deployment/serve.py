"""Serves a run to clients elsewhere: a SuperLink as a child, the ServerApp and the split server in this process."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from splitfed.engines.deployment.flower_tasks import bundle
from splitfed.engines.deployment.processes import (
    Child,
    check_port,
    is_loopback,
    most_bytes_file,
    port_number,
    superlink_command,
    wait_until_healthy,
)
from splitfed.engines.deployment.proof import make_secret
from splitfed.engines.deployment.tls import ServerFiles, check_host, read_server
from splitfed.engines.runtime import Runtime, lent
from splitfed.errors import RunError, SplitfedError, WriteError
from splitfed.files import write
from splitfed.model.optim import pick_device
from splitfed.run.folder import attempt, begun, check_resumable, create, store
from splitfed.run.log import SpareFile
from splitfed.run.observer import Observer
from splitfed.run.origin import continued, pinned
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment, Remote
from splitfed.scenario.places import for_clients
from splitfed.scenario.rules.registry import broken
from splitfed.server.deployment.nodes import SPARE
from splitfed.server.deployment.strangers import raise_file_limit

PORT, SPLIT_PORT = 9092, 9093

# Makes of a run's log the observers that write into its folder.
Record = Callable[[SpareFile], tuple[Observer, ...]]


def _nothing(log: SpareFile) -> tuple[Observer, ...]:
    return ()


def serve(
    scenario: Scenario | None, *, host: str = "127.0.0.1", port: int = PORT, split_port: int = SPLIT_PORT,
    tls: Path | None = None, insecure: bool = False, clients: int | None = None, enough: int | None = None,
    runs: Path = Path("runs"), resume: Path | None = None, observers: tuple[Observer, ...] = (),
    record: Record = _nothing, data: str | None = None, weights: str | None = None,
) -> Path:  # fmt: skip
    """Run a scenario with clients that join at `host`, and return the run's folder.

    Flower's messages take `port`, mini-batches `split_port`, which stays closed where none cross. `tls` is the folder
    that `splitfed certs` made; without it everything is plain text, which must be wanted (`insecure`) anywhere but on
    this machine. The run begins when `enough` clients are there (None: all); `clients` replaces the scenario's number.
    `data` and `weights` are where the data of a run and its file of weights lie by now, to go on with the same.
    `observers` see all of it, and those that `record` makes of its log see the run.
    Raises a SplitfedError for the user's mistakes, and KeyboardInterrupt after an orderly stop.
    """
    for name, number in (("--port", port), ("--split-port", split_port)):
        port_number(number, name)
    if not host:
        raise RunError("--host: name an address to listen at; 0.0.0.0 is all of this machine's")
    if tls is None and not is_loopback(host) and not insecure:
        raise RunError(
            f"--host {host} without --tls: all would cross in plain text, and anybody could join. Make keys with "
            f"'splitfed certs tls/ --host ...' and add --tls tls/, or say --insecure"
        )
    if port == split_port and (scenario is None or scenario.federation.splits):
        raise RunError(f"--port and --split-port are both {port}: mini-batches need a port of their own")
    files = read_server(tls) if tls is not None else None
    if files is not None:
        check_host(files, host)
    if resume is not None:
        scenario = check_resumable(resume, scenario)
        if not isinstance(scenario.engine, Deployment):
            raise RunError(f"{resume}: was no deployment; go on with: splitfed simulate --resume {resume}")
    elif scenario is not None:
        scenario = deployed(scenario, clients)
    else:
        raise RunError("nothing to serve: name a scenario, or a run to resume")
    _check_clients(scenario, files, enough)
    if resume is None:
        scenario = pinned(scenario, data, weights)
        folder = create(scenario, runs)
    else:
        scenario, folder = continued(scenario, resume, data, weights), resume
        store(scenario, folder)
    try:
        training = scenario.training
        sides = {"client": training.client, "server": training.server}
        devices = {side: str(pick_device(settings.device)) for side, settings in sides.items()}
        with attempt(scenario, folder, devices) as log:
            _serve(scenario, folder.resolve(), files, (host, port, split_port), enough, observers, record(log))
    except SplitfedError as error:
        if resume is None and not begun(folder) and not isinstance(error, WriteError):
            shutil.rmtree(folder, ignore_errors=True)  # a mistake in data, weights, ports or keys: nothing ran
        raise
    shutil.rmtree(folder / "flower", ignore_errors=True)
    return folder


def deployed(scenario: Scenario, clients: int | None = None) -> Scenario:
    """Return the scenario as a deployment runs it: the same but for its engine, and the number of clients if given.

    Raises RunError for what is of a simulation alone."""
    if clients is not None:
        scenario = scenario.with_([f"federation.clients={clients}"])
    old = scenario.engine
    engine = Deployment(threads=old.threads)
    if isinstance(old, Deployment):
        engine = old
    elif isinstance(old, Remote):
        engine = Deployment(threads=old.threads, grace=old.grace, deadline=old.deadline)
    scenario = scenario.model_copy(update={"engine": engine})
    for key, why in broken(scenario):
        raise RunError(f"{key}: {why}")
    return scenario


def _check_clients(scenario: Scenario, files: ServerFiles | None, enough: int | None) -> None:
    clients = scenario.federation.clients
    if files is not None and (missing := sorted(set(range(clients)) - set(files.clients))):
        raise RunError(
            f"client {missing[0]} of {clients} has no key: make more with 'splitfed certs', or lower --clients"
        )
    if enough is not None and not 1 <= enough <= clients:
        raise RunError(f"--start-with {enough}: must be from 1 to {clients}, the number of clients")


def _serve(
    scenario: Scenario, folder: Path, files: ServerFiles | None, place: tuple[str, int, int], enough: int | None,
    observers: tuple[Observer, ...], recorders: tuple[Observer, ...],
) -> None:  # fmt: skip
    from splitfed.server.app import app
    from splitfed.server.deployment.superlink_control import Control
    from splitfed.server.deployment.task import run_server_app

    host, port, split_port = place
    logging.getLogger("flwr").setLevel(logging.ERROR)  # its progress lines would interleave with ours
    splits = scenario.federation.splits
    for taken in (port, split_port) if splits else (port,):
        check_port("127.0.0.1" if host == "localhost" else host, taken)
    raise_file_limit()
    private = folder / "flower"
    private.mkdir(mode=0o700, exist_ok=True)
    database = private / "state.db"
    most_bytes_file(database).touch(0o600)
    for file in private.glob("state.db*"):  # an earlier version left them open to others
        file.chmod(0o600)
    secret_file = private / "secret"
    secret = make_secret(secret_file)
    tls, ca = (files.tls, files.ca) if files else (None, None)
    engine = scenario.engine
    assert isinstance(engine, Deployment)
    command = superlink_command(
        host, port, secret_file=secret_file, database=database, tls=tls, ca=ca, silence=engine.silence,
        most_nodes=scenario.federation.clients + SPARE,
    )  # fmt: skip
    # Clients are told names, not where its folder and its files lie on this machine.
    app_bundle = bundle({"scenario": for_clients(scenario).to_yaml(), "run": folder.name})
    inside = f"127.0.0.1:{port}" if host in ("0.0.0.0", "::", "localhost") else f"{_bracketed(host)}:{port}"
    with Child("SuperLink", command, private / "superlink.log", private / "home") as child:
        wait_until_healthy(f"{'https' if ca else 'http'}://{inside}", child, ca)
        with Control(inside, ca, secret) as control:
            nodes = {control.register(key): client for client, key in files.clients.items()} if files else None
            if nodes is not None:
                control.keep(nodes)
            for run in control.open_runs():
                control.stop_run(run)  # of an attempt that was killed
            run_id = control.start_run(app_bundle)
        runtime = Runtime(
            (*observers, *recorders), host=host, port=split_port, tls=tls,
            roster=None if nodes is None else lambda: nodes, waits=True, enough=enough,
            expect=lambda most: write(most_bytes_file(database), str(most)),
        )  # fmt: skip
        for observer in observers:
            observer.serving(
                folder, f"{_bracketed(host)}:{port}", split_port if splits else None, scenario.federation.clients
            )
        with lent(runtime):
            config = {"scenario": scenario.to_yaml(), "run": str(folder)}
            run_server_app(app, address=inside, ca=ca, secret=secret, run_id=run_id, run_config=config)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
