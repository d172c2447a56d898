"""The commands that hand on what splitfed knows: a run's model to timm, the schema of its files to editors."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from splitfed.cli.options import DataPlace, Overrides, WeightsPlace, moved
from splitfed.files import write


class Written(StrEnum):
    """What people write."""

    scenario = "scenario"
    sweep = "sweep"


def export(
    run: Annotated[Path, typer.Argument()],
    out: Annotated[Path, typer.Argument()],
    round: Annotated[
        int | None, typer.Option(help="After which round, of those with a checkpoint.", show_default="the newest")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    data: DataPlace = None,
    weights: WeightsPlace = None,
    set_: Overrides = None,
) -> None:
    """Write a run's model, front and back, as a checkpoint that timm loads, with a model card beside it."""
    import splitfed

    made = splitfed.export(run, out, round=round, overrides=[*moved(data, weights), *(set_ or [])], force=force)
    print(f"{made.weights}: after round {made.round}, SHA-256 {made.sha256}")
    print(f"{made.card}: its card")
    print(f"{made.config}: its config, as timm reads it on the Hub")
    if made.halves is not None:
        print(f"{made.halves}: the reducer's own layers: timm's model is without them, and not what the run evaluated")
    if made.added is not None:
        print(f"{made.added}: what the adapter has added: timm's model is without it, and not what the run evaluated")
    print(made.create)


def schema(
    what: Annotated[Written, typer.Argument()] = Written.scenario,
    out: Annotated[Path | None, typer.Option(help="Write it to this file, in place of what is there.")] = None,
) -> None:
    """Print the JSON schema of a scenario, or of a sweep: with it, editors complete keys and mark mistakes.

    The reducers and codecs of installed packages are in it. A file names its schema in its first line, by a path from
    its own folder: # yaml-language-server: $schema=schema.json
    """
    from splitfed.cli.listing.json_schema import SCHEMAS, text

    written = text(SCHEMAS[what.value]())
    if out is None:
        print(written, end="")
        return
    write(out, written)
