"""The command that checks scenarios and sweeps, several at once, without running them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitfed.cli.options import Overrides
from splitfed.errors import ScenarioError, SplitfedError

if TYPE_CHECKING:
    from splitfed.scenario import Scenario


def validate(files: Annotated[list[str], typer.Argument()], set_: Overrides = None) -> None:
    """Check scenarios and sweeps with their models, and name every mistake; trains nothing, loads no data and no
    weights."""
    problems: list[str] = []
    for file in files:
        try:
            print(_checked(file, set_ or []))
        except SplitfedError as error:
            problems += str(error).splitlines()
    if problems:
        raise ScenarioError(list(dict.fromkeys(problems)))


def _checked(file: str, overrides: list[str]) -> str:
    """Return a line on a file without mistakes."""
    import splitfed
    from splitfed.reports.sweep.plan import Sweep, is_sweep
    from splitfed.scenario.document import printable

    name = printable(file)
    if is_sweep(Path(file)):
        sweep = Sweep.load(file, overrides)
        problems = list[str]()
        for label, scenario in {point.label: point.scenario for point in sweep.points}.items():
            try:
                _check(scenario)
            except ScenarioError as error:  # of another file, which it names
                problems += error.problems
            except SplitfedError as error:
                problems += [f"{name}: {label}: {line}" for line in str(error).splitlines()]
        if problems:
            raise ScenarioError(problems)
        runs = len(sweep.points)
        return f"{name}: valid (a sweep of {runs} {'run' if runs == 1 else 'runs'})"
    loaded = splitfed.Scenario.load(file, overrides)
    try:
        _check(loaded)
    except ScenarioError:
        raise
    except SplitfedError as error:
        raise ScenarioError([f"{name}: {line}" for line in str(error).splitlines()]) from error
    return f"{name}: valid ({loaded.name}: {loaded.model.name} cut after block {loaded.model.cut})"


def _check(scenario: "Scenario") -> None:
    """Check what a scenario names. Raises a SplitfedError."""
    # What needs torch and timm comes after all that does not.
    from splitfed.federation.own_strategy import OwnStrategy
    from splitfed.model.attention import check_readable
    from splitfed.split.assembly import check_model

    strategy = scenario.federation.strategy
    scenario.federation.availability.check(scenario.federation.clients)
    if isinstance(strategy, OwnStrategy):
        strategy.load()
    front = check_model(scenario)
    if scenario.compression.reducer.build().needs_attention:
        check_readable(front)
