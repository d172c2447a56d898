"""The command that shows what a run would train on."""

from pathlib import Path
from typing import Annotated

import typer

from splitfed.cli.options import Overrides, PresetName, ScenarioName
from splitfed.files import write


def data(
    scenario: ScenarioName,
    preset: PresetName = None,
    set_: Overrides = None,
    seed: Annotated[int | None, typer.Option(help="Another seed than the scenario's.")] = None,
    clients: Annotated[int, typer.Option(min=0, help="How many clients the table shows, the first ones.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Draw this picture: *.png, *.pdf or *.svg.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Decode every image, and name all that cannot be.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write a row for each client to this file.")] = None,
) -> None:
    """Show what a run would train on: which client holds how many images of which class."""
    import splitfed
    from splitfed.reports.dataset.text import csv as to_csv
    from splitfed.reports.dataset.text import head, table
    from splitfed.reports.tables import show

    if out is not None:
        from splitfed.reports.study.plots import check_path

        check_path(out)
    changes = [*(set_ or []), *([f"seed={seed}"] if seed is not None else [])]
    found = splitfed.describe(splitfed.Scenario.load(scenario, changes, preset=preset), check=check)
    print("\n".join(head(found)), end="\n\n")
    more = len(found.held) - clients
    notes = [f"and {more:,} more; --csv FILE writes all"] if more > 0 and csv is None else []
    if out is not None:
        from splitfed.reports.dataset.picture import draw, save

        save(draw(found), out)
        notes.append(str(out))
    if csv is not None:
        write(csv, to_csv(found))
        notes.append(str(csv))
    if clients:
        show(table(found, clients), notes, None)
    else:
        print("\n".join(notes))
