"""The command that checks scenarios and sweeps, several at once, without running them."""

from pathlib import Path
from typing import Annotated

import typer

from splitfed.cli.options import Overrides, PresetName
from splitfed.errors import ScenarioError, SplitfedError


def validate(
    files: Annotated[list[str], typer.Argument()],
    preset: PresetName = None,
    set_: Overrides = None,
    data: Annotated[
        bool, typer.Option("--data", help="Open the data sets too, and deal them to clients; tell what they hold.")
    ] = False,
) -> None:
    """Check scenarios and sweeps with their models, and name every mistake; trains nothing, loads no weights, and data
    if asked."""
    from splitfed.scenario.overrides import named

    problems: list[str] = []
    changes = [*named(preset), *(set_ or [])]
    for file in files:
        try:
            print(_checked(file, changes, data))
        except SplitfedError as error:
            problems += str(error).splitlines()
    if problems:
        raise ScenarioError(list(dict.fromkeys(problems)))


def _checked(file: str, overrides: list[str], data: bool) -> str:
    """Return what is to be said of a file without mistakes."""
    import splitfed
    from splitfed.reports.sweep.plan import Sweep, is_sweep
    from splitfed.scenario.document import printable
    from splitfed.split.mistakes import BEFORE_A_RUN, of_the_data

    rules = (*BEFORE_A_RUN, *((of_the_data,) if data else ()))
    name = printable(file)
    if is_sweep(Path(file)):
        runs = len(Sweep.load(file, overrides, also=rules).points)
        return f"{name}: valid (a sweep of {runs} {'run' if runs == 1 else 'runs'})"
    loaded = splitfed.Scenario.load(file, overrides, also=rules)
    said = f"{name}: valid ({loaded.name}: {loaded.model.name} cut after block {loaded.cut_in_words})"
    if not data:
        return said
    from splitfed.reports.dataset.text import head

    return "\n".join([said, *head(splitfed.describe(loaded))])
