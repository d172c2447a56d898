"""How long a round takes clients of each profile, in simulated time, before any round is run."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from splitfed.data.batches import batch_sizes, count_batches
from splitfed.federation.phases import Phase
from splitfed.federation.profiles import links
from splitfed.link.clock import Course, Exchange, Site
from splitfed.model.parts import Parts
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.split import ending
from splitfed.split.client_part import ClientPart
from splitfed.split.computing.rehearsal import Pair, RandomBatch, pairs, size
from splitfed.split.computing.seconds import Work
from splitfed.split.cut import Cut
from splitfed.split.weights.wire import WeightWire

_MOST = 20  # clients of a profile that are tried: their links differ


def seconds_of_a_round(
    scenario: Scenario, images: int, classes: int, parts: Parts, cut: Cut, key: Key
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Return, by profile, how many seconds its fastest client and its slowest take for a round of the first phase, each
    alone, at once, and with so many images; nothing where a scenario has no simulated time."""
    if not scenario.timed:
        return {}
    federation, seed = scenario.federation, Key(scenario.seed)
    steps = count_batches(images, scenario.training.batch_size, federation.local_steps, federation.local_epochs)
    sizes, phase, work = batch_sizes(images, scenario.training.batch_size, steps), scenario.phase(1), Work(scenario)
    work.classes = classes
    every = phase.upload_every if federation.splits else None
    sends = set(range(0, steps, every)) if every else set()
    frames = _frames(sorted({sizes[step] for step in sends}), phase, parts, cut, key)
    wire = WeightWire.of(ClientPart.of(scenario, parts), scenario.compression)
    weights = 0 if phase.frozen else size(wire.rehearse(key))
    ((up, down),) = pairs(ending.rehearse())
    end = Exchange(0.0, up, 0.0, down) if federation.splits else None
    found: dict[str, list[float]] = {}
    with TemporaryDirectory() as folder:
        line = links(federation.profiles, scenario.link, work.profile, seed.at("link"), Path(folder))
        there = federation.availability.open(seed.at("availability"), federation.clients, Path(folder))
        for name in dict.fromkeys(work.profile):
            for client in islice((c for c, of in enumerate(work.profile) if of == name), _MOST):
                seconds = work.told(client, there.presence(1, client, steps).step_seconds)
                made = [
                    work.training(client, number, phase, step in sends, seconds).step(
                        frames[number] if step in sends else []
                    )
                    for step, number in enumerate(sizes)
                ]
                course = Course(
                    0.0, weights, made, end, weights, line(client), key.at("timing", client), ahead=scenario.ahead(1)
                )
                found.setdefault(name, []).append(Site().together({client: course}, 0.0)[client].end)
    return {name: (min(times), max(times)) for name, times in found.items()}


def _frames(sizes: Sequence[int], phase: Phase, parts: Parts, cut: Cut, key: Key) -> dict[int, list[Pair]]:
    """Return the bytes of the frames of mini-batches of so many images."""
    encoder, decoder, found = parts.front.encoder, parts.back.decoder, {}
    for number in sizes:
        batch = RandomBatch(number, cut.geometry, key.at("timing", number), cut.device)
        quiet, evaluates = not phase.answer_every, phase.frozen
        found[number] = pairs(cut.rehearse(batch, key, encoder, decoder, quiet, evaluates=evaluates))
    for part in (encoder, decoder):
        part.zero_grad(set_to_none=True)
    return found
