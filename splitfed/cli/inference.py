"""The commands for what comes after training: answers for images, and exits on the way to them."""

import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from splitfed.cli.options import DataPlace, Overrides, moved
from splitfed.errors import SplitfedError, Unreached
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
    model: Annotated[str, typer.Argument()],
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
    batch: Annotated[
        int, typer.Option(min=1, help="How many images are computed at once, and with a server sent in one request.")
    ] = 64,
    round: Round = None,
    device: Device = None,
    set_: Overrides = None,
    server: Annotated[
        bool, typer.Option("--server", help="MODEL is a server, also where a folder has its name.")
    ] = False,
    tls: Annotated[
        Path | None, typer.Option(help="With a server: this client's folder from 'splitfed certs', e.g. tls/client-3.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="With a server: plain text also to another machine.")
    ] = False,
    client: Annotated[
        int | None, typer.Option(min=0, help="With a server: this client's number; a key says it too.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="With a server: send at this one of the rates that it takes.", show_default="the first of them"
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES/s",
            help="With a server: choose among its rates so that bytes a second keep to this, such as 20kB/s; where "
            "that is too little the last exit answers.",
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=3600,
            help="With a server: seconds after which an image is answered by the last exit.",
            show_default="10",
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="With a server: the folder for the front that is fetched.", show_default="splitfed-client"),
    ] = None,
) -> None:
    """Say what images show, a line for each: by a run's model, or by the front and exits of a server, which is asked
    where they are not sure.

    What cannot be decoded is named, the others are answered, and the exit code is 1. Where a server cannot be reached
    the last exit answers, and the line says so.
    """
    import splitfed
    from splitfed.reports.answers import WRITERS

    if json and csv:
        raise SplitfedError("--json and --csv: choose one")
    how: dict[str, Any] = {
        "confidence": confidence, "accuracy": accuracy, "most_bytes": None if bytes_ is None else _size(bytes_),
        "most_operations": operations, "measure": measure.value, "rise": rise, "top": top, "batch": batch,
        "device": device,
    }  # fmt: skip
    of_a_server: dict[str, Any] = {
        "tls": tls, "insecure": insecure or None, "client": client, "rate": rate, "target": target,
        "deadline": deadline, "state": state,
    }  # fmt: skip
    of_a_run: dict[str, Any] = {"round": round, "set": set_}
    asks = server or not Path(model).exists()
    if asks and not server and "/" in model:
        raise SplitfedError(f"{model}: there is no such run, and no server has such a name")
    for name, value in (of_a_run if asks else of_a_server).items():
        if value is not None:
            what = "runs" if asks else "a server"
            raise SplitfedError(f"--{name} is for {what}, and {model} is {'a server' if asks else 'a run'}")
    predictor: splitfed.Predictor | splitfed.RemotePredictor
    if asks:
        given = {name: value for name, value in of_a_server.items() if value is not None}
        try:
            predictor = splitfed.RemotePredictor(model, **how, **given)
        except Unreached as error:
            raise SplitfedError(f"{error}" if server else f"{error}; nor is there a run of that name here") from None
    else:
        predictor = splitfed.Predictor(model, round=round, overrides=set_, **how)
    wrong = 0
    with WRITERS["json" if json else "csv" if csv else "text"](top, predictor.rule.threshold <= 1) as written:
        for found in predictor.stream(images):
            written(found)
            wrong += found.problem is not None
    if wrong:
        raise typer.Exit(1)


def serve_model(
    run: Annotated[Path, typer.Argument()],
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 is all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[str, typer.Option(metavar="INTEGER", help="The port that clients ask at.")] = "9094",
    tls: Annotated[
        Path | None, typer.Option(help="The folder that 'splitfed certs' made: its clients may ask.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Plain text also to other machines.")] = False,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RATE",
            help="How clients may send, the best first: run (as the run sends), a preset's name, or NAME={reducer: "
            "..., smashed: ...} as in a scenario; repeatable.",
            show_default="run",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Compute up to so many images of all clients together; 1: each request alone.")
    ] = 32,
    wait: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds that a request waits for others of its batch.")
    ] = 2.0,
    queue: Annotated[
        int, typer.Option(min=1, help="Let so many requests wait, and a quarter of them of one client.")
    ] = 256,
    most: Annotated[int, typer.Option(min=1, max=4096, help="How many images a request may hold.")] = 64,
    watch: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Look for a newer checkpoint each so many seconds.", show_default="SIGHUP makes it look"
        ),
    ] = None,
    keep_old: Annotated[
        float, typer.Option(min=0, help="Seconds for which clients with an older front are still answered.")
    ] = 60.0,
    metrics_port: Annotated[
        str, typer.Option(metavar="INTEGER", help="The port of /metrics and /health at 127.0.0.1.")
    ] = "9095",
    ledger: Annotated[
        Path | None,
        typer.Option(help="The folder of what is counted, a file a day.", show_default="service/ in RUN"),
    ] = None,
    round: Round = None,
    device: Device = None,
    set_: Overrides = None,
) -> None:
    """Answer what clients' fronts are not sure of: the back of a run, for many clients at once, who 'splitfed
    predict'."""
    from splitfed.engines.deployment.processes import port_number
    from splitfed.inference.service.serve import serve_model

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as orderly as Ctrl-C: what systemd sends to stop

    serve_model(
        run, host=host, port=port_number(port, "--port"), metrics_port=port_number(metrics_port, "--metrics-port"),
        watch=watch, say=lambda line: print(line, flush=True), tls=tls, insecure=insecure, rates=rate or (),
        batch=batch, wait=wait / 1000, queue=queue, most=most, keep_old=keep_old, ledger=ledger, round=round,
        device=device, overrides=set_,
    )  # fmt: skip


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


def _size(text: str) -> int:
    from pydantic import TypeAdapter, ValidationError

    from splitfed.config import Bytes

    try:
        return TypeAdapter(Bytes).validate_python(text)
    except ValidationError as error:
        raise SplitfedError(
            f"--bytes-per-image {text}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        ) from None
