"""A sweep as it will be: its runs, how far each is, and what they will cost."""

from pathlib import Path

import rich.console
import torch
from rich.text import Text

from splitfed.reports import units
from splitfed.reports.costs.estimate import Estimate, estimate
from splitfed.reports.sweep.folder import State, rounds_done
from splitfed.reports.sweep.plan import Point, Sweep
from splitfed.reports.sweep.pool import look
from splitfed.reports.tables import new_table, show


def show_plan(plan: Sweep, runs: Path, out: rich.console.Console | None = None) -> None:
    """Print every run of a sweep with its state and its cost: bytes at most, before the lossless stage, and the time
    that one alone takes on this machine now. Raises SplitfedError as the sweep would."""
    root = runs / plan.name
    states = look(plan, root)
    table = new_table("\nrun", ["\nstate", "\nrounds", "cut bytes\nat most", "total bytes\nat most", "images\nfactor",
                                   "about\ntime"])  # fmt: skip
    costs: dict[str, Estimate] = {}
    cut = total = 0
    seconds = 0.0
    for point in plan.points:
        if point.label not in costs:
            costs[point.label] = _cost(point)
        found = costs[point.label]
        sizes = found.rounds * found.round.cut.sent, found.total_sent
        time = found.rounds * found.round_seconds
        table.add_row(
            Text(point.name), _state(states[point], root / point.name), str(found.rounds), *map(units.size, sizes),
            units.contained(found.images_factor), units.duration(time),
        )  # fmt: skip
        if states[point] != State.DONE:
            cut, total, seconds = cut + sizes[0], total + sizes[1], seconds + time
    left = sum(one != State.DONE for one in states.values())
    table.add_section()
    table.add_row(
        f"{left} to run", "", "", units.size(cut), units.size(total), "", units.duration(seconds), style="bold"
    )
    show(table, [], out)


def _cost(point: Point) -> Estimate:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(point.scenario.engine.threads or threads)
        return estimate(point.scenario)
    finally:
        torch.set_num_threads(threads)


def _state(state: State, folder: Path) -> str:
    return f"after round {rounds_done(folder)}" if state == State.OPEN else str(state)
