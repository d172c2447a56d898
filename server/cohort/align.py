"""Before a client first trains with a reducer that is fitted and then frozen, it fits it to its own images (AE-PSL).

In the first round that has any, the clients fit encoder and decoder, and the mean of their decoders, by examples, is
the run's from then on. Who first comes later fits an encoder alone, to that decoder. Encoders stay with the clients.
"""

from logging import getLogger
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from torch import Tensor

from splitfed.compression.reducers.trained.layers import DECODER
from splitfed.scenario import Scenario
from splitfed.scenario.engine import Deployment
from splitfed.server.cohort.dispatch import Dispatch, after
from splitfed.server.cohort.refusals import Refusals
from splitfed.server.cohort.replies import checked_alignment
from splitfed.server.cohort.train import Cohort, Replies
from splitfed.server.model import Model
from splitfed.wire.messages import ALIGN, ARRAYS, CONFIG, AlignOrder

log = getLogger("splitfed")


class AlignCall:
    """Knows which clients are aligned, which is the run's state, and aligns the others before they train; none have to
    be where the scenario's reducer needs none."""

    def __init__(self, scenario: Scenario, dispatch: Dispatch, model: Model, refusals: Refusals) -> None:
        self.fitting = scenario.compression.reducer.alignment()
        self._seconds = scenario.federation.deadline if isinstance(scenario.engine, Deployment) else None
        self.dispatch, self.model, self.refusals = dispatch, model, refusals
        self.aligned = set[int]()

    def state_dict(self) -> dict[str, Any]:
        """Return which clients are aligned."""
        return {"aligned": sorted(self.aligned)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned in an earlier attempt."""
        self.aligned = set(state["aligned"])

    def run(self, round: int, cohort: Cohort) -> Replies:
        """Align those of a cohort who are not yet; return the replies of those who could not be, None for a client that
        was lost: they cannot train in this round."""
        missing = [client for client in sorted(cohort.examples) if client not in self.aligned]
        if self.fitting is None or not missing:
            return {}
        both = not self.aligned and self.fitting.epochs > 0
        content = RecordDict({ARRAYS: self._weights(), CONFIG: AlignOrder(round, both).write()})
        replies: Replies = {}
        messages = {client: Message(content, cohort.nodes[client], ALIGN) for client in missing}
        self.dispatch.exchange(
            messages, set, lambda client, reply: replies.update({client: reply}), after(self._seconds)
        )
        failed: Replies = {}
        total: dict[str, Tensor] = {}
        count = 0
        for client in missing:  # in order, so that the sum is the same whoever answers first
            reply, weight = replies[client], cohort.weights[client]
            if reply is not None:
                reply = checked_alignment(reply, round, client, cohort.examples[client], both, self.refusals)
            if reply is None or reply.has_error():
                problem = reply.error.reason if reply else "it is lost"
                log.warning("round %d: client %d was not aligned: %s", round, client, problem)
                failed[client] = reply
                continue
            self.aligned.add(client)
            if both:
                count += weight
                for name, array in reply.content.array_records[ARRAYS].items():
                    share = torch.from_numpy(array.numpy()).double() * weight
                    total[name] = total[name] + share if name in total else share
        if count:
            means = {name.removeprefix(DECODER): (tensor / count).float() for name, tensor in total.items()}
            self.model.back.decoder.load_state_dict(means)
        return failed

    def ready(self, client: int) -> bool:
        """Tell whether a client has what it needs to run the front."""
        return self.fitting is None or client in self.aligned

    def _weights(self) -> ArrayRecord:
        front, decoder = self.model.front.state_dict(), self.model.back.decoder.state_dict()
        weights = front | {DECODER + name: tensor for name, tensor in decoder.items()}
        return ArrayRecord({name: Array(tensor.cpu().numpy()) for name, tensor in weights.items()})
