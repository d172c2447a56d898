"""What a scenario will cost, before it runs: bytes by role, memory and time, from one step on random images.

Sizes after the codec follow from shapes alone, so they are what a run sends but for the lossless stage, which only
makes them smaller; but packed integers, such as the gaps of top-k, take the bits of the largest, which is a guess.
Nothing is trained and nothing is kept; weights are random, and images too.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from splitfed.compression.reducers.base import View
from splitfed.data.batches import count_batches
from splitfed.data.dataset import load
from splitfed.data.stratify import count_held_out
from splitfed.model.optim import pick_device
from splitfed.model.parts import Parts
from splitfed.reports.costs.footprint import Side, measure
from splitfed.reports.costs.operations import Operations, count_step, count_whole
from splitfed.run.ledger import Direction, Row, Sizes, Totals
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Remote
from splitfed.seeds import Key
from splitfed.split.assembly import assemble, check_fits
from splitfed.split.client_part import Held
from splitfed.split.cut import Cut
from splitfed.split.evaluation import Looks, Seen
from splitfed.split.weights import FrontWire
from splitfed.wire.frame import Packed, pack


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of a scenario: bytes of an average round (`sent` before the lossless stage) and those that cross `once`,
    where clients fit a reducer's layers to their images; rounds it will run at most, the budget in cut bytes, memory
    and operations of each side, bytes of decoded images, and seconds."""

    scenario: Scenario
    examples: int
    classes: int
    steps: int
    round: Totals
    once: Totals
    rounds: int
    limit: int | None
    client: Side
    server: Side
    operations: Operations
    images: int
    step_seconds: float
    round_seconds: float
    assumed: bool

    @property
    def total_sent(self) -> int:
        """Bytes of the whole run, both planes, before the lossless stage."""
        return self.rounds * self.round.total.sent + self.once.total.sent


def estimate(scenario: Scenario) -> Estimate:
    """Work out what a scenario will cost. Where `data.expect` says what the data set holds, it is not loaded, and
    clients are taken to hold equal shares. Raises SplitfedError as a run would."""
    key, federation, training = Key(scenario.seed), scenario.federation, scenario.training
    if (expect := scenario.data.expect) is not None:
        counts, classes = scenario.data.counts(expect.train, expect.test), expect.classes
        share, left = divmod(counts.train, federation.clients)
        examples = [share + (client < left) for client in range(federation.clients)]
        pictures = counts.train + counts.validation + counts.test
        validation = counts.validation
    else:
        data = load(scenario.data, scenario.model.image_size, federation.clients, key.at("data"))
        examples, classes = [len(rows) for rows in data.partitions], len(data.classes)
        validation = len(data.validation)
        pictures = len(data.train) + validation + len(data.test)
    device = pick_device(training.client.device)
    parts = assemble(scenario, classes, pretrained=False).to(device)
    front, back, _ = parts
    check_fits(scenario, front)
    out = [count_held_out(images, scenario.evaluation.held_out) for images in examples]
    examples = [images - aside for images, aside in zip(examples, out, strict=True)]
    batch = min(training.batch_size, max(examples))
    cut = Cut.of(scenario, front.geometry(training.batch_size, classes), device)

    examples = [held for held in examples if held]  # who holds none is never drawn
    cohort = min(federation.sampled, len(examples))  # as if all of them stayed
    share_of_round = cohort / len(examples)
    sizes: Counter[int] = Counter()
    for held in examples:
        count = count_batches(held, training.batch_size, federation.local_steps, federation.local_epochs)
        last = held % training.batch_size or training.batch_size
        passes = count // -(-held // training.batch_size)  # each ends with a batch of what is left
        sizes[min(held, training.batch_size)] += count - passes
        sizes[last] += passes
    totals = Totals()
    for size, number in sorted(sizes.items()):
        if size and number and federation.splits:
            _add_step(totals, cut, parts, size, number * share_of_round, key)
    if federation.splits:
        _add_streams(totals, cohort)
    wire = FrontWire.of(Held.of(scenario, parts), scenario.compression)
    _add_weights(totals, wire, "up", cohort, key, wire.delta)
    # Who was drawn in the round before too is sent a difference.
    again = cohort * share_of_round if wire.delta else 0.0
    _add_weights(totals, wire, "down", cohort - again, key)
    _add_weights(totals, wire, "down", again, key, wire.delta)
    looks = _add_evaluations(totals, scenario, cut, wire, front.encoder, [aside for aside in out if aside], key)
    once = Totals()
    if frozen := front.frozen():
        _add_weights(once, FrontWire(frozen, scenario.compression), "down", len(examples), key)
    if fitting := scenario.compression.reducer.alignment():
        down, up = FrontWire.of_alignment(front, back.decoder, scenario.compression)
        _add_weights(once, down, "down", len(examples), key)
        if fitting.epochs:
            _add_weights(once, up, "up", cohort, key)

    steps = round(sum(sizes.values()) * share_of_round)
    if federation.splits:
        operations = count_step(parts, cut, scenario.model.image_size, batch, key)
    else:
        operations = count_whole(parts, cut, scenario.model.image_size, batch)
    client, server, seconds, forward = measure(parts, cut, scenario, batch, key)
    at_once = min(federation.at_once, cohort)
    # The common back, and a copy for each client that trains: in one process one after another.
    copies = 1 if federation.mode != "sfl-v1" else 1 + (at_once if isinstance(scenario.engine, Remote) else 1)
    joined = at_once if federation.mode == "psl" else 1
    server = Side(server.parameters, server.state * copies, server.activations * joined)
    limit = scenario.budget.limit(sum(examples), cut.geometry, federation.private)
    rounds = federation.rounds if limit is None else min(federation.rounds, -(-limit // max(1, totals.cut.sent)))
    evaluation = forward / batch * (validation / training.evaluate_every + looks)
    cached = pictures * 3 * scenario.model.image_size**2
    images = cached if scenario.data.cache is not None and cached <= scenario.data.cache else 0
    return Estimate(
        scenario, sum(examples), classes, steps, totals, once, rounds, limit, client, server, operations, images,
        seconds, steps * seconds + evaluation, expect is not None,
    )  # fmt: skip


def _add(totals: Totals, direction: Direction, plane: str, role: str, sizes: Sizes, times: float) -> None:
    scaled = Sizes(*(round(times * n) for n in (sizes.raw, sizes.reduced, sizes.coded, sizes.sent)))
    totals.add(Row(0, 0, 0, direction, plane, role, scaled))  # type: ignore[arg-type]


def _add_step(totals: Totals, cut: Cut, parts: Parts, size: int, times: float, key: Key) -> None:
    """Count a step of `size` images on random activations, before the lossless stage."""
    geometry = cut.geometry
    generator = key.at("estimate", size).generator()
    activations = torch.randn(size, geometry.tokens, geometry.width, generator=generator).to(cut.device)
    attention = torch.rand(size, geometry.tokens, generator=generator).to(cut.device)
    labels = torch.randint(geometry.classes, (size,), generator=generator).to(cut.device)
    view = View(activations, geometry.prefix, lambda: attention / attention.sum(1, True), parts.front.encoder)
    plan = cut.reducer.plan(view, key)
    smashed = plan.reduce(activations)
    up = cut.pack_step(plan, smashed, plan.targets(labels, geometry.classes), size, key, 1, 0, 1)
    batch = cut.batch(cut.unpack_up(up.buffer))
    loss = None if cut.private else 1.0
    frames: list[tuple[Direction, Packed]] = [
        ("up", up), ("down", cut.pack_gradient(batch.frame, torch.randn_like(smashed), loss, key)),
    ]  # fmt: skip
    if cut.private:
        with torch.no_grad():
            features = cut.reducer.restore(batch.smashed, batch.side, batch.frame.meta, parts.back.decoder)
        frames += [("down", cut.pack_features(batch.frame, features, key))]
        frames += [("up", cut.pack_backward(features, key, 1, 0, 1))]
    for way, packed in frames:
        for role, part in cut.sizes(packed, size).items():
            _add(totals, way, "data", role, _without_lossless(part), times)


def _add_evaluations(
    totals: Totals, scenario: Scenario, cut: Cut, wire: FrontWire, encoder: nn.Module, held: list[int], key: Key
) -> float:  # fmt: skip
    """Count what clients who hold out so many images send in an average round to evaluate, on random activations, and
    return how many images that is."""
    settings, rounds = scenario.evaluation, scenario.federation.rounds
    asked = min(settings.most_asked(scenario.federation.clients), len(held))
    if not asked:
        return 0.0
    often = sum(settings.due(number, last=number == rounds) for number in range(1, rounds + 1)) / rounds
    _add_weights(totals, wire, "down", often * asked, key)
    if not scenario.federation.splits:
        return often * asked * sum(held) / len(held)
    looks, geometry = Looks(cut, encoder), cut.geometry
    generator = key.at("estimate", "evaluation").generator()
    sizes: Counter[int] = Counter()
    for images in held:
        sizes[geometry.batch] += images // geometry.batch
        sizes[images % geometry.batch] += 1
    for size, number in sorted(sizes.items()):
        if not size or not number:
            continue
        activations = torch.randn(size, geometry.tokens, geometry.width, generator=generator).to(cut.device)
        labels = torch.randint(geometry.classes, (size,), generator=generator).to(cut.device)
        with torch.no_grad():
            packed = looks.pack(encoder(activations), labels, key, 1, 0, 1)
        frame = looks.unpack_up(packed.buffer)
        answer = looks.answer_private(frame, activations, key) if cut.private else looks.answer(frame, Seen(1.0, size))
        frames: tuple[tuple[Direction, Packed], ...] = (("up", packed), ("down", answer))
        for way, one in frames:
            for role, part in looks.sizes(one, size).items():
                _add(totals, way, "data", role, _without_lossless(part), often * number * asked / len(held))
    _add_streams(totals, often * asked)
    return often * asked * sum(held) / len(held)


def _without_lossless(part: Sizes) -> Sizes:
    return Sizes(part.raw, part.reduced, part.coded, part.coded or part.sent)


def _add_streams(totals: Totals, cohort: float) -> None:
    end, done = pack("end", 1, 0, 1, {}, {"up": 1 << 30, "down": 1 << 30}), pack("done", 1, 0, 1, {})
    _add(totals, "up", "data", "envelope", Sizes(sent=end.total), cohort)
    _add(totals, "down", "data", "envelope", Sizes(sent=done.total), cohort)


def _add_weights(
    totals: Totals, wire: FrontWire, direction: Direction, clients: float, key: Key, difference: bool = False
) -> None:  # fmt: skip
    weights = {name: torch.zeros(shape) for name, shape in wire.shapes.items()}
    for role, sizes in wire.sizes(wire.pack(weights, key, 1, 0, 1 if difference else None)).items():
        _add(totals, direction, "control", role, _without_lossless(sizes), clients)
