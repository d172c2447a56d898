"""The run folder: one execution of a scenario, never overwritten, owned by one process at a time."""

import fcntl
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from logging import getLogger
from pathlib import Path
from typing import Any

from splitfed.compression.plugins import packages
from splitfed.errors import RunError, WriteError
from splitfed.files import reason, write
from splitfed.run.log import SpareFile, logged
from splitfed.run.summary import NAME as SUMMARY
from splitfed.run.summary import Summary
from splitfed.scenario import Scenario
from splitfed.scenario.document import printable
from splitfed.scenario.engine import Deployment
from splitfed.scenario.places import same_experiment

log = getLogger("splitfed")

_PACKAGES = ("splitfed", "torch", "torchvision", "timm", "flwr", "numpy", "zstandard", "datasets", "flwr-datasets")


def create(scenario: Scenario, root: Path) -> Path:
    """Make `<root>/<scenario>-<UTC time>/` with the resolved scenario in it, whole or not at all, and return it. Raises
    RunError."""
    try:
        str(root.resolve()).encode()
    except UnicodeEncodeError:
        raise RunError(
            f"{printable(str(root))}: is no UTF-8 text, which TensorBoard needs; choose another place with --runs"
        ) from None
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for number in range(1, 1000):
        folder = root / f"{scenario.name}-{stamp}{'' if number == 1 else f'-{number}'}"
        try:
            fill(folder, scenario)
        except FileExistsError:
            continue
        except (OSError, WriteError) as error:
            raise RunError(
                f"{folder}: cannot be created ({reason(error.__cause__ or error)}); choose another place with --runs"
            ) from error
        return folder
    raise RunError(f"{root}: a thousand runs of {scenario.name} in one second")


def store(scenario: Scenario, folder: Path) -> None:
    """Write the scenario that a run goes on with in the place of the one that it had. Raises WriteError."""
    text, path = scenario.to_yaml(), folder / "scenario.yaml"
    if text != path.read_text(encoding="utf-8"):
        with locked(folder):
            write(path, text)


def fill(folder: Path, scenario: Scenario) -> None:
    """Make a new run folder with a scenario in it: beside, and renamed. Raises FileExistsError where there is one, or
    another process makes it, OSError and WriteError."""
    scratch = folder.with_name(f".{folder.name}.new")
    scratch.mkdir(parents=True)
    try:
        write(scratch / "scenario.yaml", scenario.to_yaml())
        if folder.exists():
            raise FileExistsError(folder)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def begun(folder: Path) -> bool:
    """Return whether a run has come to a checkpoint: one that has not holds nothing that is worth keeping."""
    return any((folder / "checkpoints").glob("round-*"))


def stored_scenario(folder: Path) -> Scenario:
    """Read the scenario of a run. Raises RunError where this is no run folder."""
    path = folder / "scenario.yaml"
    if not path.is_file():
        raise RunError(f"{folder}: no scenario.yaml in it, so this is no run folder")
    return Scenario.load(str(path))


def check_resumable(folder: Path, scenario: Scenario | None) -> Scenario:
    """Return the scenario that a resumed run goes on with: its own. Raises RunError for a different one, for a run that
    is complete, and for what in its folder nobody can read to its end."""
    stored = stored_scenario(folder)
    for path in sorted(folder.rglob("*")):
        if path.is_fifo():  # whoever opens it waits for ever
            raise RunError(f"{path}: is a pipe, and no file: remove it")
    if scenario is not None and not same_experiment(scenario, stored):
        raise RunError(
            f"{folder}: was started with a different scenario; resume it without naming one, or start a new run"
        )
    if (folder / SUMMARY).exists():
        Summary.read(folder)
        raise RunError(f"{folder}: is complete; see it with: splitfed compare {folder}")
    return stored


class Held(RunError):
    """A run folder that another process writes to."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder, so that no two processes write to it. Raises Held where another one does."""
    path = folder / ".lock"
    try:
        lock = open(path, "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({reason(error)}), and a run needs to write there") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Held(f"{folder}: another process is running it") from None
        except OSError as error:
            raise RunError(f"{path}: cannot be locked ({reason(error)}): choose a folder on another disk") from error
        yield


@contextmanager
def attempt(scenario: Scenario, folder: Path, devices: dict[str, str]) -> Iterator[SpareFile]:
    """Hold a run folder for an attempt at its run: set torch's threads, write down what it runs with, such as the
    `devices` of both sides, and yield its log. Raises RunError where another process has it, and where a file cannot
    be read or written: with the command that goes on, once it can."""
    import torch

    threads = torch.get_num_threads()
    try:
        if scenario.engine.threads:
            torch.set_num_threads(scenario.engine.threads)
        with locked(folder), logged(folder) as log:
            write_environment(folder, torch.get_num_threads(), devices)
            yield log
    except WriteError as error:
        raise WriteError(f"{error}; {_how_to_go_on(scenario, folder)}") from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        how = f"; {_how_to_go_on(scenario, folder)}" if begun(folder) else ""
        raise RunError(f"{where}{reason(error)}{how}") from error
    finally:
        torch.set_num_threads(threads)


def _how_to_go_on(scenario: Scenario, folder: Path) -> str:
    command = "serve" if isinstance(scenario.engine, Deployment) else "simulate"
    return f"once that is mended, this goes on: splitfed {command} --resume {shlex.quote(str(folder))}"


def write_environment(folder: Path, threads: int, devices: dict[str, str]) -> None:
    """Append to `environment.json` what this attempt runs with: a list, one entry for each attempt. A list that cannot
    be read is begun anew, and one that cannot be written is left; a warning says so."""
    versions = {}
    for package in (*_PACKAGES, *packages()):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    entry = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch_threads": threads,
        "devices": devices,
        "gpus": _gpus(devices.values()),
        "packages": versions,
        "command": sys.argv,
    }
    path = folder / "environment.json"
    try:
        write(path, json.dumps([*_attempts(path), entry], indent=2) + "\n")
    except WriteError as error:
        log.warning("%s; the run goes on without it", error)


def _gpus(devices: Iterable[str]) -> list[str]:
    import torch

    if not torch.cuda.is_available():  # clients that are Ray's actors may have GPUs where this process has none
        return []
    return sorted({torch.cuda.get_device_name(device) for device in devices if device.startswith("cuda")})


def _attempts(path: Path) -> list[Any]:
    """Read what earlier attempts ran with; nothing, and a warning, where that is no list any more."""
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else []
        if not isinstance(found, list):
            raise ValueError("it is no list")
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s: cannot be read (%s); it is begun anew", path, reason(error))
        return []
    return found
