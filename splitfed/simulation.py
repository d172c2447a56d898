"""What the command line and notebooks call: run a scenario in this process, or go on with a run."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from splitfed.engines.runtime import Runtime, lent
from splitfed.errors import RunError, SplitfedError, WriteError
from splitfed.model.optim import pick_device
from splitfed.reports.live.log import recorders
from splitfed.reports.live.notebook import Notebook, in_notebook
from splitfed.run.folder import attempt, begun, check_resumable, create, store
from splitfed.run.ledger import Totals, totals_by_round
from splitfed.run.metrics import Metrics, read_metrics
from splitfed.run.observer import Observer
from splitfed.run.origin import continued, pinned
from splitfed.run.summary import Summary
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment, Inline, Ray
from splitfed.scenario.sections import Federation
from splitfed.split.assembly import check_model
from splitfed.split.mistakes import BEFORE_A_RUN_HERE
from splitfed.waiting import waiting


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run: its folder, its summary, and its rounds."""

    folder: Path
    summary: Summary
    rounds: list[Metrics]

    @property
    def totals(self) -> Totals:
        """Bytes of all finished rounds by plane, direction and role, as `ledger.csv` has them. Raises RunError where
        that is broken."""
        return sum(totals_by_round(self.folder / "ledger.csv").values(), Totals())


def simulate(
    scenario: Scenario | str | Path | None = None, *, runs: str | Path = "runs",
    resume: str | Path | None = None, observers: Sequence[Observer] | None = None,
    data: str | Path | None = None, weights: str | Path | None = None,
) -> Result:  # fmt: skip
    """Run a scenario (an object, a file, or the name of one that ships with the package) and return its result.

    A new folder is made under `runs`; `resume` names an interrupted run's folder to go on with instead, under that
    run's own scenario; its data and its file of weights may lie elsewhere by then, at `data` and `weights`, if they are
    the same. Observers see the run as it goes. Where none are named, a notebook shows its progress in the
    cell, and elsewhere nothing is printed; with `()` nothing is shown anywhere. Raises a SplitfedError for mistakes of
    the user's, and KeyboardInterrupt after an orderly stop.
    """
    if observers is None:
        observers = (Notebook(),) if in_notebook() else ()
    if isinstance(scenario, (str, Path)):
        scenario = Scenario.load(scenario, also=BEFORE_A_RUN_HERE)
    if resume is not None:
        scenario = check_resumable(Path(resume), scenario)
    elif scenario is None:
        raise RunError("nothing to simulate: name a scenario, or a run to resume")
    else:
        check_model(scenario)
    if isinstance(scenario.engine, Deployment):
        raise RunError("engine: deployment has clients on other machines: use splitfed serve")
    scenario, folder = _started(scenario, Path(runs), None if resume is None else Path(resume), data, weights)
    try:
        return _run(scenario, folder.resolve(), tuple(observers))
    except SplitfedError as error:
        if resume is None and not begun(folder) and not isinstance(error, WriteError):
            shutil.rmtree(folder, ignore_errors=True)  # a mistake in data, weights or device: nothing ran
        raise


def _started(
    scenario: Scenario, runs: Path, resume: Path | None, data: str | Path | None, weights: str | Path | None
) -> tuple[Scenario, Path]:
    """Return what a run starts from or goes on with, and its folder, where the scenario then lies."""
    places = None if data is None else str(data), None if weights is None else str(weights)
    if resume is None:
        scenario = pinned(scenario, *places)
        return scenario, create(scenario, runs)
    scenario = continued(scenario, resume, *places)
    store(scenario, resume)
    return scenario, resume


def _run(scenario: Scenario, folder: Path, observers: tuple[Observer, ...]) -> Result:
    # The two apps are named here alone: no other module of this package knows both ends.
    with waiting("loading Flower"):
        from splitfed.clients.app import app as client_app
        from splitfed.engines.inline import UserConfig, run_inline
        from splitfed.server.app import app as server_app

    engine, clients = scenario.engine, scenario.federation.clients
    logging.getLogger("flwr").setLevel(logging.ERROR)  # its progress lines would interleave with ours
    devices = {
        "client": _client_device(scenario.training.client.device, engine),
        "server": str(pick_device(scenario.training.server.device)),
    }
    config: UserConfig = {"scenario": (folder / "scenario.yaml").read_text(encoding="utf-8"), "run": str(folder)}
    with attempt(scenario, folder, devices) as log, lent(Runtime((*observers, *recorders(log)))):
        if isinstance(engine, Ray):
            with waiting("loading Ray"):
                from splitfed.engines.ray.engine import run_ray

            run_ray(server_app, client_app, clients, config, engine, _together(scenario.federation))
        else:
            run_inline(server_app, client_app, clients, config)
    return Result(folder, Summary.read(folder), read_metrics(folder / "metrics.csv"))


def _together(federation: Federation) -> int:
    """Return how many clients wait for each other, and so must train at once."""
    return federation.at_once if federation.mode == "psl" else 1


def _client_device(wanted: str, engine: Inline | Ray | Deployment) -> str:
    """Return where clients train. Raises RunError where that is not possible."""
    if not isinstance(engine, Ray):
        return str(pick_device(wanted))
    if engine.client_gpus:  # this machine may have none itself
        return "cuda" if wanted == "auto" else wanted
    if wanted.startswith("cuda"):
        raise RunError(f"training.client.device is {wanted}, but engine.client_gpus is 0: set it, for instance to 0.1")
    device = str(pick_device(wanted))
    return "cpu" if device.startswith("cuda") else device
