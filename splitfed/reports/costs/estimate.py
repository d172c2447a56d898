"""What a scenario will cost, before it runs: bytes by role, memory and time, from one step on random images.

Sizes after the codec follow from shapes alone, so they are what a run sends but for the lossless stage, which only
makes them smaller; but packed integers, such as the gaps of top-k, take the bits of the largest, which is a guess, and
the bytes of `klt` are those of random rows that vary as those of a pretrained front do (`RandomBatch`). Nothing is
trained and nothing is kept; weights are random, and images too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from splitfed.errors import ModelError
from splitfed.model.optim import pick_device
from splitfed.model.parts import Parts
from splitfed.reports.costs.shares import Shares
from splitfed.reports.costs.timing import seconds_of_a_round, used_terms
from splitfed.reports.costs.traffic import Traffic
from splitfed.run.ledger import Totals
from splitfed.scenario import Scenario
from splitfed.scenario.budget import Basis
from splitfed.scenario.engine import Remote
from splitfed.scenario.sections import Terms
from splitfed.seeds import Key
from splitfed.split.assembly import Cuts, assemble, check_fits
from splitfed.split.computing.footprint import Side, measure
from splitfed.split.computing.operations import Operations, count_step
from splitfed.split.computing.room import Need
from splitfed.split.cut import Cut
from splitfed.split.mistakes import of_this_machine
from splitfed.waiting import waiting


@dataclass(frozen=True, slots=True)
class Kind:
    """What a client of a profile has in memory, what it needs there, and the operations of a step with it."""

    client: Side
    need: Need
    operations: Operations


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of a scenario: bytes of an average round (`sent` before the lossless stage) and those that cross `once`,
    where clients fit a reducer's layers to their images; rounds it will run at most; the budget in bytes, of the cut or
    of all as the scenario counts; what the images weigh that clients hold, as they are stored (None where nothing was
    loaded); memory and operations of each side with mini-batches of `batch` images, bytes of decoded images, and
    seconds. By profile and operating point, `each` is the bytes of a round of one client, and `simulated` the seconds
    that the fastest and the slowest take for it. Where fronts have different numbers of blocks, what is said of memory
    and operations is of the model as it is evaluated, and `kinds` says it of each profile. `notes` are what a user
    should know of the data."""

    scenario: Scenario
    examples: int
    classes: int
    steps: int
    batch: int
    round: Totals
    once: Totals
    rounds: int
    limit: int | None
    images_bytes: int | None
    client: Side
    need: Need
    server: Side
    operations: Operations
    images: int
    step_seconds: float
    round_seconds: float
    assumed: bool
    each: Mapping[Terms, int]
    simulated: Mapping[Terms, tuple[float, float]]
    kinds: Mapping[str, Kind]
    notes: tuple[str, ...] = ()

    def client_of(self, profile: str) -> Side:
        """Return the memory of a client of this profile."""
        return self.kinds[profile].client if profile in self.kinds else self.client

    def need_of(self, profile: str) -> Need:
        """Return what a client of this profile needs of memory."""
        return self.kinds[profile].need if profile in self.kinds else self.need

    @property
    def total_sent(self) -> int:
        """Bytes of the whole run, both planes, before the lossless stage."""
        return self.rounds * self.round.total.sent + self.once.total.sent

    @property
    def images_factor(self) -> float | None:
        """How many times what the images weigh the whole run sends at most; None where nothing tells what they do."""
        return self.total_sent / self.images_bytes if self.images_bytes else None


def estimate(scenario: Scenario) -> Estimate:
    """Work out what a scenario will cost. Where `data.expect` says what the data set holds and it is not on this
    machine, it is not loaded, and clients are taken to hold equal shares. Raises SplitfedError as a run would."""
    for place, why in of_this_machine(scenario):
        raise ModelError(f"{place}: {why}")
    key, federation, training = Key(scenario.seed), scenario.federation, scenario.training
    shares = Shares.of(scenario, key)
    device = pick_device(training.client.device)
    with waiting("building the model"):
        all_parts = assemble(scenario, shares.classes, pretrained=False, cuts=scenario.cuts)
        all_parts = all_parts.to(device, training.precision)
    parts = all_parts.at(scenario.model.cut)
    check_fits(scenario, parts.front)
    cuts = Cuts(scenario, parts.front.geometry(training.batch_size, shares.classes), device)
    cut, traffic = cuts.plain, Traffic(scenario, shares, all_parts, cuts, key)
    with waiting("packing random activations, to count their bytes"):
        round_bytes, once_bytes = traffic.round(), traffic.once()
        of_each = {terms: traffic.under(terms).of_a_client() for terms in used_terms(scenario)}
    batch = min(training.batch_size, max(shares.trained))
    with waiting("counting the operations of a step"):
        operations = count_step(parts, cut, scenario, batch, key)
    with waiting(f"measuring some steps of {batch} random images"):
        client, server, step_seconds, forward_seconds = measure(parts, cut, scenario, batch, key)
        by_front = _by_front(scenario, all_parts, cut, batch, key)
    steps = round(sum(shares.batches(scenario).values()) * shares.drawn(scenario))
    budget = scenario.budget
    limit = budget.limit(Basis(sum(shares.trained), cut.geometry, federation.private, shares.images_bytes or 0))
    rounds = federation.rounds
    if limit is not None:
        left = limit if budget.of == "cut" else max(0, limit - once_bytes.total.sent)
        each = round_bytes.cut if budget.of == "cut" else round_bytes.total
        rounds = min(rounds, -(-left // max(1, each.sent)))
    images = round(sum(shares.trained) / len(shares.trained))
    simulated = seconds_of_a_round(scenario, images, shares.classes, all_parts, cuts, key)
    if by_front:  # the back begins after the smallest cut
        server = by_front[scenario.cuts[0]][1]
    server, kept = _of_all(server, scenario, shares), _kept_copies(cut, scenario, shares)
    client, need = _in_chunks(scenario, parts, cut, replace(client, copies=max(kept)), batch)
    kinds = {}
    for name in federation.profiles if by_front else ():
        side, _, its = by_front[scenario.cut_of(name)]
        mine = parts if scenario.cut_of(name) == scenario.model.cut else all_parts.at(scenario.cut_of(name))
        kinds[name] = Kind(*_in_chunks(scenario.cut_as(name), mine, cut, replace(side, copies=max(kept)), batch), its)
    evaluation = forward_seconds / batch * _evaluated(scenario, shares, traffic)
    return Estimate(
        scenario, sum(shares.trained), shares.classes, steps, batch, round_bytes, once_bytes, rounds, limit,
        shares.images_bytes, client, need, replace(server, copies=sum(kept)), operations,
        _kept_images(scenario, shares), step_seconds, steps * step_seconds + evaluation, shares.assumed, of_each,
        simulated, kinds, shares.notes,
    )  # fmt: skip


def _in_chunks(scenario: Scenario, parts: Parts, cut: Cut, client: Side, batch: int) -> tuple[Side, Need]:
    """Return a client's memory as it is where mini-batches are computed in chunks, and what it needs with others."""
    need = Need.of(scenario, parts, cut.geometry).as_measured(client, batch)
    return replace(client, activations=need.activations(batch, scenario.training.client.chunk)), need


def _by_front(
    scenario: Scenario, parts: Parts, cut: Cut, batch: int, key: Key
) -> dict[int, tuple[Side, Side, Operations]]:  # fmt: skip
    """Return the memory of a client and of the server, and the operations of a step, by the blocks of the front;
    nothing where all fronts have as many."""
    found = {}
    for profile in scenario.federation.profiles if scenario.uneven else ():
        own = scenario.cut_as(profile)
        if own.model.cut not in found:
            mine = parts.at(own.model.cut)
            client, server, *_ = measure(mine, cut, own, batch, key)
            found[own.model.cut] = client, server, count_step(mine, cut, own, batch, key)
    return found


def _of_all(server: Side, scenario: Scenario, shares: Shares) -> Side:
    """Return the server's memory for all who train at once, from that for one: the common back, and a copy for each
    client that trains, in one process one after another; of a joint step, the activations of all."""
    federation = scenario.federation
    at_once = min(federation.at_once, shares.cohort(scenario))
    copies = 1 if federation.mode != "sfl-v1" else 1 + (at_once if isinstance(scenario.engine, Remote) else 1)
    joined = at_once if federation.mode == "psl" else 1
    return Side(server.parameters, server.state * copies, server.activations * joined)


def _evaluated(scenario: Scenario, shares: Shares, traffic: Traffic) -> float:
    """Return how many images the model is evaluated on after an average round, by server and clients."""
    by_server = shares.validation / scenario.training.evaluate_every
    if not shares.held_out:
        return by_server
    return by_server + traffic.evaluations() * sum(shares.held_out) / len(shares.held_out)


def _kept_copies(cut: Cut, scenario: Scenario, shares: Shares) -> list[int]:
    """Return the bytes of each client's copies of its samples, once all have crossed."""
    if cut.kept is None:
        return [0]
    variants = scenario.data.variants or 1
    return [cut.kept.each * min(cut.kept.most, images * variants) for images in shares.trained]


def _kept_images(scenario: Scenario, shares: Shares) -> int:
    """Return the bytes of decoded images that stay in memory."""
    decoded = shares.images * 3 * scenario.model.image_size**2
    return decoded if scenario.data.cache is not None and decoded <= scenario.data.cache else 0
