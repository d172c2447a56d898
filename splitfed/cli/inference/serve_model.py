"""`splitfed serve-model`: the back of a run, for many clients at once."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from splitfed.cli.options import Device, Overrides, Round


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
        str,
        typer.Option(metavar="INTEGER|none", help="The port of /metrics and /health at 127.0.0.1; none opens none."),
    ] = "9095",
    ledger: Annotated[
        Path | None,
        typer.Option(help="The folder of what is counted, a file a day.", show_default="service/ in RUN"),
    ] = None,
    adapt: Annotated[
        str | None,
        typer.Option(
            metavar="NORMS",
            help="Let norms learn, without labels, from what clients keep: those of the back, or of the whole model by "
            "images that they send; or keys as '{norms: whole, teacher: {name: ..., weights: ...}, pool: client}'.",
            show_default="nothing learns",
        ),
    ] = None,
    round: Round = None,
    device: Device = None,
    set_: Overrides = None,
) -> None:
    """Answer what clients' fronts are not sure of: the back of a run and the exits in it, for many clients at once, who
    'splitfed predict'."""
    from splitfed.engines.deployment.processes import port_number
    from splitfed.inference.service.serve import serve_model

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as orderly as Ctrl-C: what systemd sends to stop

    page = None if metrics_port == "none" else port_number(metrics_port, "--metrics-port")
    serve_model(
        run, host=host, port=port_number(port, "--port"), metrics_port=page, watch=watch,
        say=lambda line: print(line, flush=True), tls=tls, insecure=insecure, rates=rate or (), batch=batch,
        wait=wait / 1000, queue=queue, most=most, keep_old=keep_old, ledger=ledger, adapt=adapt, round=round,
        device=device, overrides=set_,
    )  # fmt: skip
