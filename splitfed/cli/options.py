"""What several commands take."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from splitfed.errors import SplitfedError

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the scenario, e.g. model.cut=4; repeatable."),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset", metavar="NAME", help="Take this preset in place of what the file says of it: medium, small or tiny."
    ),
]
ScenarioName = Annotated[str, typer.Argument()]
DataPlace = Annotated[str | None, typer.Option("--data", help="Where the run's own data lie now.")]
WeightsPlace = Annotated[str | None, typer.Option("--weights", help="Where the run's file of weights lies now.")]
# Arguments are explained in epilogs: click from 8.5 on drops the help that typer gives them.
SCENARIO = "SCENARIO is a YAML file, or the name of a scenario that ships with splitfed."


def moved(data: str | None, weights: str | None) -> list[str]:
    """Return the overrides of a run's scenario that name other places of its files."""
    places = {"data.path": data, "model.weights": weights}
    return [f"{key}={json.dumps(place)}" for key, place in places.items() if place is not None]


def check_moved(resume: object, data: str | None, weights: str | None) -> None:
    """Raise SplitfedError for another place of a run's files where no run is gone on with."""
    if resume is None and (given := moved(data, weights)):
        option = "--data" if data is not None else "--weights"
        raise SplitfedError(f"{option} is for --resume, the place of a run's files; a new run takes --set {given[0]}")


Round = Annotated[
    int | None, typer.Option(help="After which round, of those with a checkpoint.", show_default="the newest")
]
Device = Annotated[str | None, typer.Option(help="Compute there: auto, cpu, cuda, cuda:1, mps.")]


class Measured(StrEnum):
    """What confidence is."""

    probability = "probability"
    margin = "margin"
    entropy = "entropy"
