"""The commands of a deployment: keys, the server, and a client."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from splitfed.cli.options import DataPlace, Overrides, PresetName, WeightsPlace, check_moved
from splitfed.errors import SplitfedError


def certs(
    folder: Annotated[Path, typer.Argument()],
    host: Annotated[
        list[str] | None,
        typer.Option(help="A host name or IP address by which clients reach the server; repeatable."),
    ] = None,
    clients: Annotated[
        int | None, typer.Option(min=1, help="How many clients there shall be; those that are there stay.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long a new server certificate is valid.")] = 825,
    renew: Annotated[
        bool, typer.Option("--renew", help="Issue a new server certificate, by the same CA for the same key.")
    ] = False,
) -> None:
    """Make what a deployment over TLS needs: a CA, the server's certificate, a key per client.

    Run it again with more --clients, another --host or --renew: it adds what is missing and never replaces a key.
    """
    from splitfed.engines.deployment.certificates import make

    made = make(folder, host or (), clients, days=days, renew=renew)
    print(made.text())
    if clients is not None and clients < len(made.clients):
        print(f"There are more clients than the {clients} asked for; none was removed.")


def serve(
    scenario: Annotated[str | None, typer.Argument()] = None,
    preset: PresetName = None,
    set_: Overrides = None,
    seed: Annotated[int | None, typer.Option(help="Another seed than the scenario's.")] = None,
    device: Annotated[str | None, typer.Option(help="Train the back there: auto, cpu, cuda, cuda:1, mps.")] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 is all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[str, typer.Option(metavar="INTEGER", help="The port of Flower's messages.")] = "9092",
    split_port: Annotated[str, typer.Option(metavar="INTEGER", help="The port of the mini-batches.")] = "9093",
    tls: Annotated[Path | None, typer.Option(help="The folder that 'splitfed certs' made.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Plain text also to other machines.")] = False,
    clients: Annotated[int | None, typer.Option(help="Another number of clients than the scenario's.")] = None,
    start_with: Annotated[
        int | None, typer.Option(help="Start when so many clients are there, not all; the others may come later.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="The folder in which the run's own folder is made.")] = Path("runs"),
    resume: Annotated[Path | None, typer.Option(help="Go on with an interrupted run, by its folder.")] = None,
    data: DataPlace = None,
    weights: WeightsPlace = None,
) -> None:
    """Run a scenario with clients on other machines, who 'splitfed join'."""
    import splitfed
    from splitfed.engines.deployment.processes import port_number
    from splitfed.reports.live.console import Console
    from splitfed.reports.live.log import recorders
    from splitfed.server.deployment.serve import serve
    from splitfed.split.mistakes import BEFORE_A_RUN_HERE

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as orderly as Ctrl-C: what systemd sends to stop

    ports = {"port": port_number(port, "--port"), "split_port": port_number(split_port, "--split-port")}
    changes = [
        *(set_ or []),
        *([f"seed={seed}"] if seed is not None else []),
        *([f"training.server.device={device}"] if device else []),
    ]
    if resume is not None and (changes or clients is not None or preset is not None):
        raise SplitfedError(
            "--resume goes on with the run's own scenario: leave out --preset, --set, --seed, --device and --clients"
        )
    check_moved(resume, data, weights)
    loaded = (
        splitfed.Scenario.load(scenario, changes, preset=preset, also=BEFORE_A_RUN_HERE)
        if scenario is not None
        else None
    )
    serve(
        loaded, host=host, **ports, tls=tls, insecure=insecure, clients=clients,
        enough=start_with, runs=runs, resume=resume, observers=(Console(),), record=recorders,
        data=data, weights=weights,
    )  # fmt: skip


def join(
    server: Annotated[str, typer.Argument()],
    tls: Annotated[
        Path | None, typer.Option(help="This client's folder from 'splitfed certs', e.g. tls/client-3.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Plain text also to another machine.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="This client's own images: a folder for each class, or a data set. With --partition: where the "
            "scenario's data set lies here."
        ),
    ] = None,
    partition: Annotated[
        int | None, typer.Option(help="Train on this share of the scenario's data set; it is this client's number.")
    ] = None,
    client: Annotated[int | None, typer.Option(help="This client's number, from 0; a key says it too.")] = None,
    device: Annotated[str | None, typer.Option(help="Train the front there: auto, cpu, cuda, cuda:1, mps.")] = None,
    threads: Annotated[int | None, typer.Option(help="Torch's threads; the scenario's when left out.")] = None,
    chunk: Annotated[
        int | None, typer.Option(help="Images to compute at a time, for a small memory; the scenario's when left out.")
    ] = None,
    state: Annotated[Path, typer.Option(help="The folder for what this client keeps between rounds.")] = Path(
        "splitfed-client"
    ),
    weights: Annotated[
        Path | None,
        typer.Option(help="The scenario's file of weights as it lies here, where clients load them themselves."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Which of the scenario's profiles this client is of, if it has any.")
    ] = None,
    stay: Annotated[bool, typer.Option("--stay", help="Wait for the next run when one is over.")] = False,
) -> None:
    """Train as a client of 'splitfed serve', on images that stay here."""
    from splitfed.clients.deployment.join import join

    signal.signal(signal.SIGTERM, signal.default_int_handler)

    join(
        server, tls=tls, insecure=insecure, client=client, partition=partition, data=data, device=device,
        threads=threads, state=state, stay=stay, say=lambda line: print(line, flush=True),
        weights=weights, profile=profile, chunk=chunk,
    )  # fmt: skip
