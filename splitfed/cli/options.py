"""What several commands take."""

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the scenario, e.g. model.cut=4; repeatable."),
]
ScenarioName = Annotated[str, typer.Argument()]
# Arguments are explained in epilogs: click from 8.5 on drops the help that typer gives them.
SCENARIO = "SCENARIO is a YAML file, or the name of a scenario that ships with splitfed."
