"""The commands for what comes after training: answers for images, and exits on the way to them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

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
        run, confidence=confidence, accuracy=accuracy, measure=measure.value, rise=rise, round=round,
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
    blocks: Annotated[str, typer.Option(metavar="1,2,...", help="After which blocks, the first being 1.")],
    heads: Annotated[
        Kind,
        typer.Option(help="Whether each head sees its block alone, or in a cascade also what the one before says."),
    ] = Kind.linear,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Let each exit answer by all heads so far, weighed to fit the images.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 10,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate of Adam, which falls to 0.")] = 5e-3,
    round: Round = None,
    data: DataPlace = None,
    device: Device = None,
    set_: Overrides = None,
) -> None:
    """Train exits on a run: heads that answer after some blocks, by what these made. The model stays as it is."""
    from splitfed.inference.fitting import fit

    def say(epoch: int, of: int) -> None:
        print(f"epoch {epoch} of {of}", flush=True)

    found = fit(
        run, _numbers(blocks), heads=heads.value, ensemble=ensemble, epochs=epochs, lr=lr, round=round, device=device,
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
    snr: Annotated[
        str | None,
        typer.Option(
            metavar="DB,DB,...",
            help="Of a run with the reducer jscc: accuracy through noise at these decibels of signal over noise, in "
            "place of bytes and operations.",
        ),
    ] = None,
    ratio: Annotated[
        str | None,
        typer.Option(
            metavar="R,R,...",
            help="With --snr: for so many symbols, over the features of a token.",
            show_default="the most that the run was trained for, and halves of that",
        ),
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
    changes = [*moved(data, None), *(set_ or [])]
    if snr is not None:
        if rate or rise is not None or measure != Measured.probability:
            raise SplitfedError("--snr: tells of noise alone: leave out --rate, --rise and --measure")
        ratios = [] if ratio is None else _decimals("--ratio", ratio)
        _noisy(
            out, csv, run, _decimals("--snr", snr), ratios, split=split.value, limit=limit, round=round, device=device,
            overrides=changes,
        )  # fmt: skip
        return
    if ratio is not None:
        raise SplitfedError("--ratio: goes with --snr, which says through what noise")
    found, curves = measured(
        run, split=split.value, rates=rate or (), measure=measure.value, rise=rise, limit=limit, round=round,
        device=device, overrides=changes,
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


def _noisy(out: Path | None, csv: Path | None, run: Path, snrs: list[float], ratios: list[float], **keys: Any) -> None:
    from splitfed.reports.tables import show
    from splitfed.reports.tradeoff.noisy import noisy
    from splitfed.reports.tradeoff.noisy_text import csv as to_csv
    from splitfed.reports.tradeoff.noisy_text import notes, table

    found, points = noisy(run, snrs, ratios, **keys)
    written = []
    if out is not None:
        from splitfed.reports.tradeoff.noisy_picture import draw

        draw(points, out)
        written.append(str(out))
    if csv is not None:
        write(csv, to_csv(points))
        written.append(str(csv))
    show(table(points), ["", *notes(found), *written], None)


def _decimals(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise SplitfedError(f"{option} {text}: write numbers with commas between, such as 0,5,10") from None


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SplitfedError(f"--blocks {text}: write numbers of blocks with commas between, such as 1,2,3") from None
