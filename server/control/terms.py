"""Under which terms each client's tensors cross: its profile, and the operating point that was chosen for its round."""

from collections.abc import Iterable, Mapping

from splitfed.federation.phases import Phase
from splitfed.scenario import Scenario
from splitfed.scenario.compression import Compression
from splitfed.scenario.engine import Deployment
from splitfed.scenario.sections import COMMON, Terms
from splitfed.server.back.round_context import Own
from splitfed.split.assembly import Cuts
from splitfed.split.cut import Cut


class ClientTerms:
    """Knows the terms of a run's clients. In a simulation profiles are dealt; in a deployment `said` has what each
    client said when it came. `points` are those of the open round, by client; `cuts` is None where there is no cut."""

    def __init__(self, scenario: Scenario, cuts: Cuts | None, said: Mapping[int, str]) -> None:
        self._scenario, self._cuts = scenario, cuts
        deployed = isinstance(scenario.engine, Deployment)
        self._profiles = said if deployed else dict(enumerate(scenario.dealt_profiles()))
        self.points: dict[int, str] = {}
        self._packed: dict[Terms, Compression] = {
            terms: scenario.compression_under(terms) for terms in scenario.all_terms()
        }

    def of(self, client: int) -> Terms:
        """Return a client's terms."""
        return Terms(self._profiles.get(client, ""), self.points.get(client, ""))

    def front(self, client: int) -> int:
        """Return how many blocks a client's front has."""
        return self._scenario.cut_of(self.of(client).profile)

    def packs(self, client: int) -> tuple[Terms, Compression] | None:
        """Return what packs a client's weights, and under which terms; None where they are packed as those of all."""
        return self._packs(self.of(client))

    def packs_to_evaluate(self, client: int) -> tuple[Terms, Compression] | None:
        """Return the same for weights to be evaluated: an operating point is of rounds that train."""
        return self._packs(self._always(client))

    def _always(self, client: int) -> Terms:
        return self.of(client)._replace(point="")

    def _packs(self, terms: Terms) -> tuple[Terms, Compression] | None:
        own, common = self._packed[terms], self._scenario.compression
        same = (own.front_weights, own.parts) == (common.front_weights, common.parts)
        return None if same else (terms, own)

    def own(self, clients: Iterable[int], phase: Phase) -> dict[int, Own]:
        """Return what is another for these clients in a round of this phase than for all; nothing for the others."""
        found = {}
        for client in clients if self._cuts else ():
            terms = self.of(client)
            if terms != COMMON:
                cut = self._cuts.under(terms)  # type: ignore[union-attr]
                found[client] = Own(cut, self._scenario.answer_every(phase, terms))
        return found

    def evaluates(self, clients: Iterable[int]) -> dict[int, Cut]:
        """Return the cut that an evaluation crosses, of these clients whose profile has one of its own."""
        if self._cuts is None:
            return {}
        found = {client: self._cuts.under(self._always(client)) for client in clients}
        return {client: cut for client, cut in found.items() if cut is not self._cuts.plain}
