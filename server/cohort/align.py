"""Before a client first trains with a reducer that is fitted and then frozen, it fits it to its own images (AE-PSL).

In the first round that has any, the clients fit encoder and decoder, and the mean of their decoders, by examples, is
the run's from then on. Who first comes later fits an encoder alone, to that decoder. Encoders stay with the clients.
"""

from logging import getLogger

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from splitfed.compression.reducers.trained.layers import DECODER
from splitfed.scenario import Scenario
from splitfed.server.cohort.dispatch import Dispatch
from splitfed.server.model import Model
from splitfed.server.weights.grid import Whole, WireGrid
from splitfed.split.weights import WeightWire
from splitfed.wire.messages import ARRAYS, CONFIG, METRICS

log = getLogger("splitfed")

TYPE = "train.align"


class Alignment:
    """Knows which clients are `aligned`, and aligns the others before they train; none have to be where the scenario's
    reducer needs none."""

    def __init__(
        self, scenario: Scenario, dispatch: Dispatch, grid: WireGrid, model: Model, aligned: list[int]
    ) -> None:  # fmt: skip
        self.fitting = scenario.compression.reducer.alignment()
        self.dispatch, self.model, self.aligned = dispatch, model, set(aligned)
        if self.fitting:
            wires = WeightWire.of_alignment(model.front, model.back.decoder, scenario.compression)
            grid.others[TYPE] = Whole(*wires)

    def align(self, round: int, examples: dict[int, int], nodes: dict[int, int]) -> dict[int, Message | None]:
        """Align those who hold so many `examples` and are not yet; return the replies of those who could not be, None
        for a client that was lost: they cannot train in this round."""
        missing = [client for client in sorted(examples) if client not in self.aligned]
        if self.fitting is None or not missing:
            return {}
        both = not self.aligned and self.fitting.epochs > 0
        content = RecordDict(
            {ARRAYS: self._weights(), CONFIG: ConfigRecord({"server-round": round, "both": both})}
        )  # fmt: skip
        replies: dict[int, Message | None] = {}
        messages = {client: Message(content, nodes[client], TYPE) for client in missing}
        self.dispatch.exchange(messages, set, lambda client, reply: replies.update({client: reply}))
        failed: dict[int, Message | None] = {}
        total: dict[str, Tensor] = {}
        count = 0
        for client in missing:  # in order, so that the sum is the same whoever answers first
            reply = replies[client]
            if problem := _problem(reply, examples[client], both):
                log.warning("round %d: client %d was not aligned: %s", round, client, problem)
                failed[client] = reply if reply and reply.has_error() else None
                continue
            self.aligned.add(client)
            if both and reply:
                count += examples[client]
                for name, array in reply.content.array_records[ARRAYS].items():
                    share = torch.from_numpy(array.numpy()).double() * examples[client]
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


def _problem(reply: Message | None, examples: int, both: bool) -> str | None:
    if reply is None:
        return "it is lost"
    if reply.has_error():
        return str(reply.error.reason)
    metrics = reply.content.get(METRICS)
    if set(reply.content) != ({ARRAYS, METRICS} if both else {METRICS}) or not isinstance(metrics, MetricRecord):
        return f"its reply holds {sorted(reply.content)}"
    if metrics.get("num-examples") != examples:
        return f"it counts {metrics.get('num-examples')} examples, where {examples} were announced"
    return None
