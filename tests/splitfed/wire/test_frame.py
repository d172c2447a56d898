"""Frames: both ends count alike, and nothing but a WireError comes out of bytes that are not a frame we expect."""

import resource
import struct
import sys
import tracemalloc

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from splitfed.compression.codecs.base import Packet
from splitfed.compression.codecs.settings import Float32, Uniform
from splitfed.compression.expect import Expect
from splitfed.compression.lossless_settings import NoLossless, Zstd
from splitfed.errors import CodecError, WireError
from splitfed.run.ledger import Sizes
from splitfed.seeds import Key
from splitfed.wire.frame import VERSION, pack, unpack

KEY = Key(3)
UP = {
    "smashed": (Expect.floats((1, 8), (2, 5), 6),),
    "targets": (Expect.integers((1, 8)), Expect.floats((1, 8), 3)),
    "side/indices": (Expect.integers((1, 8), (0, 5)),),
}
KINDS = {"step": UP, "end": {}, "error": {}}
SMASHED, TARGETS, INDICES = torch.randn(2, 3, 6, generator=KEY.generator()), torch.tensor([2, 0]), torch.arange(4)


def example(meta=None):
    quantised, zstd, none = Uniform(bits=4).build(), Zstd().build(), NoLossless().build()
    packets = {
        "smashed": (quantised.encode(SMASHED, KEY), zstd),
        "targets": (Float32().build().encode(TARGETS, KEY), none),
        "side/indices": (quantised.encode(INDICES.view(2, 2), KEY), zstd),
    }
    return pack("step", 4, 7, 2, packets, meta if meta is not None else {"n": 5, "loss": 0.5, "who": "é", "last": True})


def read(buffer, kinds=KINDS, max_bytes=1 << 20):
    return unpack(buffer, kinds, max_bytes=max_bytes)


def forge(header, body: bytes = b"", version: int = VERSION) -> bytes:
    """A frame whose lengths and checksum are right, whatever its header says."""
    header = header if isinstance(header, bytes) else msgpack.packb(header)
    prefix = struct.pack("<BI", version, len(header))
    return prefix + struct.pack("<I", xxh3_64_intdigest(prefix + header + body) & 0xFFFFFFFF) + header + body


def take_apart(buffer: bytes):
    length = struct.unpack_from("<I", buffer, 1)[0]
    return msgpack.unpackb(buffer[9 : 9 + length]), buffer[9 + length :]


def test_a_frame_comes_back_and_both_ends_count_alike():
    packed = example()
    frame = read(packed.buffer)
    assert (frame.kind, frame.round, frame.client, frame.step) == ("step", 4, 7, 2)
    assert frame.meta == {"n": 5, "loss": 0.5, "who": "é", "last": True}
    assert torch.equal(frame.tensors["targets"], TARGETS)
    assert torch.equal(frame.tensors["side/indices"], INDICES.view(2, 2))
    assert (frame.tensors["smashed"] - SMASHED).abs().max() < 0.5
    assert (frame.sizes, frame.total, frame.envelope) == (packed.sizes, packed.total, packed.envelope)
    assert packed.total == len(packed.buffer) == packed.envelope + sum(s.sent for s in packed.sizes.values())
    assert packed.sizes["targets"] == Sizes(0, 16, 16, 16)
    assert packed.sizes["smashed"] == Sizes(0, 4 * 36, 18 + 48, 66)
    assert packed.sizes["side"] == Sizes(0, 8 * 4, 2, 2)


def test_tensors_of_one_role_add_up():
    codec, stage = Float32().build(), NoLossless().build()
    packets = {f"front_weights/{i}": (codec.encode(torch.zeros(3, i), KEY), stage) for i in range(4)}
    packed = pack("weights", 1, -1, 0, packets)
    expected = {name: (Expect.floats(3, (0, 4)),) for name in packets}
    assert packed.sizes == {"front_weights": Sizes(0, 72, 72, 72)}
    assert read(packed.buffer, {"weights": expected}).sizes == packed.sizes


def test_equal_frames_are_equal_bytes_and_any_buffer_is_read():
    assert example().buffer == example().buffer
    for buffer in (bytearray(example().buffer), memoryview(example().buffer)):
        assert read(buffer).total == len(buffer)


@pytest.mark.parametrize("shape", [(1, 2, 6), (8, 5, 6)])
def test_expected_bounds_are_inclusive(shape):
    packets = {"smashed": (Float32().build().encode(torch.zeros(shape), KEY), Zstd().build())}
    assert read(pack("step", 0, 0, 0, packets).buffer, {"step": {"smashed": UP["smashed"]}}).tensors


def test_what_no_receiver_would_take_is_not_sent():
    for meta in (
        {"loss": float("nan")}, {"loss": float("inf")}, {"n": 2**63}, {"k" * 33: 1}, {"text": "x" * 257}, {"a": [1]},
        {"a": None}, {1: 2}, {str(i): i for i in range(17)},
    ):  # fmt: skip
        with pytest.raises(CodecError):
            example(meta)
    packet = (Packet("float32", "float32", (0,), b""), NoLossless().build())
    with pytest.raises(CodecError):
        pack("weights", 0, 0, 0, {f"parts/{i:0100}": packet for i in range(700)})


def test_every_truncation_is_refused():
    buffer = example().buffer
    for length in range(len(buffer)):
        with pytest.raises(WireError):
            read(buffer[:length])
    with pytest.raises(WireError):
        read(buffer + b"\0")


def test_every_flipped_bit_is_refused():
    buffer = example().buffer
    for place in range(8 * len(buffer)):
        flipped = bytearray(buffer)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(WireError):
            read(bytes(flipped))


def test_a_frame_over_the_limit_is_refused():
    packed = example()
    assert read(packed.buffer, max_bytes=packed.total)
    with pytest.raises(WireError):
        read(packed.buffer, max_bytes=packed.total - 1)


@given(data=st.binary(max_size=200))
@settings(deadline=None, max_examples=300)
def test_random_bytes_are_refused(data):
    for buffer in (data, forge(data), bytes([VERSION]) + data, forge(msgpack.packb(["end", 0, 0, 0, {}, []]) + data)):
        if buffer != forge(["end", 0, 0, 0, {}, []]):
            with pytest.raises(WireError):
                read(buffer)


# Where in a header a lie stands, and the lies. Each must be refused though the checksum is right.
NO_NUMBERS = [-2, 2**63, True, None, 1.0, "1", [1], {}, float("nan")]
NO_TEXTS = [None, 1, b"step", ["step"], {}, "", "step\0", "x" * 100, "Step"]
LIES = {
    (0,): NO_TEXTS,
    (1,): [*NO_NUMBERS, -1],
    (2,): NO_NUMBERS,
    (3,): [*NO_NUMBERS, -1],
    (4,): [None, [], 1, {"a": float("nan")}, {"a": float("inf")}, {"a": [1]}, {"a": {"b": 1}}, {"a": None}, {1: 1},
           {"k" * 33: 1}, {"\x1b[2J": None}, {"a": "x" * 257}, {"a": 2**63}, {"a": b"x"},
           {str(i): 1 for i in range(17)}],
    (5,): [None, [], {}, 1, "abc", [[]], [None] * 3, [[1] * 7] * 3],
    (5, 0): [None, [], ["smashed"], 1],
    (5, 0, 0): [*NO_TEXTS, "targets", "smashed/x"],
    (5, 0, 1): [*NO_TEXTS, "uniform5", "uniform8", "float32", "int", "int64", "uniform4 "],
    (5, 0, 2): [*NO_TEXTS, "\x1b[2J", "float16", "float64", "int64", "torch.float32", "bool"],
    (5, 0, 3): [None, 36, "2,3,6", [], [2, 3], [2, 3, 6, 1], [2, 3, 7], [9, 3, 6], [2, 1, 6], [2, 6, 6], [0, 3, 6],
                [-2, 3, -6], [2.0, 3, 6], [True, 3, 6], [2**62, 3, 6], [2**63, 3, 6], [[2], 3, 6], [1] * 999],
    (5, 0, 4): [*NO_TEXTS, "zstd", "gzip", "none"],
    (5, 0, 5): [*NO_NUMBERS, -1, 0, 65, 67, 2**62],
    (5, 0, 6): [*NO_NUMBERS, -1, 0, 65, 67, 2**62],
    (5, 1, 3): [[3], [2, 1], [1, 2], [0], []],
    (5, 1, 5): [15, 17, 0],
    (5, 2, 5): [1, 3, 33, 0],
}  # fmt: skip


@pytest.mark.parametrize("place", LIES, ids=str)
def test_lying_headers_are_refused(place):
    for lie in LIES[place]:
        header, body = take_apart(example().buffer)
        spot = header
        for index in place[:-1]:
            spot = spot[index]
        spot[place[-1]] = lie
        try:
            buffer = forge(header, body)
        except OverflowError:  # beyond what msgpack can write
            continue
        with pytest.raises(WireError) as told:
            read(buffer)
        assert str(told.value).isprintable()


def test_headers_of_the_wrong_make_are_refused():
    header, body = take_apart(example().buffer)
    assert read(forge(header, body)).total
    a_key_twice = msgpack.packb(header[:4])[1:] + b"\x82\xa1a\x01\xa1a\x02" + msgpack.packb(header[5])
    wrong = [
        forge(header, body, version=VERSION - 1), forge(header, body, version=VERSION + 1), forge(header[:5], body),
        forge([*header, 1], body), forge(dict(enumerate(header)), body), forge(header, body[:-1]),
        forge(header, body + b"\0"), forge(b"\x96" + a_key_twice, body), forge(b"", body),
        forge(["end", 1, 1, 1, {}, header[5]], body), forge(["end", 1, 1, 1, {}, []], b"\0"),
        forge([*header[:5], header[5][:2]], body), forge([*header[:5], header[5] + header[5][2:]], body),
        forge([*header[:5], [header[5][0], header[5][1], header[5][1]]], body),
        struct.pack("<BII", VERSION, 2**32 - 1, 0) + body, struct.pack("<BII", VERSION, 0, 0),
    ]  # fmt: skip
    for buffer in wrong:
        with pytest.raises(WireError):
            read(buffer)
    for what in (bytes(70_000), b"\x96" + b"\xa5step" + bytes(66_000)):
        with pytest.raises(WireError):
            read(forge(what))


BOMBS = {
    "lists": b"\x91" * 60_000 + b"\xc0",
    "maps": b"\x81\xa1a" * 20_000 + b"\xc0",
    "long lists": b"\xdd\x00\x00\xff\xff" * 12_000,
    "longest lists": b"\xdd\xff\xff\xff\xff" * 12_000,
    "longest maps": b"\xdf\xff\xff\xff\xff\xa1a" * 9_000,
    "a long text": b"\x96\xdb\xff\xff\xff\xff" + b"a" * 100,
    "long bytes": b"\x96\xc6\xff\xff\xff\xff" + b"a" * 100,
    "an extension": b"\x96\xc9\xff\xff\xff\xff\x05" + b"a" * 100,
    "a time": b"\x96\xd6\xff\x00\x00\x00\x00" + b"\xc0" * 5,
    "bad text": b"\x96\xa4\xff\xfe\xfd\xfc" + b"\xc0" * 5,
    "an empty list": b"\x96" + b"\x90" * 6,
    "a key that is a list": b"\x96\xa3end\x00\x00\x00\x81\x91\x01\x01\x90",
    "many small things": b"\xdc\xff\xff" + b"\x90" * 65_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_header_bombs_are_refused_in_little_memory(name):
    buffer = forge(BOMBS[name])
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            read(buffer)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_a_bomb_in_a_tensor_takes_no_memory():
    block = ((1 << 1) | (128 * 1024 << 3)).to_bytes(3, "little") + b"\0"
    last = ((1 << 1) | (128 * 1024 << 3) | 1).to_bytes(3, "little") + b"\0"
    kinds = {"step": {"smashed": (Expect.floats((1, 2**20), (1, 2**20)),)}}
    frames = []
    # Zstd frames that declare `size` bytes and hold 1 GiB.
    for size, shape in ((65536, [128, 128]), (1 << 30, [128, 128]), (65536, [2**14, 2**14]), (65536, [2**20, 2**20])):
        data = struct.pack("<IBQ", 0xFD2FB528, 3 << 6 | 1 << 5, size) + block * 8191 + last
        for coded in (65536, 4 * shape[0] * shape[1]):
            row = ["smashed", "float32", "float32", shape, "zstd", coded, len(data)]
            frames.append(forge(["step", 1, 1, 1, {}, [row]], data))
    frames.append(forge(["step", 1, 1, 1, {}, [["smashed", "float32", "float32", [2**20, 2**20], "raw", 2**42, 0]]]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        for frame in frames:
            with pytest.raises(WireError):
                read(frame, kinds)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert growth * (1 if sys.platform == "darwin" else 1024) < 64 << 20


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9)
    | st.binary(max_size=9) | st.sampled_from(["raw", "zstd", "int", "uniform4", "float32", "smashed", "int64"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_mutated_headers_are_refused_or_harmless(data):
    header, body = take_apart(example().buffer)
    for _ in range(data.draw(st.integers(1, 3))):
        spot = header
        while True:
            index = data.draw(st.integers(0, len(spot) - 1))
            if not (isinstance(spot[index], list) and spot[index] and data.draw(st.booleans())):
                break
            spot = spot[index]
        spot[index] = data.draw(ANY)
    flipped = bytearray(body)
    if data.draw(st.booleans()):
        flipped[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        frame = read(forge(header, bytes(flipped)))
    except WireError:
        return
    assert frame.kind in KINDS
    for name, tensor in frame.tensors.items():
        assert any(e.allows(str(tensor.dtype)[6:], tuple(tensor.shape)) for e in UP[name])
        assert tensor.isfinite().all()
