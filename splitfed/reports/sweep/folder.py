"""The run folder of a sweep's point: whether it is new, unfinished or done, and that it is this point's."""

import shutil
from enum import StrEnum
from pathlib import Path

from splitfed.errors import RunError, SplitfedError, WriteError
from splitfed.files import reason
from splitfed.reports.study.groups import flat
from splitfed.reports.sweep.plan import Point
from splitfed.run.folder import fill, stored_scenario
from splitfed.run.metrics import read_metrics
from splitfed.run.origin import same_data
from splitfed.run.summary import NAME
from splitfed.scenario import Scenario
from splitfed.scenario.document import shown
from splitfed.scenario.places import placeless, same_experiment


class State(StrEnum):
    """How far a point is."""

    NEW = "new"
    OPEN = "unfinished"
    DONE = "done"


def state(folder: Path, point: Point) -> State:
    """Return how far the run in a point's folder is. Raises RunError where it is another run's, or no run's."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return State.NEW
    try:
        stored = stored_scenario(folder)
    except SplitfedError as error:
        raise RunError(str(error)) from error
    if not same_experiment(point.scenario, stored) and not _moved(point.scenario, stored):
        differences = _differences(placeless(stored, stored), placeless(point.scenario, stored))
        raise RunError(
            f"{folder}: was run with other settings ({differences}): give the point another label, or remove the folder"
        )
    return State.DONE if (folder / NAME).exists() else State.OPEN


def prepare(folder: Path, point: Point) -> None:
    """Make a new point's folder, with its scenario in it. Raises RunError where that cannot be done."""
    shutil.rmtree(folder.with_name(f".{folder.name}.new"), ignore_errors=True)  # of a sweep that was killed
    try:
        if folder.exists():
            folder.rmdir()  # it is empty
        fill(folder, point.scenario)
    except (OSError, WriteError) as error:
        raise RunError(f"{folder}: cannot be created ({reason(error)})") from error


def rounds_done(folder: Path) -> int:
    """Return how many rounds a run has finished."""
    try:
        rows = read_metrics(folder / "metrics.csv")
    except RunError:
        return 0
    return rows[-1].round if rows else 0


def _moved(scenario: Scenario, stored: Scenario) -> bool:
    """Tell whether only the place of the data differs, and they are the same."""
    there = scenario.data.model_copy(update={"path": stored.data.path})
    return same_experiment(scenario.model_copy(update={"data": there}), stored) and same_data(scenario, stored)


def _differences(there: Scenario, here: Scenario) -> str:
    one, other = (dict(flat(scenario.model_dump(mode="json"))) for scenario in (there, here))
    keys = [key for key in {**one, **other} if one.get(key, ...) != other.get(key, ...)]
    parts = [f"{key}: {_text(one, key)} there, {_text(other, key)} here" for key in keys[:2]]
    return "; ".join(parts) + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")


def _text(values: dict, key: str) -> str:
    return shown(values[key]) if key in values else "none"
