"""What the server's messages say, checked: a client takes nothing for granted that comes from elsewhere."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from flwr.app import RecordDict

from splitfed.errors import WireError
from splitfed.version import __version__
from splitfed.wire.channel import Invitation
from splitfed.wire.grpc_settings import PROTOCOL
from splitfed.wire.messages import CONFIG, ONCE, VANISHES_AFTER, WEIGHTS, WIRE

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """What comes with the query who a node is: the scenario's class names, and where the split port is, if it is to be
    tried (else empty). An empty message asks without telling."""

    classes: tuple[str, ...] = ()
    channel: str = ""

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
        return cls(_classes(config), _value(config, "channel", str))


@dataclass(frozen=True, slots=True)
class Order:
    """What comes with the order to train: the round, the front's weights as a frame, those that are never trained as
    another (`once`; empty where this client has them), who waits for mini-batches, and the weight of FedProx's proximal
    term, 0 for none. In a simulation the client may have to vanish after so many mini-batches. What else a strategy
    sends is not read."""

    round: int
    weights: bytes
    once: bytes
    invitation: Invitation
    proximal: float = 0.0
    vanishes_after: int | None = None

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the order. Raises WireError for what is none."""
        config, wire = _record(content, CONFIG), _record(content, WIRE)
        round = _round(config)
        once = _value(wire, ONCE, bytes) if ONCE in wire else b""
        invitation = Invitation(_value(config, "channel", str), _value(config, "token", str))
        proximal = _value(config, "proximal-mu", float) if "proximal-mu" in config else 0.0
        if not 0 <= proximal < math.inf:
            raise WireError(f"the server's message has {proximal} as 'proximal-mu': it cannot weigh a distance")
        vanishes_after = _value(config, VANISHES_AFTER, int) if VANISHES_AFTER in config else None
        if vanishes_after is not None and vanishes_after < 0:
            raise WireError(f"the server's message has {vanishes_after} as '{VANISHES_AFTER}': it counts mini-batches")
        return cls(round, _value(wire, WEIGHTS, bytes), once, invitation, proximal, vanishes_after)


@dataclass(frozen=True, slots=True)
class Alignment:
    """What comes with the order to fit a reducer's layers: the round, the weights of front, encoder and decoder as a
    frame, and whether the decoder is fitted too and wanted back."""

    round: int
    weights: bytes
    both: bool

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Read the order. Raises WireError for what is none."""
        config, wire = _record(content, CONFIG), _record(content, WIRE)
        return cls(_round(config), _value(wire, "weights", bytes), _value(config, "both", bool))


def refusal(content: RecordDict) -> str:
    """Return why the server does not take this client, as one short line that a terminal can bear."""
    text = str(_record(content, CONFIG).get("problem", "it does not say why"))
    return "".join(letter if letter.isprintable() else " " for letter in text[:500])


def _record(content: RecordDict, name: str) -> Mapping[str, Any]:
    record: Mapping[str, Any] | None = content.config_records.get(name)
    return record or {}


def _round(config: Mapping[str, Any]) -> int:
    round = _value(config, "server-round", int)
    if round < 1:
        raise WireError(f"the server's message is for round {round}; they are counted from 1")
    return round


def _value(record: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = record.get(key)
    if type(value) is not kind:
        found = "no" if value is None else f"{type(value).__name__}, not {kind.__name__}, as"
        raise WireError(f"the server's message has {found} '{key}': is its version of splitfed another?")
    return value


def _classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    classes = _value(config, "classes", list)
    if not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes):
        raise WireError("the server's message has 'classes' that are not a list of different names")
    return tuple(classes)
