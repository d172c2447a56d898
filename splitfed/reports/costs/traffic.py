"""Bytes by role: each frame as `splitfed.split` enumerates it, as often as it crosses."""

from dataclasses import dataclass

from splitfed.model.parts import Parts
from splitfed.reports.costs.shares import Shares
from splitfed.run.ledger import Plane, Row, Sizes, Totals
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.split import ending
from splitfed.split.client_part import ClientPart
from splitfed.split.cut import Cut
from splitfed.split.evaluation import EvaluationCut
from splitfed.split.rehearsal import Crossed, RandomBatch
from splitfed.split.weights import WeightWire


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
    """What clients with these shares of the images and the server send each other, with the model in `parts`."""

    scenario: Scenario
    shares: Shares
    parts: Parts
    cut: Cut
    key: Key

    def round(self) -> Totals:
        """Return the bytes of an average round: mini-batches, weights and evaluations."""
        found = _Sum()
        if self.scenario.federation.splits:
            self._add_batches(found)
        self._add_weights(found)
        self._add_evaluations(found)
        return found.totals

    def once(self) -> Totals:
        """Return the bytes that cross once in a run: what is never trained, and a reducer's layers where clients fit
        them to their images."""
        found, scenario, (front, back, _) = _Sum(), self.scenario, self.parts
        clients = len(self.shares.trained)
        if frozen := front.frozen():
            wire = WeightWire(frozen, scenario.compression)
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
        return RandomBatch(size, self.cut.geometry, self.key.at("estimate", *purpose, size), self.cut.device)

    def _add_batches(self, found: _Sum) -> None:
        encoder, decoder = self.parts.front.encoder, self.parts.back.decoder
        for size, number in sorted(self.shares.batches(self.scenario).items()):
            often, ends = number * self.shares.drawn(self.scenario), (self.cut.copies(), self.cut.copies())
            first = self._first_visits() if self.cut.kept else 1.0
            for crossed in self.cut.rehearse(self._random_batch(size), self.key, encoder, decoder, ends):
                found.add("data", crossed, often * first)
            if first < 1:
                for crossed in self.cut.rehearse(self._random_batch(size, "again"), self.key, encoder, decoder, ends):
                    found.add("data", crossed, often * (1 - first))
        for part in (encoder, decoder):
            part.zero_grad(set_to_none=True)
        for crossed in ending.rehearse():
            found.add("data", crossed, self.shares.cohort(self.scenario))

    def _first_visits(self) -> float:
        """Return the share of all mini-batches whose samples come for the first time, in the variants that they show,
        or have no room among the copies."""
        assert self.cut.kept is not None
        variants, rounds = self.scenario.data.variants or 1, self.scenario.federation.rounds
        trained = sum(size * number for size, number in self.shares.batches(self.scenario).items())
        passes = trained * self.shares.drawn(self.scenario) * rounds / sum(self.shares.trained)
        shown = variants * (1 - (1 - 1 / variants) ** passes)
        room = min(1.0, self.cut.kept.most * len(self.shares.trained) / (shown * sum(self.shares.trained)))
        return max(0.0, 1 - room * (1 - min(1.0, shown / passes)))

    def _add_weights(self, found: _Sum) -> None:
        wire, cohort = self._wire, self.shares.cohort(self.scenario)
        found.add("control", ("up", wire.rehearse(self.key, wire.delta)), cohort)
        # Who was drawn in the round before too is sent a difference.
        again = cohort * self.shares.drawn(self.scenario) if wire.delta else 0.0
        found.add("control", ("down", wire.rehearse(self.key)), cohort - again)
        if again:
            found.add("control", ("down", wire.rehearse(self.key, difference=True)), again)

    def _add_evaluations(self, found: _Sum) -> None:
        clients, cut, encoder = self.evaluations(), self.cut, self.parts.front.encoder
        if not clients:
            return
        found.add("control", ("down", self._wire.rehearse(self.key)), clients)
        if not self.scenario.federation.splits:
            return
        evaluation, share = EvaluationCut(cut, encoder), clients / len(self.shares.held_out)
        for size, number in sorted(self.shares.evaluated(cut.geometry.batch).items()):
            for crossed in evaluation.rehearse(self._random_batch(size, "evaluation"), self.key, encoder):
                found.add("data", crossed, number * share)
        for crossed in ending.rehearse():
            found.add("data", crossed, clients)
