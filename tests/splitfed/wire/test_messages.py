"""Whatever a peer sends in a message is read as a valid record, or is a WireError."""

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from splitfed.errors import WireError
from splitfed.wire.messages import (
    MOST_IMAGE_BYTES,
    MOST_IMAGES,
    MOST_LOSS,
    AlignMetrics,
    AlignOrder,
    EvaluateMetrics,
    Identity,
    Order,
    Question,
    Refusal,
    TrainMetrics,
    Weights,
    declared,
)
from splitfed.wire.records import MOST_TEXT, shown

# Each with the record that it reads, and an honest one.
READERS: dict[str, tuple[Callable[[RecordDict], Any], str, Any]] = {
    "weights": (Weights.read, "wire", Weights(b"frame", b"once")),
    "question": (Question.read, "config", Question(("cat", "dog"), "grpc:9093")),
    "identity": (lambda content: Identity.read(content, 3), "config", Identity(2, 300, 30, images_bytes=330 * 64)),
    "unable": (lambda content: Identity.read(content, 3), "config", Identity(2, problem="no images")),
    "refusal": (Refusal.read, "config", Refusal("a second one")),
    "order": (Order.read, "config", Order(7, "grpc:9093", "token", 0.5, 3, 6)),
    "align order": (AlignOrder.read, "config", AlignOrder(7, True)),
    "train": (TrainMetrics.read, "metrics", TrainMetrics(300, 1.5, 19)),
    "evaluate": (EvaluateMetrics.read, "metrics", EvaluateMetrics(30, 1.5, 0.5)),
    "align": (AlignMetrics.read, "metrics", AlignMetrics(300)),
}

INTS = st.one_of(st.integers(-(2**63), 2**64 - 1), st.sampled_from([-1, 0, 1, 2**31, 2**31 + 1, 2**62, 10**9]))
FLOATS = st.one_of(st.floats(), st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -0.0]))
NUMBERS = st.one_of(INTS, FLOATS, st.lists(INTS, max_size=4), st.lists(FLOATS, max_size=4))
VALUES = st.one_of(
    NUMBERS, st.booleans(), st.text(), st.binary(), st.lists(st.booleans(), max_size=4), st.lists(st.text(), max_size=4)
)
KEYS = st.one_of(
    st.sampled_from(sorted({key for _, _, honest in READERS.values() for key in honest.write()})), st.text(max_size=40)
)
RECORDS = st.one_of(
    st.dictionaries(KEYS, VALUES, max_size=6).map(ConfigRecord),
    st.dictionaries(KEYS, NUMBERS, max_size=6).map(MetricRecord),
    st.just(ArrayRecord({"x": Array(np.zeros(3))})),
)
CONTENTS = st.dictionaries(
    st.one_of(st.sampled_from(["arrays", "config", "metrics", "wire"]), st.text(max_size=9)), RECORDS, max_size=4
).map(RecordDict)


def possible(found: Any) -> bool:
    """Whether a record is one that an honest peer could have made."""
    for name in ("examples", "held_out"):
        value = getattr(found, name, 0)
        if value is not None and not (type(value) is int and 0 <= value <= MOST_IMAGES):
            return False
    weight = getattr(found, "images_bytes", None)
    if weight is not None and not 0 <= weight <= MOST_IMAGE_BYTES * (found.examples + (found.held_out or 0)):
        return False
    for name, most in (("loss", MOST_LOSS), ("accuracy", 1), ("proximal", math.inf)):
        value = getattr(found, name, 0.0)
        if not (type(value) is float and 0 <= value <= most and value < math.inf):
            return False
    for name, least in (("round", 1), ("steps", 0), ("client", 0), ("vanishes_after", 0), ("trained", 1)):
        value = getattr(found, name, None)
        if value is not None and not (type(value) is int and least <= value <= 2**31):
            return False
    return getattr(found, "problem", "").isprintable() and len(getattr(found, "problem", "")) <= MOST_TEXT


def outcome(reader: Callable[[Any], Any], content: Any) -> tuple[Any, str]:
    """Return what a reader makes of something, or why it refuses it."""
    try:
        return reader(content), ""
    except WireError as error:
        return None, str(error)


def read(kind: str, content: RecordDict) -> Any:
    """Return what is read, or None for a WireError, whose text must be fit to be shown."""
    found, why = outcome(READERS[kind][0], content)
    assert why.isprintable()
    assert len(why) < 700
    assert found is None or possible(found), found
    return found


@pytest.mark.parametrize("kind", READERS)
def test_what_one_side_writes_the_other_reads(kind):
    _, record, honest = READERS[kind]
    assert read(kind, RecordDict({record: honest.write()})) == honest


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(READERS)), CONTENTS)
def test_any_content_is_a_record_or_a_wire_error(kind, content):
    read(kind, content)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(READERS)), st.data())
def test_an_honest_record_with_one_thing_changed(kind, data):
    """Another value, a key less or a key more: what is then read, if anything, is what was written."""
    _, record, honest = READERS[kind]
    made = honest.write()
    key = data.draw(st.one_of(st.sampled_from(sorted(made)), KEYS))
    values = dict(made)
    if key in values and data.draw(st.booleans()):
        del values[key]
    else:
        values[key] = data.draw(NUMBERS if isinstance(made, MetricRecord) else VALUES)
    found = read(kind, RecordDict({record: type(made)(values)}))
    if found is None or kind in ("order", "unable", "refusal", "question"):  # what else is in these is not read
        return
    known = {k: v for k, v in values.items() if k not in ("protocol", "version", "problem")}
    again = {k: v for k, v in found.write().items() if k in known}
    # No bytes are what a key that need not be there has without it; others are written with none.
    assert {k: v for k, v in again.items() if v != b""} == {k: v for k, v in known.items() if v != b""}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("change", ["text", "list", "keys", "bytes", "key"])
def test_what_is_refused_takes_no_memory(kind, change):
    _, record, honest = READERS[kind]
    made, size = honest.write(), 1_000_000
    key = sorted(made)[-1]
    values: dict[str, Any] = dict(made)
    if isinstance(made, MetricRecord):
        values |= {"keys": {str(n): n for n in range(1000)}, "key": {"x" * size: 1}}.get(change, {key: [1] * size})
    else:
        more = {
            "text": {key: "\x1b" * size}, "list": {key: ["\x1b"] * size}, "bytes": {key: b"\x00" * size},
            "keys": {str(n): n for n in range(1000)}, "key": {"\x1b" * size: 1},
        }  # fmt: skip
        values |= more[change]
    content = RecordDict({record: type(made)(values)})
    read(kind, content)  # the first time it is learnt how
    tracemalloc.start()
    try:
        read(kind, content)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("identity")
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["query", "query.refused", "query.goodbye", "train", "train.align", "evaluate"]), CONTENTS)
def test_a_reply_holds_what_is_declared_for_its_type_alone(kind, content):
    reply = Message(content, reply_to=Message(RecordDict(), 7, kind))
    allowed = {
        "query": [{"config"}], "train": [{"metrics"}, {"wire", "metrics"}], "evaluate": [{"metrics"}],
        "train.align": [{"metrics"}, {"wire", "metrics"}],
    }.get(kind, [set()])  # fmt: skip
    found, why = outcome(declared, reply)
    assert (found is not None) == (set(content) in allowed)
    assert why.isprintable()


@given(st.text(), st.integers(4, 600))
def test_text_of_a_peer_is_one_printable_line(text, most):
    line = shown(text, most)
    assert line.isprintable()
    assert len(line) <= most


def test_text_that_can_be_shown_stays_as_it_is():
    assert shown("bad/3/zz.png: ist kein Bild für 日本") == "bad/3/zz.png: ist kein Bild für 日本"
    assert shown("round 7\nclient 0 is lost\x1b[2J\x9b\u202e") == "round 7 client 0 is lost\\x1b[2J\\x9b\\u202e"
    assert shown("x" * 10**6).endswith("...")


def test_a_server_of_another_version_is_told_apart():
    with pytest.raises(WireError, match=r"the server 9 \(splitfed 3.0\): install the same version"):
        Question.read(RecordDict({"config": ConfigRecord({"protocol": 9, "version": "3.0", "more": [1]})}))
    found = Identity.read(RecordDict({"config": ConfigRecord({"partition-id": 1, "problem": "v9", "new": 1})}), 3)
    assert found == Identity(1, problem="v9")


def test_an_image_weighs_no_more_than_any_can_that_is_decoded():
    """Pillow refuses more than twice `MAX_IMAGE_PIXELS`, and no mode of it has more than 8 bytes a pixel."""
    assert MOST_IMAGE_BYTES > 2 * Image.MAX_IMAGE_PIXELS * 8
    for weight, taken in ((8 * MOST_IMAGE_BYTES, True), (8 * MOST_IMAGE_BYTES + 1, False)):
        content = RecordDict({"config": Identity(1, 6, 2, images_bytes=weight).write()})
        found, why = outcome(lambda content: Identity.read(content, 3), content)
        assert (found is not None) == taken
        assert taken or "client 1 says that its 8 images weigh 12000000001 bytes, where none can" in why
