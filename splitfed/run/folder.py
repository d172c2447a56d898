"""The run folder: one execution of a scenario, never overwritten, owned by one process at a time."""

import fcntl
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from splitfed.compression.plugins import packages
from splitfed.errors import RunError
from splitfed.files import replace_with
from splitfed.run.summary import NAME as SUMMARY
from splitfed.scenario import Scenario
from splitfed.scenario.document import printable
from splitfed.scenario.places import same_experiment

_PACKAGES = ("splitfed", "torch", "torchvision", "timm", "flwr", "numpy", "zstandard", "datasets", "flwr-datasets")


def create(scenario: Scenario, root: Path) -> Path:
    """Make `<root>/<scenario>-<UTC time>/` with the resolved scenario in it, and return it."""
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
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(
                f"{folder}: cannot be created ({error.strerror}); choose another place with --runs"
            ) from error
        (folder / "scenario.yaml").write_text(scenario.to_yaml(), encoding="utf-8")
        return folder
    raise RunError(f"{root}: a thousand runs of {scenario.name} in one second")


def store(scenario: Scenario, folder: Path) -> None:
    """Write the scenario that a run goes on with in the place of the one that it had. Raises RunError."""
    text, path = scenario.to_yaml(), folder / "scenario.yaml"
    if text == path.read_text(encoding="utf-8"):
        return
    try:
        with locked(folder), replace_with(path) as scratch:
            scratch.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from None


def stored_scenario(folder: Path) -> Scenario:
    """Read the scenario of a run. Raises RunError where this is no run folder."""
    path = folder / "scenario.yaml"
    if not path.is_file():
        raise RunError(f"{folder}: no scenario.yaml in it, so this is no run folder")
    return Scenario.load(str(path))


def check_resumable(folder: Path, scenario: Scenario | None) -> Scenario:
    """Return the scenario that a resumed run goes on with: its own. Raises RunError for a different one, and for a run
    that is complete."""
    stored = stored_scenario(folder)
    if scenario is not None and not same_experiment(scenario, stored):
        raise RunError(
            f"{folder}: was started with a different scenario; resume it without naming one, or start a new run"
        )
    if (folder / SUMMARY).exists():
        raise RunError(f"{folder}: is complete; see it with: splitfed compare {folder}")
    return stored


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder, so that no two processes write to it. Raises RunError where another one does."""
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{folder}: another process is running it") from None
        yield


@contextmanager
def attempt(scenario: Scenario, folder: Path, devices: dict[str, str]) -> Iterator[None]:
    """Hold a run folder for an attempt at its run: set torch's threads, and write down what it runs with, such as the
    `devices` of both sides. Raises RunError where another process has it."""
    import torch

    threads = torch.get_num_threads()
    try:
        if scenario.engine.threads:
            torch.set_num_threads(scenario.engine.threads)
        with locked(folder):
            write_environment(folder, torch.get_num_threads(), devices)
            yield
    finally:
        torch.set_num_threads(threads)


def write_environment(folder: Path, threads: int, devices: dict[str, str]) -> None:
    """Append to `environment.json` what this attempt runs with: a list, one entry for each attempt."""
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
        "packages": versions,
        "command": sys.argv,
    }
    path = folder / "environment.json"
    entries = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*entries, entry], indent=2) + "\n")
