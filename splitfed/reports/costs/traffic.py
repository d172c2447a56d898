"""Bytes by role: each frame as `splitfed.split` enumerates it, as often as it crosses."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

from splitfed.federation.phases import Phase, spans
from splitfed.model.adaptive.alast import answered_share
from splitfed.model.parts import Parts
from splitfed.reports.costs.shares import Shares
from splitfed.run.ledger import Plane, Row, Sizes, Totals
from splitfed.scenario import Scenario
from splitfed.scenario.sections import COMMON, Terms
from splitfed.seeds import Key
from splitfed.split import ending
from splitfed.split.assembly import Cuts
from splitfed.split.auxiliary import Auxiliary
from splitfed.split.client_part import ClientPart
from splitfed.split.computing.rehearsal import Crossed, RandomBatch
from splitfed.split.cut import Cut
from splitfed.split.evaluation import EvaluationCut
from splitfed.split.weights.turns import Turns
from splitfed.split.weights.wire import WeightWire


class _Sum:
    """Adds up what crosses, as it is before the lossless stage."""

    def __init__(self) -> None:
        self.totals = Totals()

    def add(self, plane: Plane, crossed: Crossed, times: float) -> None:
        """Count a frame that crosses so often."""
        direction, roles = crossed
        for role, part in roles.items():
            stages = (part.raw, part.reduced, part.coded, part.coded or part.sent)
            scaled = Sizes(*(round(times * size) for size in stages))
            self.totals.add(Row(0, 0, 0, direction, plane, role, scaled))


@dataclass(frozen=True, slots=True)
class Traffic:
    """What clients with these shares of the images and the server send each other, with the model in `parts`, cut as
    their profile has it."""

    scenario: Scenario
    shares: Shares
    parts: Parts
    cuts: Cuts
    key: Key
    terms: Terms = COMMON

    @property
    def cut(self) -> Cut:
        """What mini-batches cross."""
        return self.cuts.under(self.terms)

    def under(self, terms: Terms) -> "Traffic":
        """Return the same of clients under these terms."""
        compression, cut = self.scenario.compression_under(terms), self.scenario.cut_of(terms.profile)
        scenario = self.scenario.model_copy(update={"compression": compression})
        return replace(self, scenario=scenario, parts=self.parts.at(cut), terms=terms)

    def round(self) -> Totals:
        """Return the bytes of an average round: mini-batches, weights and evaluations. Those of a profile count by its
        share of the clients; where a controller chooses, all are as without it."""
        scenario, profiles_of = self.scenario, self.scenario.federation.profiles.items()
        own = {n: one.compression is not None or scenario.cut_of(n) != scenario.model.cut for n, one in profiles_of}
        profiles = Counter(name if own.get(name) else "" for name in self.scenario.dealt_profiles())
        if len(profiles) == 1 and "" in profiles:
            return self.under(COMMON).of_all()
        total = Totals()
        for name, number in profiles.items():
            part = number / profiles.total()
            for place, sizes in self.under(Terms(name)).of_all().sums.items():
                scaled = (round(part * size) for size in (sizes.raw, sizes.reduced, sizes.coded, sizes.sent))
                total.sums[place] += Sizes(*scaled)
        return total

    def of_a_client(self) -> int:
        """Return the bytes of a round of one client that trains in it, before the lossless stage."""
        return round(self.of_all(evaluated=False).total.sent / self.shares.cohort(self.scenario))

    def of_all(self, *, evaluated: bool = True) -> Totals:
        """Return the bytes of an average round in which all clients have these terms; those that are `evaluated` for it
        too, if wanted."""
        found, rounds = _Sum(), self.scenario.federation.rounds
        for phase, number in spans(self.scenario.phases, rounds):
            if self.scenario.remembers(phase.first):
                self._add_stored(found)
            elif self.scenario.federation.splits:
                self._add_batches(found, phase, number / rounds)
            self._add_weights(found, phase, number / rounds)
        if evaluated:
            self._add_evaluations(found)
        return found.totals

    def once(self) -> Totals:
        """Return the bytes that cross once in a run: what is never trained, and a reducer's layers where clients fit
        them to their images."""
        found, scenario, (front, back, _) = _Sum(), self.scenario, self.parts
        clients = len(self.shares.trained)
        loads = scenario.compression.front_weights.initial == "load"
        wire = WeightWire.of_frozen(ClientPart.of(scenario, self.parts), scenario.compression)
        if wire.shapes and not loads:
            found.add("control", ("down", wire.rehearse(self.key)), clients)
        if fitting := scenario.compression.reducer.alignment():
            down, up = WeightWire.of_alignment(front, back.decoder, scenario.compression)
            found.add("control", ("down", down.rehearse(self.key)), clients)
            if fitting.epochs:
                found.add("control", ("up", up.rehearse(self.key)), self.shares.cohort(scenario))
        return found.totals

    def evaluations(self) -> float:
        """Return how many clients evaluate the model after an average round."""
        settings, federation = self.scenario.evaluation, self.scenario.federation
        asked = min(settings.most_asked(federation.clients), len(self.shares.held_out))
        due = sum(settings.due(number, last=number == federation.rounds) for number in range(1, federation.rounds + 1))
        return due / federation.rounds * asked

    @property
    def _wire(self) -> WeightWire:
        return WeightWire.of(ClientPart.of(self.scenario, self.parts), self.scenario.compression)

    def _random_batch(self, size: int, *purpose: str) -> RandomBatch:
        key = self.key.at("estimate", *purpose, size)
        samples = max(self.shares.trained) * (self.scenario.data.variants or 1)
        return RandomBatch(size, self.cut.geometry, key, self.cut.device, self.parts.back, samples)

    def _add_batches(self, found: _Sum, phase: Phase, share: float) -> None:
        encoder, decoder = self.parts.front.encoder, self.parts.back.decoder
        sent = self.shares.batches(self.scenario, phase.upload_every)
        every, answers = phase.upload_every, self.scenario.answer_every(phase, self.terms)
        answered = self.shares.batches(self.scenario, every * answers) if every and answers else Counter[int]()
        first, learns = self._first_visits() if self.cut.kept else 1.0, answered_share(self.parts.front)
        given = {size: learns * number for size, number in answered.items()}
        quiet_ones = {size: number - given.get(size, 0) for size, number in sent.items()}
        for quiet, sizes in ((True, quiet_ones), (False, given)):
            for size, number in sorted(sizes.items()):
                often, ends = number * self.shares.drawn(self.scenario) * share, (self.cut.copies(), self.cut.copies())
                rehearse = partial(
                    self.cut.rehearse, key=self.key, encoder=encoder, decoder=decoder, frozen=quiet, ends=ends,
                    evaluates=phase.frozen,
                )  # fmt: skip
                for crossed in rehearse(self._random_batch(size)):
                    found.add("data", crossed, often * first)
                if first < 1:
                    for crossed in rehearse(self._random_batch(size, "again")):
                        found.add("data", crossed, often * (1 - first))
        for part in (encoder, decoder):
            part.zero_grad(set_to_none=True)
        for crossed in ending.rehearse():
            found.add("data", crossed, self.shares.cohort(self.scenario) * share)

    def _first_visits(self) -> float:
        """Return the share of all mini-batches whose samples come for the first time, in the variants that they show,
        or have no room among the copies."""
        assert self.cut.kept is not None
        variants, trained = self.scenario.data.variants or 1, 0.0
        for phase, rounds in spans(self.scenario.phases, self.scenario.federation.rounds):
            if not self.scenario.remembers(phase.first):
                sent = self.shares.batches(self.scenario, phase.upload_every)
                trained += rounds * sum(size * number for size, number in sent.items())
        passes = trained * self.shares.drawn(self.scenario) / sum(self.shares.trained)
        if not passes:
            return 1.0
        shown = min(passes, variants * (1 - (1 - 1 / variants) ** passes))
        room = min(1.0, self.cut.kept.most * len(self.shares.trained) / (shown * sum(self.shares.trained)))
        return max(0.0, 1 - room * (1 - min(1.0, shown / passes)))

    def _add_stored(self, found: _Sum) -> None:
        """Add what goes into memory: each image once, in each of its variants."""
        encoder, decoder, rounds = self.parts.front.encoder, self.parts.back.decoder, self.scenario.federation.rounds
        cut = Cut.of(self.scenario, self.cut.geometry, self.cut.device, once=True)
        for size, number in sorted(self.shares.stored(self.scenario).items()):
            for crossed in cut.rehearse(self._random_batch(size), self.key, encoder, decoder, True, evaluates=True):
                found.add("data", crossed, number / rounds)
        for crossed in ending.rehearse():
            found.add("data", crossed, len(self.shares.trained) / rounds)

    def _add_weights(self, found: _Sum, phase: Phase, share: float) -> None:
        part, plain = ClientPart.of(self.scenario, self.parts), self._wire
        if part.turns > 1:
            self._add_turns(found, part)
            return
        if local := phase.local:
            part = part.with_auxiliary(Auxiliary(self.parts.back, local.blocks, phase.first))
        wire, cohort = WeightWire.of(part, self.scenario.compression), self.shares.cohort(self.scenario)
        rounds, in_turn = self.scenario.federation.rounds, self.scenario.federation.mode == "sl"
        loads = self.scenario.compression.front_weights.initial == "load"
        # Who was drawn in the round before too is sent a difference, but for a front that is handed on.
        again = cohort * self.shares.drawn(self.scenario) if wire.delta and not in_turn else 0.0
        if phase.frozen:  # once to each who is drawn at all, to those first who were there in the round before
            sent, differences = self._settling(phase, share), again if phase.first > 1 else 0.0
            loaded = sent if loads and phase.first == 1 else 0.0
        else:
            found.add("control", ("up", wire.rehearse(self.key, wire.delta)), cohort * share)
            sent, differences = cohort * share * rounds, again * share * rounds
            loaded = (1 if in_turn else cohort) if loads and phase.first == 1 else 0.0
        whole = max(0.0, sent - differences - loaded)
        if loads and wire.delta:  # the others are sent what the front differs by from what they have loaded
            whole, differences = 0.0, sent - loaded
        found.add("control", ("down", wire.rehearse(self.key)), whole / rounds)
        if not differences:
            return
        # Whatever is known of the front, a new auxiliary net comes whole, in the first of the phase's rounds.
        anew = min(again, differences) if local else 0.0
        if anew:
            found.add("control", ("down", wire.rehearse(self.key, True, plain.shapes)), anew / rounds)
        found.add("control", ("down", wire.rehearse(self.key, difference=True)), (differences - anew) / rounds)

    def _add_turns(self, found: _Sum, part: ClientPart) -> None:
        """Add the parts of an adapter that take turns: all to who is there for the first time, later what it lacks."""
        turns, rounds = Turns(self.scenario, part), self.scenario.federation.rounds
        clients, drawn = len(self.shares.trained), self.shares.drawn(self.scenario)
        up = WeightWire.of(part, self.scenario.compression, 1)
        found.add("control", ("up", up.rehearse(self.key)), self.shares.cohort(self.scenario))
        often = Counter[frozenset[int]]()
        for round in range(1, rounds + 1):
            often[turns.lacking(None, round)] += drawn * (1 - drawn) ** (round - 1)  # type: ignore[assignment]
            for since in range(1, round):
                often[turns.lacking(since, round)] += drawn**2 * (1 - drawn) ** (round - since - 1)  # type: ignore[assignment]
        for parts, times in often.items():
            found.add("control", ("down", turns.wire(parts).rehearse(self.key)), clients * times / rounds)

    def _settling(self, phase: Phase, share: float) -> float:
        """Return how many clients are drawn at least once in a phase."""
        clients, rounds = len(self.shares.trained), share * self.scenario.federation.rounds
        if self.scenario.remembers(phase.first):
            return clients
        return clients * (1 - (1 - self.shares.drawn(self.scenario)) ** rounds)

    def _add_evaluations(self, found: _Sum) -> None:
        clients, cut, encoder = self.evaluations(), self.cut, self.parts.front.encoder
        rounds = self.scenario.federation.rounds
        if not clients:
            return
        learning = [number for phase, number in spans(self.scenario.phases, rounds) if not phase.frozen]
        found.add("control", ("down", self._wire.rehearse(self.key)), clients * sum(learning) / rounds)
        if not self.scenario.federation.splits:
            return
        evaluation, share = EvaluationCut(cut, encoder), clients / len(self.shares.held_out)
        for size, number in sorted(self.shares.evaluated(cut.geometry.batch).items()):
            for crossed in evaluation.rehearse(self._random_batch(size, "evaluation"), self.key, encoder):
                found.add("data", crossed, number * share)
        for crossed in ending.rehearse():
            found.add("data", crossed, clients)
