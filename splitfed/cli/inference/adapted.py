"""`splitfed adapted`: what a service's norms have learnt in the field, and how that is undone."""

import time
from pathlib import Path
from typing import Annotated

import typer

from splitfed.errors import SplitfedError

_SECONDS = 5.0  # in which a service that runs forgets


def adapted(
    run: Annotated[Path, typer.Argument()],
    forget: Annotated[
        bool, typer.Option("--forget", help="Let go of it: the run's own norms are served again, also by a service.")
    ] = False,
    client: Annotated[
        int | None, typer.Option(min=0, help="Of this client alone, where clients have norms of their own.")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="The service's folder, as of serve-model.", show_default="service/ in RUN")
    ] = None,
) -> None:
    """Tell what 'splitfed serve-model --adapt' has come to, or undo it."""
    from splitfed.inference.service.adaptation import store
    from splitfed.run.folder import stored_scenario

    stored_scenario(run)
    folder = ledger or run / "service"
    if not forget:
        found = store.load(folder)
        learnt = found.learnt if found is not None else {}
        if client is not None:
            learnt = {name: said for name, said in learnt.items() if name == str(client)}
        if found is None or not learnt:
            print("nothing was adapted")
            return
        print(f"norms: {found.norms}, teacher: {found.teacher.partition(' ')[0]}")
        for name, (steps, images) in learnt.items():
            print(f"{name if name == store.EVERYBODY else f'client {name}'}: {steps} steps by {images:,} kept images")
        return
    if not folder.is_dir():
        raise SplitfedError(f"{folder}: is no service's folder: name it with --ledger")
    if client is not None and (found := store.load(folder)) is not None and str(client) not in found.learnt:
        raise SplitfedError(f"--client {client}: has no norms of its own in {folder}: without it, all is forgotten")
    until = time.monotonic() + _SECONDS
    done = store.forget(folder, client)
    while not done and time.monotonic() < until:
        time.sleep(0.1)
        done = not store.wished(folder)
    print("forgotten" if done else "the service that runs forgets it in a moment")
