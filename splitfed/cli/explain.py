"""The command that shows what a run's reducer does to images."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from splitfed.cli.options import DataPlace, Overrides, PresetName, WeightsPlace, moved
from splitfed.errors import SplitfedError


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
