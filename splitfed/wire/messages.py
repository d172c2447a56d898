"""What Flower's messages hold: a dataclass for each record, written by one side and read, checked, by the other.

    query          Question ->             <- Identity        who a node is, and whether it can take part
    query.refused  Refusal ->                                 that the server does not take this client, for now
    query.goodbye                                             that the run is over
    query.done                                                that the run goes on without the client
    train          Order, Weights ->       <- Weights, TrainMetrics (in a frozen phase without Weights)
    train.align    AlignOrder, Weights ->  <- Weights, AlignMetrics
    evaluate       Order, Weights ->       <- EvaluateMetrics

A side takes nothing for granted that comes from elsewhere. Each field says its type and bounds, and under which key it
crosses; every `read` raises WireError for what is no such record, and `holds_only` for a message that holds others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from pydantic import ConfigDict, Field

from splitfed.errors import WireError
from splitfed.version import __version__
from splitfed.wire.channel import Invitation
from splitfed.wire.grpc_settings import PROTOCOL
from splitfed.wire.records import Blob, Flag, Real, Record, Text, Whole, names, shown

# The records of a message. Strategies make `arrays`; they cross as frames, in `wire`.
ARRAYS, CONFIG, METRICS, WIRE = "arrays", "config", "metrics", "wire"

# Types of messages beside Flower's own three.
ALIGN, REFUSED, GOODBYE, DONE = "train.align", "query.refused", "query.goodbye", "query.done"

# Which records the replies to messages of each type hold as they cross, where they are no errors.
_REPLIES: dict[str, tuple[set[str], ...]] = {
    MessageType.QUERY: ({CONFIG},), REFUSED: (set(),), GOODBYE: (set(),), DONE: (set(),),
    MessageType.TRAIN: ({METRICS}, {WIRE, METRICS}),
    ALIGN: ({METRICS}, {WIRE, METRICS}), MessageType.EVALUATE: ({METRICS},),
}  # fmt: skip

# Error codes of ours; Flower's own end at a hundred.
UNTAKEN = 2000  # a reply whose content the server refuses
ABSURD = 2005  # one that it refuses for numbers that no training makes
DIVERGED = 2006  # a client that cannot go on, as its own numbers are such
VANISHED = 2001  # a client that vanishes as it was told to
LACKING = 2002  # a client that has not, or not any more, what the server's message builds on
LOST = 2003  # a client that has not any more what it kept of itself, and that nobody can send it
UNREACHED = 2004  # a client that cannot reach the split server, or not any more

# Names that strategies read or write too.
ROUND, PROXIMAL, EXAMPLES, TRAIN_LOSS = "server-round", "proximal-mu", "num-examples", "train-loss"

_PARTITION, _PROBLEM, _CHANNEL, _TOKEN = "partition-id", "problem", "channel", "token"
_IMAGES_BYTES, _PROFILE = "images-bytes", "profile"

# What can be: of one client's images, of a mean cross-entropy in nats, of anything else that is counted.
MOST_IMAGES, MOST_LOSS, _MOST = 10_000_000, 1e6, 2**31
# Bytes of an image as it is stored. Pillow opens none of more than 179 million pixels, which are of 8 bytes at most.
MOST_IMAGE_BYTES = 1_500_000_000
_MOST_NAMES, _MOST_NAME = 1_000_000, 1000

R = TypeVar("R", bound=Record)

_Number = Annotated[Whole, Field(le=_MOST)]
_Images = Annotated[Whole, Field(le=MOST_IMAGES)]
_Round = Annotated[_Number, Field(ge=1, alias=ROUND)]
_Examples = Annotated[_Images, Field(alias=EXAMPLES)]
_Client = Annotated[_Number, Field(alias=_PARTITION)]
_Name = Annotated[Text, Field(max_length=_MOST_NAME)]


@dataclass(frozen=True, slots=True)
class Weights(Record):
    """Weights as frames: those of the round, empty where the client has them, and those that are never trained (`once`;
    empty where there are none, or the client has them). `loaded` is the SHA-256 of the weights that the client has from
    its own files where these are meant, or built on; else empty."""

    weights: Blob
    once: Blob = b""
    loaded: Annotated[Text, Field(max_length=64)] = ""

    def write(self) -> ConfigRecord:
        """Return the record `wire`."""
        return ConfigRecord(self.items())

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the record. Raises WireError."""
        return cls.of(_record(content, WIRE))


@dataclass(frozen=True, slots=True)
class Question(Record):
    """What comes with the query who a node is: the scenario's class names, and where the split port is, if it is to be
    tried (else empty). An empty message asks without telling."""

    classes: Annotated[tuple[_Name, ...], Field(max_length=_MOST_NAMES)] = ()
    channel: _Name = ""
    token: _Name = ""
    protocol: _Number = PROTOCOL
    version: _Name = __version__

    def write(self) -> ConfigRecord:
        """Return the record `config`."""
        own: dict[str, Any] = {"protocol": PROTOCOL, "version": __version__}
        return ConfigRecord(own | {"classes": list(self.classes), _CHANNEL: self.channel, _TOKEN: self.token})

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the query. Raises WireError for another protocol than ours, and for what is no such query."""
        if not content:
            return cls()
        config = _record(content, CONFIG)
        # First, and before anything that another version may not have.
        protocol, version = config.get("protocol"), config.get("version")
        if type(protocol) is int and protocol != PROTOCOL:
            raise WireError(
                f"this client speaks protocol {PROTOCOL} (splitfed {__version__}), the server {protocol} "
                f"(splitfed {shown(version, 40)}): install the same version"
            )
        if not {"protocol", "version", "classes", _CHANNEL, _TOKEN} <= set(config):
            raise WireError(f"the server's query holds {names(config)}: is its version of splitfed another?")
        question = _servers(cls, config)
        if len(set(question.classes)) != len(question.classes):
            raise WireError("the server's query has 'classes' that are not a list of different names")
        return question


@dataclass(frozen=True, slots=True)
class _Present(Record):
    client: _Client
    examples: _Examples
    protocol: _Number
    version: _Name
    held_out: Annotated[_Images | None, Field(alias="held-out")] = None
    images_bytes: Annotated[Whole | None, Field(alias=_IMAGES_BYTES)] = None
    profile: _Name | None = None


@dataclass(frozen=True, slots=True)
class _Unable(Record):
    # One of another version, which has other keys, answers that it is.
    __pydantic_config__ = ConfigDict(extra="ignore")

    client: _Client
    problem: Text


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's answer: which client it is, how many images it trains on, how many it holds out and what all of them
    weigh as they are stored, in bytes, and which of the scenario's profiles it is of; or the `problem` for which it
    cannot take part."""

    client: int
    examples: int = 0
    held_out: int | None = None
    problem: str = ""
    images_bytes: int | None = None
    profile: str | None = None

    def write(self) -> ConfigRecord:
        """Return the record `config`."""
        answer: dict[str, Any] = {_PARTITION: self.client, "protocol": PROTOCOL, "version": __version__}
        if self.problem:
            return ConfigRecord(answer | {_PROBLEM: self.problem})
        answer[EXAMPLES] = self.examples
        more = {"held-out": self.held_out, _IMAGES_BYTES: self.images_bytes, _PROFILE: self.profile}
        return ConfigRecord(answer | {key: value for key, value in more.items() if value is not None})

    @classmethod
    def read(cls, content: RecordDict, clients: int) -> Self:
        """Read the answer of one of so many `clients`. Raises WireError."""
        config = _record(content, CONFIG)
        client = config.get(_PARTITION)
        if type(client) is not int or not 0 <= client < clients:
            told = shown(client, 20)
            raise WireError(f"a node says that it is client {told}, where there are clients 0 to {clients - 1}")
        try:
            if _PROBLEM in config:
                return cls(client, problem=shown(_Unable.of(config).problem) or "it does not say why")
            found = _Present.of(config)
        except WireError as problem:
            raise WireError(f"client {client} does not say what it holds: {problem}") from None
        images = found.examples + (found.held_out or 0)
        if (found.images_bytes or 0) > images * MOST_IMAGE_BYTES:
            raise WireError(
                f"client {client} says that its {images} images weigh {found.images_bytes} bytes, where none can weigh "
                f"more than {MOST_IMAGE_BYTES}"
            )
        return cls(client, found.examples, found.held_out, images_bytes=found.images_bytes, profile=found.profile)


@dataclass(frozen=True, slots=True)
class Refusal(Record):
    """Why the server does not take a client."""

    problem: Text

    def write(self) -> ConfigRecord:
        """Return the record `config`."""
        return ConfigRecord({_PROBLEM: self.problem})

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the reason, as one short line that a terminal can bear. Raises WireError."""
        return cls(shown(cls.of(_record(content, CONFIG)).problem))


@dataclass(frozen=True, slots=True)
class Order(Record):
    """The order to train or to evaluate: the round, who waits for mini-batches, and the weight of FedProx's proximal
    term, 0 for none. In a simulation the client may have to vanish after so many mini-batches. `trained` is the last
    round in which it was taken, if it keeps something of that. Where the server keeps what it is sent, so many
    mini-batches are `stored` already. `point` is the operating point at which all crosses, if there are any. What else
    a strategy sends is not read."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    round: _Round
    channel: _Name
    token: _Name
    proximal: Annotated[Real, Field(ge=0, alias=PROXIMAL)] = 0.0
    vanishes_after: Annotated[_Number | None, Field(alias="vanishes-after")] = None
    trained: Annotated[_Number, Field(ge=1)] | None = None
    stored: _Number | None = None
    point: _Name | None = None

    @staticmethod
    def blank() -> ConfigRecord:
        """Return what a strategy is handed: it adds the round, and what else it tells all clients alike."""
        return ConfigRecord({_CHANNEL: "", _TOKEN: ""})

    @staticmethod
    def addressed(
        config: Mapping[str, Any], invitation: Invitation, vanishes_after: int | None = None,
        trained: int | None = None, stored: int | None = None, point: str = "",
    ) -> ConfigRecord:  # fmt: skip
        """Return the record `config` of one client: what all are told, and what is its own alone."""
        own: dict[str, Any] = {_CHANNEL: invitation.address, _TOKEN: invitation.token}
        if vanishes_after is not None:
            own["vanishes-after"] = vanishes_after
        if trained is not None:
            own["trained"] = trained
        if stored is not None:
            own["stored"] = stored
        if point:
            own["point"] = point
        return ConfigRecord({**config, **own})

    @property
    def invitation(self) -> Invitation:
        """Who waits for mini-batches."""
        return Invitation(self.channel, self.token)

    def write(self) -> ConfigRecord:
        """Return the record `config`."""
        return ConfigRecord(self.items())

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the order. Raises WireError for what is none."""
        order = _servers(cls, _record(content, CONFIG))
        if order.trained is not None and not order.trained < order.round:
            raise WireError(f"its 'trained' is {order.trained}: that is no round before {order.round}")
        return order


@dataclass(frozen=True, slots=True)
class AlignOrder(Record):
    """The order to fit a reducer's layers: the round, and whether the decoder is fitted too and wanted back."""

    round: _Round
    both: Flag

    def write(self) -> ConfigRecord:
        """Return the record `config`."""
        return ConfigRecord(self.items())

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the order. Raises WireError for what is none."""
        return _servers(cls, _record(content, CONFIG))


class _Metrics(Record):
    """What a client tells of its work."""

    __slots__ = ()

    def write(self) -> MetricRecord:
        """Return the record `metrics`."""
        return MetricRecord(self.items())

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the metrics. Raises WireError."""
        metrics = content.metric_records.get(METRICS)
        if metrics is None:
            raise WireError(f"it holds {names(content)}, and no metrics")
        return cls.of(metrics)


@dataclass(frozen=True, slots=True)
class TrainMetrics(_Metrics):
    """What a client tells of its training: on how many images, their mean loss, and the number of mini-batches; and in
    a deployment the bytes a second, both ways, that its exchanges had, without the time of the shortest. Where blocks
    have budgets, also the operations of an image, on average."""

    examples: _Examples
    loss: Annotated[Real, Field(ge=0, le=MOST_LOSS, alias=TRAIN_LOSS)]
    steps: _Number
    throughput: Annotated[Real, Field(gt=0, le=1e12)] | None = None
    operations: Annotated[Real, Field(ge=0, le=1e18)] | None = None


@dataclass(frozen=True, slots=True)
class EvaluateMetrics(_Metrics):
    """What a client found on the images that it holds out: how many, their mean loss, and the share that is right."""

    examples: _Examples
    loss: Annotated[Real, Field(ge=0, le=MOST_LOSS, alias="eval-loss")]
    accuracy: Annotated[Real, Field(ge=0, le=1, alias="eval-accuracy")]


@dataclass(frozen=True, slots=True)
class AlignMetrics(_Metrics):
    """To how many images a client has fitted the layers."""

    examples: _Examples


def holds_only(content: RecordDict, *records: str) -> None:
    """Raise WireError for a message that holds other records than these."""
    if set(content) != set(records):
        raise WireError(f"it holds {names(content)}, not {' and '.join(sorted(records)) or 'nothing'}")


def asked(message: Message) -> RecordDict:
    """Return what a message of the server's holds. Raises WireError where it is an error, which asks for nothing."""
    if not message.has_content():
        raise WireError("the server's message holds an error, and nothing that is asked")
    return message.content


def declared(reply: Message) -> RecordDict:
    """Return what a reply holds. Raises WireError where replies of its type hold other records."""
    kind = reply.metadata.message_type
    if kind not in _REPLIES or not reply.has_content():
        raise WireError(f"it is an empty reply, or one to '{shown(kind, 40)}', which nobody asked")
    if set(reply.content) not in _REPLIES[kind]:
        holds_only(reply.content, *_REPLIES[kind][-1])
    return reply.content


def _servers(kind: type[R], config: Mapping[str, Any]) -> R:
    """Read what the server tells a client, whose user sees what is wrong with it."""
    try:
        return kind.of(config)
    except WireError as problem:
        raise WireError(f"the server's message cannot be read: {problem}") from None


def _record(content: RecordDict, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] | None = content.config_records.get(name)
    if found is None:
        raise WireError(f"it holds {names(content)}, and no '{name}'")
    return found
