"""The command line; each command calls what `import splitfed` offers, and imports it only when it runs."""

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
import typer.core

from splitfed.cli.align import align
from splitfed.cli.deployment import certs, join, serve
from splitfed.cli.ending import ending
from splitfed.cli.export import export, schema
from splitfed.cli.inference.adapted import adapted
from splitfed.cli.inference.exits import exits
from splitfed.cli.inference.predict import predict
from splitfed.cli.inference.serve_model import serve_model
from splitfed.cli.inference.tradeoff import tradeoff
from splitfed.cli.look import data, explain
from splitfed.cli.options import SCENARIO, DataPlace, Overrides, PresetName, WeightsPlace, check_moved
from splitfed.cli.study import compare, list_, sweep
from splitfed.cli.validate import validate
from splitfed.engines.allocator import keep_freed_memory
from splitfed.errors import SplitfedError, telling_missing
from splitfed.version import __version__
from splitfed.waiting import speak

typer.core.HAS_RICH = False  # it would put a backslash before every [default: ...] of the plain help

app = typer.Typer(
    name="splitfed",
    help="Federated split learning of Vision Transformers, with every byte that crosses the cut counted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"splitfed {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    global _debug
    _debug = debug


_debug = False


@app.command(epilog=SCENARIO)
def simulate(
    scenario: Annotated[str | None, typer.Argument()] = None,
    preset: PresetName = None,
    set_: Overrides = None,
    seed: Annotated[int | None, typer.Option(help="Another seed than the scenario's.")] = None,
    device: Annotated[str | None, typer.Option(help="Train both sides there: auto, cpu, cuda, cuda:1, mps.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="Where clients run: inline (in this process) or ray (in one for each).")
    ] = None,
    runs: Annotated[Path, typer.Option(help="The folder in which the run's own folder is made.")] = Path("runs"),
    resume: Annotated[Path | None, typer.Option(help="Go on with an interrupted run, by its folder.")] = None,
    data: DataPlace = None,
    weights: WeightsPlace = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show bytes, memory and time of a round; train nothing.")
    ] = False,
) -> None:
    """Run a scenario with all its clients on this machine."""
    import splitfed
    from splitfed.split.mistakes import BEFORE_A_RUN_HERE, out_of_reach

    changes = [
        *([f"engine.kind={engine}"] if engine else []),  # first: what is set in it is meant for this kind
        *(set_ or []),
        *([f"seed={seed}"] if seed is not None else []),
        *([f"training.{side}.device={device}" for side in ("client", "server")] if device else []),
    ]
    if resume is not None and (changes or dry_run or preset is not None):
        raise SplitfedError(
            "--resume goes on with the run's own scenario: leave out --preset, --set, --seed, --device, --engine and "
            "--dry-run"
        )
    check_moved(resume, data, weights)
    if scenario is None and resume is None:
        raise SplitfedError("name a scenario, for instance: splitfed simulate digits")
    loaded = (
        splitfed.Scenario.load(scenario, changes, preset=preset, also=BEFORE_A_RUN_HERE)
        if scenario is not None
        else None
    )
    if dry_run:
        from splitfed.reports.costs.text import text as estimate_text

        assert loaded is not None
        if away := out_of_reach(loaded):
            print(
                f"{' and '.join(away)}: on the Hugging Face Hub, which does not answer: a run needs them in its cache, "
                "or as local files (data.path, model.weights)",
                file=sys.stderr,
            )
        print(estimate_text(splitfed.estimate(loaded)))
        return
    from splitfed.reports.live.console import Console

    splitfed.simulate(loaded, runs=runs, resume=resume, observers=(Console(),), data=data, weights=weights)


app.command(epilog="FILES are scenarios, YAML files or names of those that ship, and sweeps.")(validate)
app.command(
    "list",
    epilog="WHAT is reducers, codecs, lossless, presets, partitions, budgets, modes, phases, memory, strategies, "
    "controllers, availability, links, engines, scenarios, models, adapters or adaptive; without it, these are told. "
    "PATTERN is of names, e.g. 'deit*'; with one the keys are explained too.",
)(list_)
app.command(epilog=SCENARIO)(data)
app.command(epilog="FILE is a YAML file that names a scenario and what is varied in it.")(sweep)
app.command(epilog="RUNS are their folders.")(compare)
app.command(epilog="RUN is its folder, finished or not.")(explain)
app.command(epilog="RUN is its folder, finished or not; OUT is the file to write, e.g. model.safetensors.")(export)
app.command(
    epilog="MODEL is the folder of a run, finished or not, or the host of 'splitfed serve-model', and its port after a "
    "colon if not 9094; IMAGES are files, and folders of them."
)(predict)
app.command(epilog="RUN is its folder, finished or not.")(exits)
app.command(epilog="RUN is its folder, finished or not.")(serve_model)
app.command(epilog="RUN is its folder, finished or not.")(adapted)
app.command(epilog="RUN is its folder, finished or not.")(tradeoff)
app.command(epilog="WHAT is scenario or sweep.")(schema)
app.command(epilog=SCENARIO)(align)
app.command(epilog="FOLDER is the one to make or to add to, e.g. tls/.")(certs)
app.command(epilog=SCENARIO)(serve)
app.command(epilog="SERVER is the host of 'splitfed serve', and its port after a colon if not 9092.")(join)


def say_on_terminal(line: str) -> None:
    """Show a line to whoever watches; a log or a script that reads stderr gets results and mistakes alone."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Run the command line, and end as `splitfed.cli.ending` says."""
    # Before torch is loaded: its idle threads spin for so long that two processes on the same cores would stop each
    # other; with less they cost nothing alone (benchmarks/threads.py).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal has no letters for is shown with escapes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    keep_freed_memory()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it logs of a broken stream, our own lines say
    with ending(lambda: _debug), telling_missing(), speak(say_on_terminal):
        app(standalone_mode=True)
