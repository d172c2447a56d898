"""`splitfed tradeoff`: shows what accuracy costs at inference."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from splitfed.cli.options import DataPlace, Device, Measured, Overrides, Round, moved
from splitfed.errors import SplitfedError
from splitfed.files import write


class Split(StrEnum):
    """Which images are measured."""

    validation = "validation"
    test = "test"


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
