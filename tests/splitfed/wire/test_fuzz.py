"""All that a peer can send, both ways, for minutes: messages of every kind, and frames of every kind with any codec."""

import logging
import math
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from helpers import ADC, small, table
from hypothesis import strategies as st
from xxhash import xxh3_64

from splitfed import simulate
from splitfed.compression.expect import Expected
from splitfed.engines.inline import InlineGrid
from splitfed.errors import Refused, SplitfedError, WireError
from splitfed.scenario import Scenario
from splitfed.server.back.session import ClientSession
from splitfed.split import cut, ending, evaluation
from splitfed.split.autoencoder import Public, align
from splitfed.split.weights import wire as weights
from splitfed.wire.frame import unpack

pytestmark = pytest.mark.slow

LIAR = 1
SHORT = [
    "federation.local_epochs=null", "federation.local_steps=2", "data.limit=60", "data.test_limit=10",
    "training.batch_size=8", "evaluation.held_out=0.25", "model.args.depth=3",
]  # fmt: skip
FEDLITE = "{kind: fedlite, subvectors: 4, centroids: 2}"
PLANS = {
    "differences": [*ADC, "federation.mode=sfl-v1", "compression.front_weights.delta=true",
                    "training.client_state=keep"],
    "private": ["federation.mode=sl", "federation.labels=private"],
    "whole": ["federation.mode=fl", "training.server={}", "compression.front_weights.codec=float16"],
    "aligned": ["federation.mode=sfl-v2", "model.adapter=norms"],
    "together": ["federation.mode=psl", "compression.reducer={kind: random_topk, ratio: 0.2}",
                 "compression.targets.codec=float32"],
    "local": ["federation.mode=sfl-v1", "phases=[{kind: local, upload_every: 1}]"],
    "memory": ["federation.mode=sfl-v2", "phases=[{kind: gradient, rounds: 1}, frozen]", "memory={disk: 1GB}",
               "federation.rounds=3"],
    "transformed": ["federation.mode=sfl-v1", "compression.smashed.codec={kind: klt, snr: 12}",
                    "compression.cut_gradient.codec={kind: klt, snr: 9}",
                    "compression.front_weights.codec={kind: klt, snr: 30}"],
    "quantised": ["federation.mode=sfl-v2", "compression.smashed.codec={kind: uniform, bits: 3, rounding: stochastic}"],
}  # fmt: skip

EDGES = [-1, 0, 1, 2, 8, 2**31, 2**31 + 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
INTS = st.one_of(st.sampled_from(EDGES), st.integers(-(2**63), 2**64 - 1))
FLOATS = st.one_of(st.floats(), st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -0.0, 1e30, 1e6]))
NUMBERS = st.one_of(INTS, FLOATS, st.lists(INTS, max_size=3), st.lists(FLOATS, max_size=3))
VALUES = st.one_of(NUMBERS, st.booleans(), st.text(), st.binary(), st.lists(st.text(), max_size=3))
NAMES = st.one_of(st.sampled_from(["arrays", "config", "metrics", "wire"]), st.text(max_size=9))
RECORDS = st.one_of(
    st.dictionaries(st.text(max_size=9), VALUES, max_size=3).map(ConfigRecord),
    st.dictionaries(st.text(max_size=9), NUMBERS, max_size=3).map(MetricRecord),
    st.sampled_from([math.nan, 1e30, 0.0]).map(lambda x: ArrayRecord({"x": Array(np.full(3, x))})),
)
# A type that no app knows is refused by Flower's own code, before ours.
KINDS = ["query", "query.refused", "query.goodbye", "query.done", "train", "train.align", "evaluate"]
# Anything that a header can hold.
LEAVES = st.one_of(
    st.none(), st.booleans(), INTS, FLOATS, st.text(max_size=9), st.binary(max_size=9),
    st.sampled_from(["raw", "zstd", "int", "uniform4", "klt", "float16", "float32", "int64", "smashed", "end", "step"]),
)  # fmt: skip
ANYTHING = st.recursive(
    LEAVES, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=3), x, max_size=3), max_leaves=6
)
Draw = Callable[[Any], Any]


@pytest.fixture(scope="module")
def plans(tmp_path_factory) -> dict[str, Scenario]:
    """The scenarios; one of them has layers that clients fit before they train."""
    path = tmp_path_factory.mktemp("ae") / "ae.safetensors"
    wide = "kind: ae, width: 6"
    made = {name: small("federation.rounds=2", *SHORT, *more) for name, more in PLANS.items()}
    align(made["aligned"].with_([f"compression.reducer={{{wide}}}"]), Public("digits", limit=50), path, steps=2)
    fitted = [f"compression.reducer={{{wide}, weights: {path}, warm_up_epochs: 1}}"]
    return made | {"aligned": made["aligned"].with_(fitted)}


def told(error: SplitfedError) -> None:
    """Check that a peer's part in an error does no harm where it is shown."""
    assert str(error).isprintable()
    assert len(str(error)) < 900


# --------------------------------------------------------------------------------------------------------------- frames


def taken_apart(buffer: bytes) -> tuple[list, bytes]:
    """Return the header of a frame, as what msgpack reads, and its body."""
    size = struct.unpack_from("<I", buffer, 1)[0]
    return msgpack.unpackb(buffer[9 : 9 + size]), buffer[9 + size :]


def put_together(header: Any, body: bytes) -> bytes:
    """Return a frame with its right checksum, whatever it says."""
    head = msgpack.packb(header)
    prefix = struct.pack("<BI", 2, len(head))
    checksum = xxh3_64(prefix + head + body).intdigest() & 0xFFFFFFFF
    return prefix + struct.pack("<I", checksum) + head + body


def other_bytes(draw: Draw, data: bytes) -> bytes:
    """Return bytes cut, longer, or with some of them changed."""
    if not data or draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=40))
    at = draw(st.integers(0, len(data) - 1))
    new = draw(st.binary(max_size=9))
    return draw(st.sampled_from([data[:at], data + new, data[:at] + new + data[at + len(new) :], data[:at] + data]))


def other_frame(draw: Draw, buffer: bytes) -> bytes:
    """Return a frame that says something else, most often with a checksum that fits."""
    try:
        header, body = taken_apart(buffer)
        how = draw(st.integers(0, 4))
        if how == 0:
            return other_bytes(draw, buffer)
        if how > 1:
            for _ in range(draw(st.integers(1, 2))):
                spot = header
                while True:
                    keys = sorted(spot) if isinstance(spot, dict) else range(len(spot))
                    key = draw(st.sampled_from(list(keys)))
                    if not (isinstance(spot[key], list | dict) and spot[key] and draw(st.booleans())):
                        break
                    spot = spot[key]
                spot[key] = draw(ANYTHING)
        return put_together(header, other_bytes(draw, body) if how < 3 else body)
    except (struct.error, ValueError, OverflowError, TypeError):  # no frame any more, or no header that can be written
        return other_bytes(draw, buffer)


class Honest(NamedTuple):
    """A frame that was read in a run, and what was expected then."""

    buffer: bytes
    kinds: dict[str, Expected]
    max_bytes: int


@pytest.fixture(scope="module")
def honest(plans, tmp_path_factory) -> dict[str, list[Honest]]:
    """Frames of every kind that crossed in a run of each plan: one for each plan, kind and set of tensors."""
    found: dict[tuple, Honest] = {}

    def note(name: str, buffer: bytes, kinds, *, max_bytes: int, device="cpu"):
        frame = unpack(buffer, kinds, max_bytes=max_bytes, device=device)
        found[name, frame.kind, *frame.tensors] = Honest(bytes(buffer), kinds, max_bytes)
        return frame

    with pytest.MonkeyPatch.context() as patch:
        for name in PLANS:
            for module in (cut, ending, evaluation, weights):
                patch.setattr(module, "unpack", partial(note, name))
            simulate(plans[name], runs=tmp_path_factory.mktemp("honest"))
    by_kind: dict[str, list[Honest]] = {}
    for (_, kind, *_), one in found.items():
        by_kind.setdefault(kind, []).append(one)
    return by_kind


def test_any_frame_is_what_was_expected_or_is_a_wire_error(honest, fuzz):
    assert set(honest) == {
        "step", "end", "gradient", "done", "look", "seen", "features", "backward", "weights", "taken", "stored",
    }, "every kind crosses"  # fmt: skip

    def check(data) -> None:
        one = data.draw(st.sampled_from(honest[data.draw(st.sampled_from(sorted(honest)))]))
        try:
            frame = unpack(other_frame(data.draw, one.buffer), one.kinds, max_bytes=one.max_bytes)
        except WireError as error:
            told(error)
            return
        for name, choices in one.kinds[frame.kind].items():
            tensor = frame.tensors[name]
            assert any(choice.allows(str(tensor.dtype)[6:], tuple(tensor.shape)) for choice in choices)
            assert bool(torch.isfinite(tensor).all())

    fuzz(check, st.data(), seconds=20, seeds=100)


# ------------------------------------------------------------------------------------------------------------- messages


def other_message(draw: Draw, message: Message) -> Message:
    """Return a message or a reply with some of it changed, if Flower can carry it; else as it was."""
    if message.has_error() or draw(st.integers(0, 9)) == 0:
        error = Error(draw(st.integers(0, 2100)), draw(st.text(max_size=700)))
        return through_bytes(Message(error, metadata=message.metadata), message)  # type: ignore[call-overload]
    content = RecordDict(dict(message.content.items()))
    for _ in range(draw(st.integers(1, 2))):
        how, name = draw(st.integers(0, 4)), draw(st.sampled_from([*content, "config"]))
        record = content.get(name)
        if how == 0 or not record or isinstance(record, ArrayRecord):
            content[draw(NAMES)] = draw(RECORDS)
        elif how == 1:
            del content[name]
        else:
            values = dict(record)
            key = draw(st.one_of(st.sampled_from(sorted(values)), st.text(max_size=9)))
            was = values.get(key)
            if how == 2:
                values.pop(key, None)
            elif isinstance(was, bytes) and draw(st.booleans()):
                values[key] = other_frame(draw, was)
            else:
                values[key] = draw(NUMBERS if isinstance(record, MetricRecord) else VALUES)
            content[name] = type(record)(values)
    made = Message(content, metadata=message.metadata)  # type: ignore[call-overload]
    if draw(st.integers(0, 9)) == 0:
        made.metadata.__dict__["_message_type"] = draw(st.sampled_from(KINDS))  # it has no setter
    return through_bytes(made, message)


def through_bytes(made: Message, otherwise: Message) -> Message:
    try:
        proto = message_to_proto(made)
        return message_from_proto(type(proto).FromString(proto.SerializeToString()))
    except (ValueError, TypeError, OverflowError):
        return otherwise


class Lies:
    """Client 1, or the server towards it, says something else, once or twice in a run."""

    def __init__(self, draw: Draw, way: str) -> None:
        self.draw, self.way, self.kinds = draw, way, []
        self.due = {draw(st.integers(0, 6)) for _ in range(draw(st.integers(1, 2)))}
        self.seen = -1

    def now(self, way: str, kind: str) -> bool:
        self.seen += way == self.way
        if way != self.way or self.seen not in self.due:
            return False
        self.kinds.append(kind)
        return True

    def install(self, patch: pytest.MonkeyPatch) -> None:
        deliver, handle = InlineGrid.deliver, ClientSession.handle

        def delivered(grid, message: Message) -> Message:
            kind = message.metadata.message_type
            if message.metadata.dst_node_id != LIAR + 2:
                return deliver(grid, message)
            if self.now("message", kind):
                message = other_message(self.draw, message)
            reply = deliver(grid, message)
            return other_message(self.draw, reply) if self.now("reply", kind) else reply

        def handled(session, buffer: bytes) -> bytes:
            if session.client != LIAR:
                return handle(session, buffer)
            if self.now("frame up", "frame"):
                try:
                    return handle(session, other_frame(self.draw, buffer))
                except WireError as error:  # elsewhere its stream is cut off; in this process it would end the run
                    told(error)
                    raise Refused("its stream", str(error)) from None
            reply = handle(session, buffer)
            return other_frame(self.draw, reply) if self.now("frame down", "frame") else reply

        patch.setattr(InlineGrid, "deliver", delivered)
        patch.setattr(ClientSession, "handle", handled)


@pytest.mark.parametrize(
    "way", ["reply", "frame up", *(pytest.param(way, marks=pytest.mark.long) for way in ("message", "frame down"))]
)
def test_a_run_in_which_one_peer_says_anything(way, plans, fuzz, tmp_path_factory):
    """A client's lies end nobody else's run, but where a simulation asks who is there; a server's lies, to a client in
    the same process, are told in a line."""
    logging.getLogger("splitfed").setLevel(logging.CRITICAL)
    names = sorted(name for name in PLANS if name != "together")  # whose clients are threads, in no fixed order

    def check(data) -> None:
        scenario = plans[data.draw(st.sampled_from(names))]
        lies, runs = Lies(data.draw, way), tmp_path_factory.mktemp("runs")
        with pytest.MonkeyPatch.context() as patch:
            lies.install(patch)
            try:
                folder = simulate(scenario, runs=runs).folder
            except SplitfedError as error:
                told(error)
                if way in ("message", "frame down") or "query" in lies.kinds:
                    return
                raise
        if way in ("reply", "frame up"):
            rows = [row for row in table(Path(folder) / "metrics.csv") if row.get("phase") != "memory"]
            assert len(rows) == 2
            assert all(int(row["clients"]) >= 2 for row in rows)

    fuzz(check, st.data(), seconds=15)
