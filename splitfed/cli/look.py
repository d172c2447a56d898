"""The commands that show images: what a run would train on, and what its reducer does to some."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from splitfed.cli.options import DataPlace, Overrides, PresetName, ScenarioName, WeightsPlace, moved
from splitfed.errors import SplitfedError
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


class Which(StrEnum):
    """Which images are explained."""

    train = "train"
    validation = "validation"


def explain(
    run: Annotated[Path, typer.Argument()],
    out: Annotated[Path | None, typer.Option(help="Draw this picture: *.png, *.pdf or *.svg.")] = None,
    images: Annotated[int, typer.Option(min=1, help="How many images of the batch it shows, merged ones first.")] = 16,
    split: Annotated[
        Which, typer.Option(help="Whose batch: a client's (train), or one of the validation split.")
    ] = Which.train,
    client: Annotated[int | None, typer.Option(help="Which client's batch.", show_default="0")] = None,
    round: Annotated[
        int | None, typer.Option(help="After which round, of those with a checkpoint.", show_default="the newest")
    ] = None,
    tensorboard: Annotated[bool, typer.Option(help="Show it among the images of the run's TensorBoard too.")] = True,
    data: DataPlace = None,
    weights: WeightsPlace = None,
    preset: PresetName = None,
    set_: Overrides = None,
) -> None:
    """Show which tokens a run's reducer keeps and which samples it merges, on real images."""
    import splitfed
    from splitfed.reports.explanation.text import notes, table
    from splitfed.reports.tables import show
    from splitfed.scenario.overrides import named

    if client is not None and split is Which.validation:
        raise SplitfedError("--client: clients hold training images; leave out --split validation, or --client")
    if out is not None:
        from splitfed.reports.study.plots import check_path

        check_path(out)
    changes = [*named(preset), *moved(data, weights), *(set_ or [])]
    found = splitfed.explain(run, round=round, split=split.value, client=client or 0, overrides=changes)
    written = []
    if out is not None or tensorboard:
        from splitfed.reports.explanation.picture import draw, png, save
        from splitfed.reports.explanation.tensorboard import show_in_tensorboard

        figure = draw(found, images)
        if out is not None:
            save(figure, out)
            written.append(str(out))
        if tensorboard:
            show_in_tensorboard(run, found.round, png(figure))
            written.append(f"tensorboard --logdir {run}")
    first, *others = notes(found)
    print(f"{first}\n")
    show(table(found), ["", *others, *written], None)
