"""The commands that hand on what splitfed knows: a run's model to timm, a scenario's schema to editors."""

from pathlib import Path
from typing import Annotated

import typer

from splitfed.cli_options import Overrides


def export(
    run: Annotated[Path, typer.Argument()],
    out: Annotated[Path, typer.Argument()],
    round: Annotated[
        int | None, typer.Option(help="After which round, of those with a checkpoint.", show_default="the newest")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    set_: Overrides = None,
) -> None:
    """Write a run's model, front and back, as a checkpoint that timm loads, with a model card beside it."""
    import splitfed

    made = splitfed.export(run, out, round=round, overrides=set_, force=force)
    print(f"{made.weights}: after round {made.round}, SHA-256 {made.sha256}")
    print(f"{made.card}: its card")
    if made.halves is not None:
        print(f"{made.halves}: the reducer's own layers: timm's model is without them, and not what the run evaluated")
    print(made.create)
