"""The commands for what comes after training: answers for images, and exits on the way to them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from splitfed.cli.options import DataPlace, Overrides, moved
from splitfed.errors import SplitfedError
from splitfed.files import write

Round = Annotated[
    int | None, typer.Option(help="After which round, of those with a checkpoint.", show_default="the newest")
]
Device = Annotated[str | None, typer.Option(help="Compute there: auto, cpu, cuda, cuda:1, mps.")]


class Measured(StrEnum):
    """What confidence is."""

    probability = "probability"
    margin = "margin"
    entropy = "entropy"


class Kind(StrEnum):
    """What heads there are."""

    linear = "linear"
    cascade = "cascade"


class Split(StrEnum):
    """Which images are measured."""

    validation = "validation"
    test = "test"


def predict(
    run: Annotated[Path, typer.Argument()],
    images: Annotated[list[Path], typer.Argument()],
    confidence: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Let the run's exits take part: the first that is so sure, from 0 to 1, answers.",
            show_default="the whole model answers",
        ),
    ] = None,
    accuracy: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="In place of --confidence: the lowest with which this share of the validation split is answered "
            "rightly.",
        ),
    ] = None,
    bytes_: Annotated[
        str | None,
        typer.Option(
            "--bytes-per-image",
            metavar="SIZE",
            help="In place of --confidence: the highest with which what crosses the cut for an image, there and back, "
            "is no more than this on the mean of the validation split, such as 1kB.",
        ),
    ] = None,
    operations: Annotated[
        float | None,
        typer.Option(
            "--operations-per-image",
            min=0,
            help="In place of --confidence: the same of the operations of all blocks that an image takes, such as 5e7.",
        ),
    ] = None,
    measure: Annotated[
        Measured,
        typer.Option(help="What confidence is: the largest probability, its margin over the second, or entropy."),
    ] = Measured.probability,
    rise: Annotated[
        float | None,
        typer.Option(help="Pass by later exits where confidence has risen by less than this since the one before."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes are named, the likeliest first.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="How many images are computed at once.")] = 64,
    round: Round = None,
    device: Device = None,
    set_: Overrides = None,
) -> None:
    """Say what a run's model takes images for, a line for each.

    What cannot be decoded is named, the others are answered, and the exit code is 1.
    """
    import splitfed
    from splitfed.reports.answers import WRITERS

    if json and csv:
        raise SplitfedError("--json and --csv: choose one")
    predictor = splitfed.Predictor(
        run, confidence=confidence, accuracy=accuracy, most_bytes=None if bytes_ is None else _size(bytes_),
        most_operations=operations, measure=measure.value, rise=rise, round=round,
        top=top, batch=batch, device=device,
        overrides=set_,
    )  # fmt: skip
    wrong = 0
    with WRITERS["json" if json else "csv" if csv else "text"](top, predictor.rule.threshold <= 1) as written:
        for found in predictor.stream(images):
            written(found)
            wrong += found.problem is not None
    if wrong:
        raise typer.Exit(1)


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


def tradeoff(
    run: Annotated[Path, typer.Argument()],
    out: Annotated[Path | None, typer.Option(help="Draw this picture: *.png, *.pdf or *.svg.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write all points to this file.")] = None,
    split: Annotated[Split, typer.Option(help="On which images: those of the validation or of the test split.")] = (
        Split.validation
    ),
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RATE",
            help="How images are sent: run (as the run sends), a preset's name, or NAME={reducer: ..., smashed: ...} "
            "as in a scenario; repeatable.",
            show_default="run, and three more",
        ),
    ] = None,
    measure: Annotated[Measured, typer.Option(help="What confidence is.")] = Measured.probability,
    rise: Annotated[
        float | None,
        typer.Option(help="Send an image at once where confidence has risen by less than this since the exit before."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure so many images, the first ones.")] = None,
    round: Round = None,
    data: DataPlace = None,
    device: Device = None,
    set_: Overrides = None,
) -> None:
    """Show what accuracy costs at inference, in bytes and in operations: exits answer what they are sure of, and the
    rest is sent.

    Without exits (`splitfed exits` makes some) every image is sent. Each request is packed, sent and answered as one
    image's, and its bytes are those of the frames.
    """
    from splitfed.inference.tradeoff import tradeoff as measured
    from splitfed.reports.tables import show
    from splitfed.reports.tradeoff.text import csv as to_csv
    from splitfed.reports.tradeoff.text import notes, table

    if out is not None:
        from splitfed.reports.study.plots import check_path

        check_path(out)
    found, curves = measured(
        run, split=split.value, rates=rate or (), measure=measure.value, rise=rise, limit=limit, round=round,
        device=device, overrides=[*moved(data, None), *(set_ or [])],
    )  # fmt: skip
    written = []
    if out is not None:
        from splitfed.reports.tradeoff.picture import draw

        draw(found, curves, out)
        written.append(str(out))
    if csv is not None:
        write(csv, to_csv(curves))
        written.append(str(csv))
    show(table(found, curves), ["", *notes(found), *written], None)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SplitfedError(f"--blocks {text}: write numbers of blocks with commas between, such as 1,2,3") from None


def _size(text: str) -> int:
    from pydantic import TypeAdapter, ValidationError

    from splitfed.config import Bytes

    try:
        return TypeAdapter(Bytes).validate_python(text)
    except ValidationError as error:
        raise SplitfedError(
            f"--bytes-per-image {text}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        ) from None
