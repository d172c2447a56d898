"""`splitfed exits`: trains heads that answer after some blocks of a finished run's model."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from splitfed.cli.options import DataPlace, Device, Overrides, Round, moved
from splitfed.errors import SplitfedError


class Kind(StrEnum):
    """What heads there are."""

    linear = "linear"
    cascade = "cascade"


def exits(
    run: Annotated[Path, typer.Argument()],
    blocks: Annotated[
        str | None,
        typer.Option(
            metavar="1,2,...",
            help="After which blocks, the first being 1.",
            show_default="the exits that were trained with the model, as they are",
        ),
    ] = None,
    heads: Annotated[
        Kind | None,
        typer.Option(
            help="Whether each head sees its block alone, or in a cascade also what the one before says.",
            show_default="linear",
        ),
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Let each exit answer by all heads so far, weighed to fit the images.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images.", show_default="10")] = None,
    lr: Annotated[
        float | None, typer.Option(min=0, help="Learning rate of Adam, which falls to 0.", show_default="0.005")
    ] = None,
    round: Round = None,
    data: DataPlace = None,
    device: Device = None,
    set_: Overrides = None,
) -> None:
    """Train exits on a run: heads that answer after some blocks, by what these made. The model stays as it is.

    Of a run whose exits were trained with the model, these are judged anew, and an ensemble is fitted to them, if no
    blocks are named.
    """
    from splitfed.inference.fitting import fit

    said = {"--heads": heads, "--epochs": epochs, "--lr": lr}
    if blocks is None and (idle := [name for name, value in said.items() if value is not None]):
        raise SplitfedError(f"{idle[0]}: is of heads that are trained now: name their --blocks, or leave it out")

    def say(epoch: int, of: int) -> None:
        print(f"epoch {epoch} of {of}", flush=True)

    found = fit(
        run, None if blocks is None else _numbers(blocks), heads=(heads or Kind.linear).value, ensemble=ensemble,
        epochs=epochs or 10, lr=5e-3 if lr is None else lr, round=round, device=device,
        overrides=[*moved(data, None), *(set_ or [])], on_epoch=say,
    )  # fmt: skip
    print(f"{found.images:,} images, {found.validation:,} of the validation split; after round {found.about.round}")
    for block, accuracy in zip(found.about.blocks, found.about.accuracy, strict=True):
        print(f"  exit after block {block}: {accuracy:6.1%}")
    print(f"  the whole model:   {found.whole:6.1%}")
    print(f"{found.path}: used by splitfed predict {run} IMAGES --confidence 0.9")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SplitfedError(f"--blocks {text}: write numbers of blocks with commas between, such as 1,2,3") from None
