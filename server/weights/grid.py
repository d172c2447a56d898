"""A Flower grid around any other: weights are encoded on their way out, decoded on their way in, and counted.

Strategies stay Flower's own: they hand over and receive plain arrays. Replies arrive sorted by client and in float64,
so that sums over clients neither depend on who answered first nor lose bits.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.common.serde import message_to_proto, recorddict_to_proto
from flwr.serverapp import Grid

from splitfed.errors import Diverged, NotFinite, WireError
from splitfed.run.ledger import Direction, Ledger, Row, Sizes
from splitfed.seeds import Key
from splitfed.server.weights.exchange import WeightExchange
from splitfed.wire.messages import ABSURD, ARRAYS, METRICS, UNTAKEN, WIRE, Weights, declared
from splitfed.wire.records import shown

# Of each client: what is late of those before them counts as nobody's.
_MOST_NODES = 4


class WireGrid(Grid):
    """Wraps a grid; `exchanges` carry the weights in messages of each type."""

    def __init__(self, grid: Grid, exchanges: Mapping[str, WeightExchange], ledger: Ledger, key: Key) -> None:
        self.grid, self.exchanges, self.ledger, self.key = grid, MappingProxyType(dict(exchanges)), ledger, key
        self._clients: dict[int, int] = {}
        self._round = 0

    def begin(self, round: int) -> None:
        """Count what crosses from now on to this round; 0 is what comes before the first."""
        self._round = round

    def introduce(self, node: int, client: int) -> None:
        """Learn which client a node is, of its last few; what crosses before that counts as nobody's (-1)."""
        self._clients.pop(node, None)
        self._clients[node] = client
        for old in [one for one, of in self._clients.items() if of == client][:-_MOST_NODES]:
            del self._clients[old]

    def set_run(self, run) -> None:
        """Pass on."""
        self.grid.set_run(run)

    @property
    def run(self):
        """Pass on."""
        return self.grid.run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None) -> Message:
        """Pass on."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Pass on."""
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Encode, count and push."""
        return self.grid.push_messages(self._outgoing(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull, count and decode."""
        return self._incoming(self.grid.pull_messages(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Encode and count what goes, decode and count what comes back; replies are sorted by client."""
        return self._incoming(self.grid.send_and_receive(self._outgoing(messages), timeout=timeout))

    def _client(self, node: int) -> int:
        return self._clients.get(node, -1)

    def _outgoing(self, messages: Iterable[Message]) -> list[Message]:
        out = []
        for message in messages:
            record, sizes = self._encode(message)
            sent = Message(
                record, message.metadata.dst_node_id, message.metadata.message_type, ttl=message.metadata.ttl,
                group_id=message.metadata.group_id,
            )  # fmt: skip
            self._count(sent, message.metadata.dst_node_id, "down", sizes)
            out.append(sent)
        return out

    def _encode(self, message: Message) -> tuple[RecordDict, dict[str, Sizes]]:
        content, client = message.content, self._client(message.metadata.dst_node_id)
        if ARRAYS not in content:
            return content, {}
        exchange, key = self.exchanges[message.metadata.message_type], self.key.at("down", self._round)
        weights, sizes = exchange.down(content.array_records[ARRAYS], client, self._round, key)
        record = RecordDict({name: value for name, value in content.items() if name != ARRAYS})
        record[WIRE] = weights.write()
        return record, sizes

    def _incoming(self, replies: Iterable[Message]) -> list[Message]:
        decoded = []
        for reply in sorted(replies, key=lambda reply: self._client(reply.metadata.src_node_id)):
            node, sizes = reply.metadata.src_node_id, dict[str, Sizes]()
            if reply.has_error():
                taken = _readable(reply)
            else:
                try:
                    content, sizes = self._decode(reply)
                    taken = Message(content, metadata=reply.metadata)  # type: ignore[call-overload]
                except (WireError, Diverged) as error:
                    absurd = isinstance(error, Diverged | NotFinite)
                    problem = error.problem if isinstance(error, Diverged) else str(error)
                    taken = refusal(reply, problem, ABSURD if absurd else UNTAKEN)
            self._count(reply, node, "up", sizes)
            decoded.append(taken)
        return decoded

    def _decode(self, reply: Message) -> tuple[RecordDict, dict[str, Sizes]]:
        """Return what a reply holds, its frame decoded. Raises WireError for whatever no such reply holds."""
        content = declared(reply)
        if WIRE not in content:
            return content, {}
        exchange, sent = self.exchanges.get(reply.metadata.message_type), Weights.read(content)
        if exchange is None or sent.once or sent.loaded:
            raise WireError("it has weights that nobody asked for")
        weights, sizes = exchange.up(sent.weights, self._client(reply.metadata.src_node_id))
        kept: dict[str, Any] = {name: value for name, value in content.items() if name != WIRE}
        kept[ARRAYS] = ArrayRecord({n: Array(t.numpy().astype(np.float64)) for n, t in weights.items()})
        return RecordDict(kept), sizes

    def _count(self, message: Message, node: int, direction: Direction, weights: dict[str, Sizes]) -> None:
        total = message_to_proto(message).ByteSize()
        metrics = 0
        if message.has_content() and METRICS in message.content:
            metrics = recorddict_to_proto(RecordDict({METRICS: message.content[METRICS]})).ByteSize()
        roles = {
            **weights,
            "metrics": Sizes(metrics, metrics, metrics, metrics),
            "envelope": Sizes(sent=total - metrics - sum(sizes.sent for sizes in weights.values())),
        }
        row = (self._round, 0, self._client(node), direction, "control")
        self.ledger.add([Row(*row, role, sizes) for role, sizes in roles.items() if sizes.sent])  # type: ignore[arg-type]


class CohortGrid:
    """What a strategy sees when it samples: the nodes already chosen for the round, so that it takes them all.

    Flower's own sampling draws from the global random state over node ids that are new in every run."""

    def __init__(self, nodes: list[int]) -> None:
        self._nodes = nodes

    def get_node_ids(self) -> list[int]:
        """Return the cohort."""
        return self._nodes


def _readable(reply: Message) -> Message:
    """Return a client's error with its reason as one line that can be shown."""
    error = Error(reply.error.code, shown(reply.error.reason or "it does not say why"))
    return Message(error, metadata=reply.metadata)  # type: ignore[call-overload]


def refusal(reply: Message, problem: str, code: int = UNTAKEN) -> Message:
    """Return an error in place of a reply that came, but that is not taken."""
    return Message(Error(code, f"reply refused: {problem}"), metadata=reply.metadata)  # type: ignore[call-overload]
