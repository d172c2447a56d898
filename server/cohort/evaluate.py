"""Federated evaluation: after a round, clients are asked how its model does on the images that they hold out.

Flower's strategies could do this by `configure_evaluate` and `aggregate_evaluate`; they are not called. Who is asked is
the platform's choice, as in training, and the mean is by examples, whatever the strategy.
"""

from logging import getLogger

import torch
from flwr.app import ArrayRecord, Message, MessageType, RecordDict

from splitfed.errors import Refused
from splitfed.run.client_scores import Score
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment, Remote
from splitfed.seeds import Key
from splitfed.server.back.server import SplitServer
from splitfed.server.back.whole_model import Unsplit
from splitfed.server.cohort.align import AlignCall
from splitfed.server.cohort.attendance import Attendance
from splitfed.server.cohort.dispatch import Dispatch, after
from splitfed.server.cohort.refusals import Refusals
from splitfed.server.cohort.replies import checked_score
from splitfed.server.cohort.roster import Roster
from splitfed.server.cohort.train import invite, present
from splitfed.server.control.terms import ClientTerms
from splitfed.server.weights.exchange import WeightExchange
from splitfed.split.evaluation import mean
from splitfed.wire.channel import Listener
from splitfed.wire.messages import ARRAYS, CONFIG, LACKING, Order

log = getLogger("splitfed")


class EvaluateCall:
    """Asks clients to evaluate: one by one where they are in this process, otherwise all at once."""

    def __init__(
        self, scenario: Scenario, dispatch: Dispatch, split: SplitServer | Unsplit, listener: Listener,
        exchange: WeightExchange, roster: Roster, attendance: Attendance, alignment: AlignCall, refusals: Refusals,
        terms: ClientTerms,
    ) -> None:  # fmt: skip
        self.settings, self.clients, self.key = scenario.evaluation, scenario.federation.clients, Key(scenario.seed)
        self.dispatch, self.split, self.listener, self.exchange = dispatch, split, listener, exchange
        self.roster, self.attendance, self.alignment, self.refusals = roster, attendance, alignment, refusals
        self.terms = terms
        self._grace = scenario.engine.grace if isinstance(scenario.engine, Remote) else 0.0
        self._seconds = scenario.federation.deadline if isinstance(scenario.engine, Deployment) else None
        self.refused: dict[int, Refused] = {}  # clients whose numbers were refused in the last evaluation

    def run(self, round: int, weights: ArrayRecord) -> list[Score]:
        """Return what clients find with these weights and the back as it is, in order of client. Who is lost or
        refused, or whose answer cannot be true, is left out, with a warning."""
        there = self.attendance.present(round, self.roster.online())
        nodes = dict(self.roster.nodes)  # some may leave before they are messaged
        images = {client: self.roster.held_out[client] for client in self._drawn(round, there)}
        content = RecordDict({ARRAYS: weights, CONFIG: Order(round, "", "").write()})
        messages = {client: Message(content, nodes[client], MessageType.EVALUATE) for client in images}
        for client, message in messages.items():
            invite(message, self.listener, round, client)
        scores: dict[int, Score] = {}
        with self.split.evaluation(round, images, self.terms.evaluates(images)) as evaluation:

            def settle(client: int, reply: Message | None) -> None:
                seen = evaluation.settle(client)
                if reply is not None and reply.has_error() and reply.error.code == LACKING:
                    self.exchange.forget(client)
                if refused := evaluation.refused.get(client):
                    why = refused.problem if isinstance(refused, Refused) else refused
                    log.warning("round %d: client %d is refused to evaluate: %s", round, client, why)
                    self.refusals.count(client, round)
                    return
                if (reply := present(reply)) is None:
                    log.warning("round %d: client %d is lost to its evaluation", round, client)
                    return
                found = mean(seen, images[client]) if seen else None
                score = checked_score(reply, round, client, images[client], found, self.refusals, seen is not None)
                if score is not None:
                    scores[client] = score

            lost, over = lambda: evaluation.lost(self._grace), after(self._seconds)
            self.dispatch.exchange(messages, lost, settle, over, begun=evaluation.begun)
        self.refused = {c: why for c, why in sorted(evaluation.refused.items()) if isinstance(why, Refused)}
        self.exchange.close(list(scores))
        return [scores[client] for client in sorted(scores)]

    def _drawn(self, round: int, there: set[int]) -> list[int]:
        """Return who is asked, ascending, of those who are there, hold images out and have what the front needs."""
        order = torch.randperm(self.clients, generator=self.key.at("evaluation", round).generator()).tolist()
        able = [client for client in order if client in there and self.roster.held_out[client]]
        return sorted([client for client in able if self.alignment.ready(client)][: self.settings.cohort])
