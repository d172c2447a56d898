"""`splitfed predict`: says what images show, here or with the help of a server."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from splitfed.cli.options import Device, Measured, Overrides, Round
from splitfed.errors import SplitfedError, Unreached


def predict(
    model: Annotated[str, typer.Argument()],
    images: Annotated[list[Path], typer.Argument()],
    confidence: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Let the run's exits take part, with a server also those of its back: the first that is so sure, from "
            "0 to 1, answers.",
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
        typer.Option(
            help="What confidence is, of exits and in --json and --csv: the largest probability, its margin over the "
            "second, or entropy."
        ),
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
            metavar="BYTES/s|TIME",
            help="With a server: choose among its rates so that bytes a second keep to this, such as 20kB/s, or the "
            "time from when a mini-batch is sent until it is answered, such as 200ms; where that is too little the "
            "last exit answers.",
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
    select: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="With a server that adapts: let it learn from images that the last exit they came to is neither sure "
            "of nor at a loss with (entropy), or from some by chance; keys as '{kind: entropy, high: 0.4, low: "
            "0.02}'.",
            show_default="from none",
        ),
    ] = None,
    send_images: Annotated[
        bool,
        typer.Option(
            "--send-images",
            help="With --select: these images may leave this device, as a server that adapts all needs.",
        ),
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(help="With a server: the folder for the front that is fetched.", show_default="splitfed-client"),
    ] = None,
) -> None:
    """Say what images show, a line for each: by a run's model, or by the front and exits of a server, which is asked
    where they are not sure, and answers by exits of its own or by the whole model.

    What cannot be decoded is named, the others are answered, and the exit code is 1. Where a server cannot be reached
    the last exit answers, and the line says so.
    """
    import splitfed
    from splitfed.reports.answers import WRITERS

    if json and csv:
        raise SplitfedError("--json and --csv: choose one")
    if measure != Measured.probability and not (json or csv) and {confidence, accuracy, bytes_, operations} == {None}:
        raise SplitfedError(
            f"--measure {measure.value}: a measure of confidence is asked for, and no confidence: exits take part "
            "where one is named; without one --json and --csv alone show how sure the model is"
        )
    how: dict[str, Any] = {
        "confidence": confidence, "accuracy": accuracy, "most_bytes": None if bytes_ is None else _size(bytes_),
        "most_operations": operations, "measure": measure.value, "rise": rise, "top": top, "batch": batch,
        "device": device,
    }  # fmt: skip
    of_a_server: dict[str, Any] = {
        "tls": tls, "insecure": insecure or None, "client": client, "rate": rate, "target": target,
        "deadline": deadline, "state": state, "select": select, "send-images": send_images or None,
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
        given = {name.replace("-", "_"): value for name, value in of_a_server.items() if value is not None}
        try:
            predictor = splitfed.RemotePredictor(model, **how, **given)
        except Unreached as error:
            raise SplitfedError(f"{error}" if server else f"{error}; nor is there a run of that name here") from None
    else:
        predictor = splitfed.Predictor(model, round=round, overrides=set_, **how)
    wrong = 0
    with WRITERS["json" if json else "csv" if csv else "text"](top, predictor.rule.answers) as written:
        for found in predictor.stream(images):
            written(found)
            wrong += found.problem is not None
    if isinstance(predictor, splitfed.RemotePredictor):
        predictor.close()
        if (kept := predictor.kept) is not None:
            lost = f", {kept.lost} of them in vain" if kept.lost else ""
            print(f"{kept.kept} of {kept.seen} images were kept for {model}{lost}", file=sys.stderr)
        if target is not None and predictor.held is False:
            print(_above(target, predictor), file=sys.stderr)
    if wrong:
        raise typer.Exit(1)


def _above(target: str, predictor: Any) -> str:
    """Say what a target came to that was not kept."""
    from splitfed.reports.live.target import amount

    spent = amount("bytes_per_second" if "/" in target else "seconds_per_round", predictor.spent)
    unit = "" if "/" in target else " a mini-batch"
    why = "" if predictor.has_exits else ", as without exits every image is sent, whatever the target"
    return f"--target {target}: it was {spent}{unit} in the mean{why}"


def _size(text: str) -> int:
    from pydantic import TypeAdapter, ValidationError

    from splitfed.config import Bytes

    try:
        return TypeAdapter(Bytes).validate_python(text)
    except ValidationError as error:
        raise SplitfedError(
            f"--bytes-per-image {text}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        ) from None
