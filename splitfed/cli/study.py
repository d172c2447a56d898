"""The commands of a study: what there is to compare, many runs in one go, and runs side by side."""

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from splitfed.cli.options import Overrides, PresetName
from splitfed.errors import SplitfedError
from splitfed.files import write


class By(StrEnum):
    """What a comparison is sorted by."""

    bytes = "bytes"
    total = "total"
    ratio = "ratio"
    time = "time"
    simulated_time = "simulated_time"


def list_(
    what: Annotated[str | None, typer.Argument()] = None,
    pattern: Annotated[str, typer.Argument()] = "*",
    long: Annotated[
        bool, typer.Option("--long", help="Tell what each key means, a line each; so does PATTERN.")
    ] = False,
) -> None:
    """List what a scenario can name, a line each: what it is, its source, and its keys with their defaults."""
    from splitfed.cli.listing.kinds import entries, show, sorts

    if what is None:
        show(sorts())
        return
    show(entries(what, pattern), long=long or pattern != "*")


def compare(
    runs: Annotated[list[Path], typer.Argument()],
    by: Annotated[
        By | None,
        typer.Option(
            help="Take runs together that differ in their seed alone, and sort them, least first, by bytes (of the "
            "cut), total (bytes of both planes, with wasted ones), ratio (of the cut, after the codec), time, or "
            "simulated_time."
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Show what was reached after so many cut bytes too, e.g. 50MB; with --by total, bytes of both planes; "
            "with --by simulated_time a time, e.g. 10min.",
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file too.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Draw figure.png (or .pdf, .svg): as figure-curves.png (by cut bytes), figure-total.png (by total "
            "bytes), figure-factors.png (of the cut or, with --by total, of both planes) and figure-roles.png; with "
            "--by simulated_time also as figure-time.png."
        ),
    ] = None,
) -> None:
    """Show finished runs side by side: accuracy, bytes, factors, time."""
    import splitfed

    timed = by is By.simulated_time
    budget = None if at is None else _seconds(at) if timed else _size(at)
    if out is not None:
        from splitfed.reports.study.plots import check_path, draw, short_labels

        check_path(out)
    comparison = splitfed.compare(runs)
    groups = comparison.grouped(by.value if by else None) if by or out else None
    shown = groups if by and groups else comparison
    shown.show(at=budget)  # type: ignore[arg-type]
    if csv is not None:
        write(csv, shown.to_csv(at=budget))  # type: ignore[arg-type]
    if out is not None and groups:
        for path in draw(groups.groups, out, groups.of, timed=timed):
            print(path)
        for one, short in zip(groups.groups, short_labels(groups.groups), strict=True):
            if short != one.label:
                print(f"{short} is {one.label}")
        for folder, reason in groups.left_out:
            if shown is comparison and (folder, reason) not in comparison.left_out:
                print(f"{folder}: not drawn: {reason}")


def sweep(
    file: Annotated[Path, typer.Argument()],
    preset: PresetName = None,
    set_: Overrides = None,
    device: Annotated[str | None, typer.Option(help="Train both sides there: auto, cpu, cuda, cuda:1, mps.")] = None,
    jobs: Annotated[
        int,
        typer.Option(min=1, help="How many runs at once, each in a process with engine.threads threads: 1 if not set."),
    ] = 1,
    runs: Annotated[Path, typer.Option(help="The folder in which the sweep's own folder is made.")] = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs, how far they are and what they will cost; train nothing.")
    ] = False,
) -> None:
    """Run many variants of a scenario: a grid over methods, ratios and seeds. Again: go on with what is not done."""
    import rich.console
    from rich.text import Text

    import splitfed
    from splitfed.reports.sweep.plan import Sweep
    from splitfed.scenario.overrides import named

    changes = [
        *named(preset),
        *(set_ or []),
        *([f"training.{side}.device={device}" for side in ("client", "server")] if device else []),
    ]
    plan = Sweep.load(file, changes)
    if dry_run:
        from splitfed.reports.sweep.text import show_plan

        show_plan(plan, runs)
        return
    out = rich.console.Console()
    live = out.status("") if out.is_terminal and out.file.isatty() else nullcontext()
    try:
        with live as line:
            swept = splitfed.sweep(
                plan, runs=runs, jobs=jobs, say=lambda text: print(text, flush=True),
                status=(lambda text: line.update(Text(text))) if line else lambda text: None,
            )  # fmt: skip
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", flush=True)
        raise
    if swept.done:
        print()
        splitfed.compare(swept.done).grouped().show()
    if swept.failed:
        head = f"{len(swept.failed)} of {len(plan.points)} runs failed; the same command tries again:"
        raise SplitfedError("\n".join([head, *(f"  {folder}: {why}" for folder, why in swept.failed)]))


def _size(text: str) -> int:
    from pydantic import TypeAdapter, ValidationError

    from splitfed.config import Bytes

    try:
        return int(TypeAdapter(Bytes).validate_python(text))
    except ValidationError:
        raise SplitfedError(
            f"--at {text}: write a number of bytes, such as 50MB, or with --by simulated_time a time, such as 10min"
        ) from None


def _seconds(text: str) -> float:
    from splitfed.link.quantities import read_seconds

    try:
        return float(read_seconds(float(text) if text.isdecimal() else text))
    except ValueError:
        raise SplitfedError(f"--at {text}: with --by simulated_time write a time, such as 10min or 90s") from None
