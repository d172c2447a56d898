"""An estimate as a person reads it."""

import io
from collections.abc import Iterator

import rich.console

from splitfed.reports import units
from splitfed.reports.costs.estimate import Estimate
from splitfed.reports.live.console import breakdown, print_whole
from splitfed.reports.live.target import foretold
from splitfed.scenario import Scenario
from splitfed.scenario.sections import Terms
from splitfed.split.computing.adaptive import Expected
from splitfed.split.computing.footprint import Side
from splitfed.split.computing.operations import Operations
from splitfed.split.computing.room import ways


def text(found: Estimate) -> str:
    """Return the estimate as lines of text: bytes of a round by role, then rounds, memory and time."""
    scenario, out = found.scenario, io.StringIO()
    console = rich.console.Console(file=out, width=100, force_jupyter=False)
    federation = scenario.federation
    print(
        f"{scenario.name}: {scenario.model.name} {_place(scenario)}, "
        f"{found.examples} training images of {found.classes} classes, "
        f"{federation.sampled} of {federation.clients} clients a round, {found.steps} steps a round",
        file=out,
    )
    if found.assumed:
        print("counts of images as data.expect gives them, in equal shares; nothing was loaded", file=out)
    for note in found.notes:
        print(note, file=out)
    print("\nbytes of a round, sent = before the lossless stage, so at most:", file=out)
    print_whole(console, breakdown(found.round, 0))
    rows = [
        ("rounds", str(found.rounds) if found.limit is None else f"{found.rounds} at most, see budget"),
        ("cut bytes", f"{units.size(found.rounds * found.round.cut.sent)} at most"),
        ("total bytes", f"{units.size(found.total_sent)} at most{_times(found)}"),
        ("images", _weight(found)),
        *([] if found.kinds else [("client memory", _memory(found.client))]),
        ("server memory", _memory(found.server)),
        *([] if found.kinds else [("operations", _operations(found.operations))]),
        *([("budgets", _adaptive(found.operations.adaptive))] if found.operations.adaptive else []),
        *([("in local phases", _taught(found.operations))] if found.operations.taught else []),
        *_kinds(found),
        ("images in memory", units.size(found.images) if found.images else "none kept"),
        (
            "time of a step",
            f"{units.decimal(1000 * found.step_seconds, 0)} ms (client and server), measured just now on this machine",
        ),
        (
            "time of a round",
            f"{units.duration(found.round_seconds)} without loading and packing, if no more runs beside",
        ),
        ("time of the run", units.duration(found.rounds * found.round_seconds)),
    ]
    crossed = found.round.select(direction="up", role="smashed").reduced
    if (symbols := scenario.compression.reducer.symbols(crossed)) is not None:
        rows.append(("channel symbols", f"{symbols:,} a round go up"))
    if scenario.points:
        rows.append(("controller", "chooses between what follows; what is above is as without it"))
    if len(found.each) > 1:
        rows += [(_named("bytes", of), f"{units.size(sent)} a round for a client") for of, sent in found.each.items()]
    rows += [(_named("simulated", of), _simulated(*spent)) for of, spent in found.simulated.items()]
    rows += [("target", told) for told in foretold(scenario, found.each, found.simulated, found.rounds)]
    rows += list(_room(found))
    if scenario.compression.front_weights.initial == "load":
        rows.append(("weights", "clients load what the run begins with, from the model's own file"))
    if once := found.once.total.sent:
        rows.insert(2, ("once", f"{units.size(once)}: what each client is sent before it first trains"))
    if found.limit is not None:
        limit = f"{units.size(found.limit)} of {scenario.budget.of} bytes"
        rows.insert(1, ("budget", f"{limit}; fewer bytes a round mean more rounds"))
    print(file=out)
    width = max(17, *(len(name) for name, _ in rows))
    for name, value in rows:
        print(f"{name:<{width}} {value}", file=out)
    return out.getvalue().rstrip("\n")


def _kinds(found: Estimate) -> Iterator[tuple[str, str]]:
    """Say what clients of each profile hold and compute, where their fronts have different numbers of blocks."""
    for name, kind in found.kinds.items():
        yield f"client memory, {name}", _memory(kind.client)
        yield f"operations, {name}", _operations(kind.operations)


def _named(what: str, terms: Terms) -> str:
    """Say whose figures these are."""
    return ", ".join(filter(None, (what, *terms)))


def _simulated(fastest: float, slowest: float) -> str:
    """Say what a round takes clients in simulated time."""
    between = units.duration(fastest)
    if units.duration(slowest) != between:
        between = f"{between} to {units.duration(slowest)}"
    return f"{between} a round for a client alone, with bytes as they are before the lossless stage"


def _room(found: Estimate) -> Iterator[tuple[str, str]]:
    """Say whether the memory of each profile is enough for what a client needs."""
    for name, profile in found.scenario.federation.profiles.items():
        if (memory := profile.device.memory) is not None:
            yield f"memory, {name}", f"{units.size(memory)}, {_enough(found, memory, name)}"


def _enough(found: Estimate, memory: int, profile: str) -> str:
    """Say whether so many bytes hold what a client needs, and else with which chunk, mini-batch or cut they would."""
    client = found.client_of(profile)
    needed = client.state + client.activations + client.copies
    if needed <= memory:
        return "enough"
    needs = f"less than the {units.size(needed)} that a client needs"
    need = found.need_of(profile)
    fitting = ways(found.scenario, found.classes, need, found.batch, memory, client.copies, profile)
    if ones := [f"{key} {value}" for key, value in fitting]:
        return f"{needs}: {' or '.join(ones)} fits"
    return f"{needs}, also for mini-batches of one image and a lower cut: take a smaller model"


def _times(found: Estimate) -> str:
    weight = found.images_bytes
    return f", {units.times(found.total_sent, weight)} what the images weigh" if weight else ""


def _weight(found: Estimate) -> str:
    if not found.images_bytes:
        return "not weighed, as nothing was loaded; --set data.expect=null loads them"
    return f"{units.size(found.images_bytes)} as stored: those that clients train on or hold out"


def _place(scenario: Scenario) -> str:
    if not scenario.federation.splits:
        return "whole at each client"
    cut = f"cut after block {scenario.cut_in_words}"
    return cut if scenario.tail is None else f"{cut} and before the last {scenario.tail}"


def _operations(found: Operations) -> str:
    return (
        f"client {units.flops(found.client)} an image ({units.decimal(found.client_ratio, 2)}x uncompressed), "
        f"server {units.flops(found.server)} ({units.decimal(found.server_ratio, 2)}x)"
    )


def _adaptive(found: Expected) -> str:
    front, back = (units.decimal(number, 1) for number in found.blocks)
    share = units.percent(found.learns)
    return f"{front} blocks of the front and {back} of the back train at a time; a gradient comes down for {share}"


def _taught(found: Operations) -> str:
    ratio = units.decimal(found.taught / found.front, 2)
    return f"client {units.flops(found.taught)} an image, with the auxiliary net ({ratio}x the front alone)"


def _memory(side: Side) -> str:
    total = units.size(side.state + side.activations + side.copies)
    copies = f"; {units.size(side.copies)} copies of samples" if side.copies else ""
    return f"{total} ({side.parameters:,} parameters; {units.size(side.activations)} saved for backward{copies})"
