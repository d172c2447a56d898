"""A Flower grid around any other: weights are encoded on their way out, decoded on their way in, and counted.

How they cross is another's matter: whole (`Whole`), or as differences to what clients hold (`server/differences.py`).

Strategies stay Flower's own: they hand over and receive plain arrays. Replies arrive sorted by client and in float64,
so that sums over clients neither depend on who answered first nor lose bits.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.serde import message_to_proto, recorddict_to_proto
from flwr.serverapp import Grid
from torch import Tensor

from splitfed.errors import WireError
from splitfed.run.ledger import Direction, Ledger, Row, Sizes
from splitfed.run.tree import Flat
from splitfed.seeds import Key
from splitfed.split.weights import WeightWire
from splitfed.wire.messages import ARRAYS, METRICS, WEIGHTS, WIRE

_REFUSED = 2000  # error code of a reply whose bytes we refuse

Coded = tuple[dict[str, bytes], dict[str, Sizes]]


class Crossing(Protocol):
    """How weights cross, as frames and with what these add to the ledger."""

    def open(self, round: int, clients: list[int]) -> None:
        """Begin a round with these clients; it may have been begun before."""

    def down(self, arrays: ArrayRecord, client: int, round: int, key: Key) -> Coded:
        """Return a client's frames by their names in the message: that of these weights, and what else it needs."""

    def up(self, buffer: bytes, client: int) -> tuple[dict[str, Tensor], dict[str, Sizes]]:
        """Read a client's frame and return its weights. Raises WireError."""

    def forget(self, client: int) -> bool:
        """Hear that a client has not what it was thought to hold. Return whether that can be."""

    def close(self, clients: list[int]) -> None:
        """End a round in which these clients were trained."""

    def state(self) -> Flat | None:
        """Return what the next round needs; None where that is nothing."""


class Whole(Crossing):
    """Weights that cross as they are, whoever holds what; `up` is the way up's wire where that is another. What is
    handed out in the same round for another `purpose` is rounded anew."""

    def __init__(self, wire: WeightWire, up: WeightWire | None = None, purpose: str = "") -> None:
        self._down, self._up, self._purpose = wire, up or wire, purpose
        self._coded: tuple[ArrayRecord, int, Coded] | None = None

    def open(self, round: int, clients: list[int]) -> None:
        """Begin a round."""

    def down(self, arrays: ArrayRecord, client: int, round: int, key: Key) -> Coded:
        """Return the frame of these weights, the same for all clients."""
        # A strategy hands the same weights to all clients of a round, so the last ones are most often the next.
        if self._coded is None or self._coded[0] is not arrays or self._coded[1] != round:
            packed = self._down.pack(plain(arrays), key.at(self._purpose) if self._purpose else key, round, -1)
            self._coded = (arrays, round, ({WEIGHTS: packed.buffer}, self._down.sizes(packed)))
        return self._coded[2]

    def up(self, buffer: bytes, client: int) -> tuple[dict[str, Tensor], dict[str, Sizes]]:
        """Read a client's frame and return its weights. Raises WireError."""
        weights, frame = self._up.unpack(buffer)
        return weights, self._up.sizes(frame)

    def forget(self, client: int) -> bool:
        """Return False: nothing is asked of a client."""
        return False

    def close(self, clients: list[int]) -> None:
        """End a round."""

    def state(self) -> Flat | None:
        """Return nothing."""
        return None


def plain(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Return a record's arrays as tensors, by copy."""
    return {name: torch.tensor(array.numpy()) for name, array in arrays.items()}


class WireGrid(Grid):
    """Wraps a grid; `clients` maps node ids to partition ids and may be filled after the first queries.

    `crossing` carries the weights of all messages but those of the types in `others`.
    """

    def __init__(self, grid: Grid, crossing: Crossing, ledger: Ledger, key: Key) -> None:
        self.grid, self.crossing, self.ledger, self.key = grid, crossing, ledger, key
        self.others: dict[str, Crossing] = {}
        self.clients: dict[int, int] = {}
        self.open_round = 0

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
        return self.clients.get(node, -1)

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

    def _crossing(self, message: Message) -> Crossing:
        return self.others.get(message.metadata.message_type, self.crossing)

    def _encode(self, message: Message) -> tuple[RecordDict, dict[str, Sizes]]:
        content, client = message.content, self._client(message.metadata.dst_node_id)
        if ARRAYS not in content:
            return content, {}
        arrays, key = content.array_records[ARRAYS], self.key.at("down", self.open_round)
        frames, sizes = self._crossing(message).down(arrays, client, self.open_round, key)
        record = RecordDict({name: value for name, value in content.items() if name != ARRAYS})
        record[WIRE] = ConfigRecord(dict(frames))
        return record, sizes

    def _incoming(self, replies: Iterable[Message]) -> list[Message]:
        decoded = []
        for reply in sorted(replies, key=lambda reply: self._client(reply.metadata.src_node_id)):
            node = reply.metadata.src_node_id
            if reply.has_error() or WIRE not in reply.content:
                self._count(reply, node, "up", {})
                decoded.append(reply)
                continue
            try:
                buffer = bytes(reply.content[WIRE][WEIGHTS])  # type: ignore[arg-type]
                weights, sizes = self._crossing(reply).up(buffer, self._client(node))
            except (WireError, KeyError, TypeError) as error:
                self._count(reply, node, "up", {})
                decoded.append(refusal(reply, str(error)))
                continue
            self._count(reply, node, "up", sizes)
            content = RecordDict({name: value for name, value in reply.content.items() if name != WIRE})
            content[ARRAYS] = ArrayRecord({n: Array(t.numpy().astype(np.float64)) for n, t in weights.items()})
            reply.content = content
            decoded.append(reply)
        return decoded

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
        row = (self.open_round, 0, self._client(node), direction, "control")
        self.ledger.add([Row(*row, role, sizes) for role, sizes in roles.items() if sizes.sent])  # type: ignore[arg-type]


class CohortGrid:
    """What a strategy sees when it samples: the nodes already chosen for the round, so that it takes them all.

    Flower's own sampling draws from the global random state over node ids that are new in every run."""

    def __init__(self, nodes: list[int]) -> None:
        self._nodes = nodes

    def get_node_ids(self) -> list[int]:
        """Return the cohort."""
        return self._nodes


def refusal(reply: Message, problem: str) -> Message:
    """Return an error in place of a reply that came, but that is not taken."""
    return Message(Error(_REFUSED, f"reply refused: {problem}"), metadata=reply.metadata)  # type: ignore[call-overload]
