"""How long a round takes clients of each profile, in simulated time, before any round is run."""

from collections.abc import Sequence, Set
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from splitfed.data.batches import batch_sizes, count_batches
from splitfed.federation.profiles import links
from splitfed.link.clock import Course, Exchange, Site
from splitfed.model.adaptive.alast import answered_share
from splitfed.model.parts import Parts
from splitfed.scenario import Scenario
from splitfed.scenario.sections import Terms
from splitfed.seeds import Key
from splitfed.split import ending
from splitfed.split.assembly import Cuts
from splitfed.split.client_part import ClientPart
from splitfed.split.computing.rehearsal import Pair, RandomBatch, mixed, pairs, size
from splitfed.split.computing.seconds import Work
from splitfed.split.cut import Cut
from splitfed.split.weights.wire import WeightWire

_MOST = 20  # clients of a profile that are tried: their links differ


def seconds_of_a_round(
    scenario: Scenario, images: int, classes: int, parts: Parts, cuts: Cuts, key: Key
) -> dict[Terms, tuple[float, float]]:  # fmt: skip
    """Return, by profile and operating point, how many seconds its fastest client and its slowest take for a round of
    the first phase, each alone, at once, and with so many images; nothing where a scenario has no simulated time."""
    if not scenario.timed:
        return {}
    federation, seed = scenario.federation, Key(scenario.seed)
    steps = count_batches(images, scenario.training.batch_size, federation.local_steps, federation.local_epochs)
    sizes, phase, work = batch_sizes(images, scenario.training.batch_size, steps), scenario.phase(1), Work(scenario)
    work.classes = classes
    every = phase.upload_every if federation.splits else None
    sends = set(range(0, steps, every)) if every else set()
    ((up, down),) = pairs(ending.rehearse())
    end = Exchange(0.0, up, 0.0, down) if federation.splits else None
    found: dict[Terms, list[float]] = {}
    with TemporaryDirectory() as folder:
        line = links(federation.profiles, scenario.link, work.profile, seed.at("link"), Path(folder))
        there = federation.availability.open(seed.at("availability"), federation.clients, Path(folder))
        for terms in used_terms(scenario):
            answered = scenario.answer_every(phase, terms)
            samples = images * (scenario.data.variants or 1)
            frames = _frames(sizes, sends, answered, phase.frozen, parts, cuts.under(terms), key, samples)
            part = ClientPart.of(scenario, parts.at(scenario.cut_of(terms.profile)))
            own = WeightWire.of(part, scenario.compression_under(terms), phase.first)
            weights = 0 if phase.frozen else size(own.rehearse(key))
            for client in islice((c for c, of in enumerate(work.profile) if of == terms.profile), _MOST):
                seconds = work.told(client, there.presence(1, client, steps).step_seconds)
                made = [
                    work.training(client, number, phase, step in sends, seconds).step(frames.get(step, []))
                    for step, number in enumerate(sizes)
                ]
                course = Course(
                    0.0, weights, made, end, weights, line(client), key.at("timing", client), ahead=scenario.ahead(1)
                )
                found.setdefault(terms, []).append(Site().together({client: course}, 0.0)[client].end)
    return {terms: (min(times), max(times)) for terms, times in found.items()}


def used_terms(scenario: Scenario) -> list[Terms]:
    """Return the terms under which clients send, by profile and operating point."""
    points = scenario.points or ("",)
    return [Terms(profile, point) for profile in dict.fromkeys(scenario.dealt_profiles()) for point in points]


def _frames(
    sizes: Sequence[int], sends: Set[int], every: int, frozen: bool, parts: Parts, cut: Cut, key: Key, samples: int
) -> dict[int, list[Pair]]:  # fmt: skip
    """Return the bytes of the frames of the mini-batches that are sent, each of so many images of a client's `samples`,
    of which one in `every` is answered with its gradient; a front that is `frozen` computes as in evaluation."""
    encoder, decoder, made = parts.front.encoder, parts.back.decoder, dict[tuple[int, bool], list[Pair]]()
    share = answered_share(parts.front)

    def frames(size: int, quiet: bool) -> list[Pair]:
        if (size, quiet) not in made:
            batch = RandomBatch(size, cut.geometry, key.at("timing", size), cut.device, parts.back, samples)
            made[size, quiet] = pairs(cut.rehearse(batch, key, encoder, decoder, quiet, evaluates=frozen))
        return made[size, quiet]

    found = {}
    for place, step in enumerate(sorted(sends)):
        quiet = not every or place % every > 0
        found[step] = frames(sizes[step], quiet)
        if not quiet and share < 1:
            found[step] = mixed(share, found[step], frames(sizes[step], True))
    for part in (encoder, decoder):
        part.zero_grad(set_to_none=True)
    return found
