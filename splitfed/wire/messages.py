"""What Flower's messages hold: a dataclass for each record, written by one side and read, checked, by the other.

    query          Question ->             <- Identity        who a node is, and whether it can take part
    query.refused  Refusal ->                                 that the server does not take this client, for now
    query.goodbye                                             that the run is over
    train          Order, Weights ->       <- Weights, TrainMetrics
    train.align    AlignOrder, Weights ->  <- Weights, AlignMetrics
    evaluate       Order, Weights ->       <- EvaluateMetrics

A side takes nothing for granted that comes from elsewhere: every `read` raises WireError for what is no such record.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from splitfed.compression.expect import MOST_NUMBER
from splitfed.errors import WireError
from splitfed.version import __version__
from splitfed.wire.channel import Invitation
from splitfed.wire.grpc_settings import PROTOCOL

# The records of a message. Strategies make `arrays`; they cross as frames, in `wire`.
ARRAYS, CONFIG, METRICS, WIRE = "arrays", "config", "metrics", "wire"

# Types of messages beside Flower's own three.
ALIGN, REFUSED, GOODBYE = "train.align", "query.refused", "query.goodbye"

# Error codes of ours; Flower's own end at a hundred.
UNTAKEN = 2000  # a reply whose content the server refuses
ABSURD = 2004  # one that it refuses for numbers that no training makes
VANISHED = 2001  # a client that vanishes as it was told to
LACKING = 2002  # a client that has not, or not any more, what the server's message builds on
LOST = 2003  # a client that has not any more what it kept of itself, and that nobody can send it

# Names that strategies read or write too.
ROUND, PROXIMAL, EXAMPLES, TRAIN_LOSS = "server-round", "proximal-mu", "num-examples", "train-loss"

_PARTITION, _HELD_OUT, _PROBLEM = "partition-id", "held-out", "problem"
_CHANNEL, _TOKEN, _VANISHES_AFTER, _BOTH = "channel", "token", "vanishes-after", "both"
_TRAINED = "trained"
_WEIGHTS, _ONCE = "weights", "once"
_STEPS, _EVAL_LOSS, _EVAL_ACCURACY = "steps", "eval-loss", "eval-accuracy"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights as frames: those of the round, and those that are never trained (`once`; empty where there are none, or
    the client has them)."""

    weights: bytes
    once: bytes = b""

    def write(self) -> ConfigRecord:
        """Return the record `wire`."""
        frames = {_WEIGHTS: self.weights} | ({_ONCE: self.once} if self.once else {})
        return ConfigRecord(dict(frames))

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the record. Raises WireError."""
        wire = _record(content, WIRE)
        return cls(_value(wire, _WEIGHTS, bytes), _value(wire, _ONCE, bytes) if _ONCE in wire else b"")


@dataclass(frozen=True, slots=True)
class Question:
    """What comes with the query who a node is: the scenario's class names, and where the split port is, if it is to be
    tried (else empty). An empty message asks without telling."""

    classes: tuple[str, ...] = ()
    channel: str = ""

    def write(self) -> ConfigRecord:
        """Return the record `config`."""
        own: dict[str, Any] = {"protocol": PROTOCOL, "version": __version__}
        return ConfigRecord(own | {"classes": list(self.classes), _CHANNEL: self.channel, _TOKEN: ""})

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the query. Raises WireError for another protocol than ours, and for what is no such query."""
        if CONFIG not in content:
            return cls()
        config = _record(content, CONFIG)
        # First, and before anything that another version may not have.
        protocol = _value(config, "protocol", int)
        if protocol != PROTOCOL:
            version = _value(config, "version", str)[:40]
            raise WireError(
                f"this client speaks protocol {PROTOCOL} (splitfed {__version__}), the server {protocol} "
                f"(splitfed {version}): install the same version"
            )
        return cls(_classes(config), _value(config, _CHANNEL, str))


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's answer: which client it is, how many images it trains on and how many it holds out, or the `problem` for
    which it cannot take part."""

    client: int
    examples: int = 0
    held_out: int | None = None
    problem: str = ""

    def write(self) -> ConfigRecord:
        """Return the record `config`."""
        answer: dict[str, Any] = {_PARTITION: self.client, "protocol": PROTOCOL, "version": __version__}
        if self.problem:
            return ConfigRecord(answer | {_PROBLEM: self.problem})
        answer[EXAMPLES] = self.examples
        return ConfigRecord(answer if self.held_out is None else answer | {_HELD_OUT: self.held_out})

    @classmethod
    def read(cls, content: RecordDict, clients: int) -> Self:
        """Read the answer of one of so many `clients`. Raises WireError."""
        config = content.config_records.get(CONFIG, ConfigRecord())
        client, examples, held_out = config.get(_PARTITION), config.get(EXAMPLES), config.get(_HELD_OUT, 0)
        if type(client) is not int or not 0 <= client < clients:
            raise WireError(
                f"a node says that it is client {str(client)[:20]}, where there are clients 0 to {clients - 1}"
            )
        if _PROBLEM in config:
            return cls(client, problem=str(config[_PROBLEM])[:500] or "it does not say why")
        if type(examples) is not int or examples < 0:
            raise WireError(f"client {client} says that it holds {str(examples)[:20]} images")
        if type(held_out) is not int or held_out < 0:
            told = f"{str(held_out)[:20]} images beside {examples} that it trains on"
            raise WireError(f"client {client} says that it holds out {told}")
        return cls(client, examples, held_out)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the server does not take a client."""

    problem: str

    def write(self) -> ConfigRecord:
        """Return the record `config`."""
        return ConfigRecord({_PROBLEM: self.problem})

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the reason, as one short line that a terminal can bear."""
        text = str(_record(content, CONFIG).get(_PROBLEM, "it does not say why"))
        return cls("".join(letter if letter.isprintable() else " " for letter in text[:500]))


@dataclass(frozen=True, slots=True)
class Order:
    """The order to train or to evaluate: the round, who waits for mini-batches, and the weight of FedProx's proximal
    term, 0 for none. In a simulation the client may have to vanish after so many mini-batches. `trained` is the last
    round in which it was taken, if it keeps something of that. What else a strategy sends is not read."""

    round: int
    invitation: Invitation
    proximal: float = 0.0
    vanishes_after: int | None = None
    trained: int | None = None

    @staticmethod
    def blank() -> ConfigRecord:
        """Return what a strategy is handed: it adds the round, and what else it tells all clients alike."""
        return ConfigRecord({_CHANNEL: "", _TOKEN: ""})

    @staticmethod
    def addressed(
        config: Mapping[str, Any], invitation: Invitation, vanishes_after: int | None = None,
        trained: int | None = None,
    ) -> ConfigRecord:  # fmt: skip
        """Return the record `config` of one client: what all are told, and what is its own alone."""
        own: dict[str, Any] = {_CHANNEL: invitation.address, _TOKEN: invitation.token}
        if vanishes_after is not None:
            own[_VANISHES_AFTER] = vanishes_after
        if trained is not None:
            own[_TRAINED] = trained
        return ConfigRecord({**config, **own})

    def write(self) -> ConfigRecord:
        """Return the record `config`."""
        config: dict[str, Any] = {ROUND: self.round} | ({PROXIMAL: self.proximal} if self.proximal else {})
        return self.addressed(config, self.invitation, self.vanishes_after, self.trained)

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the order. Raises WireError for what is none."""
        config = _record(content, CONFIG)
        round = _round(config)
        invitation = Invitation(_value(config, _CHANNEL, str), _value(config, _TOKEN, str))
        proximal = _value(config, PROXIMAL, float) if PROXIMAL in config else 0.0
        if not 0 <= proximal < math.inf:
            raise WireError(f"the message has {proximal} as '{PROXIMAL}': it cannot weigh a distance")
        vanishes_after = _value(config, _VANISHES_AFTER, int) if _VANISHES_AFTER in config else None
        if vanishes_after is not None and vanishes_after < 0:
            raise WireError(f"the message has {vanishes_after} as '{_VANISHES_AFTER}': it counts mini-batches")
        trained = _value(config, _TRAINED, int) if _TRAINED in config else None
        if trained is not None and not 0 < trained < round:
            raise WireError(f"the message for round {round} has {trained} as '{_TRAINED}': it is no round before it")
        return cls(round, invitation, proximal, vanishes_after, trained)


@dataclass(frozen=True, slots=True)
class AlignOrder:
    """The order to fit a reducer's layers: the round, and whether the decoder is fitted too and wanted back."""

    round: int
    both: bool

    def write(self) -> ConfigRecord:
        """Return the record `config`."""
        return ConfigRecord({ROUND: self.round, _BOTH: self.both})

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the order. Raises WireError for what is none."""
        config = _record(content, CONFIG)
        return cls(_round(config), _value(config, _BOTH, bool))


@dataclass(frozen=True, slots=True)
class TrainMetrics:
    """What a client tells of its training: on how many images, their mean loss, and the number of mini-batches."""

    examples: int
    loss: float
    steps: int

    def write(self) -> MetricRecord:
        """Return the record `metrics`."""
        return MetricRecord({EXAMPLES: self.examples, TRAIN_LOSS: self.loss, _STEPS: self.steps})

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the metrics. Raises WireError."""
        metrics = _metrics(content, {EXAMPLES, TRAIN_LOSS, _STEPS})
        loss = metrics[TRAIN_LOSS]
        if not isinstance(loss, float) or not abs(loss) <= MOST_NUMBER:
            raise WireError(f"its loss is {loss}")
        return cls(metrics[EXAMPLES], loss, metrics[_STEPS])


@dataclass(frozen=True, slots=True)
class EvaluateMetrics:
    """What a client found on the images that it holds out: how many, their mean loss, and the share that is right."""

    examples: int
    loss: float
    accuracy: float

    def write(self) -> MetricRecord:
        """Return the record `metrics`."""
        return MetricRecord({EXAMPLES: self.examples, _EVAL_LOSS: self.loss, _EVAL_ACCURACY: self.accuracy})

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the metrics. Raises WireError."""
        metrics = _metrics(content, {EXAMPLES, _EVAL_LOSS, _EVAL_ACCURACY})
        loss, accuracy = metrics[_EVAL_LOSS], metrics[_EVAL_ACCURACY]
        if not (isinstance(loss, float) and 0 <= loss <= MOST_NUMBER):
            raise WireError(f"its loss is {loss}")
        return cls(metrics[EXAMPLES], loss, accuracy)


@dataclass(frozen=True, slots=True)
class AlignMetrics:
    """To how many images a client has fitted the layers."""

    examples: int

    def write(self) -> MetricRecord:
        """Return the record `metrics`."""
        return MetricRecord({EXAMPLES: self.examples})

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the metrics. Raises WireError."""
        return cls(_metrics(content, {EXAMPLES})[EXAMPLES])


def holds_only(content: RecordDict, *records: str) -> None:
    """Raise WireError for a reply that holds other records than these."""
    if set(content) != set(records):
        raise WireError(f"it holds {sorted(content)}, not {sorted(records)}")


def _metrics(content: RecordDict, names: set[str]) -> Mapping[str, Any]:
    metrics = content.metric_records.get(METRICS)
    if metrics is None:
        raise WireError(f"it holds {sorted(content)}, and no metrics")
    if set(metrics) != names:
        raise WireError(f"its metrics are {sorted(metrics)}")
    return metrics


def _record(content: RecordDict, name: str) -> Mapping[str, Any]:
    record: Mapping[str, Any] | None = content.config_records.get(name)
    return record or {}


def _round(config: Mapping[str, Any]) -> int:
    round = _value(config, ROUND, int)
    if round < 1:
        raise WireError(f"the message is for round {round}; they are counted from 1")
    return round


def _value(record: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = record.get(key)
    if type(value) is not kind:
        found = "no" if value is None else f"{type(value).__name__}, not {kind.__name__}, as"
        raise WireError(f"the message has {found} '{key}': is the sender's version of splitfed another?")
    return value


def _classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    classes = _value(config, "classes", list)
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes):
        raise WireError("the message has 'classes' that are not a list of different names")
    return tuple(classes)
