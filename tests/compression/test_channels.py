"""Codes channel by channel: every buffer comes back as it was, what is alike is found, no peer's head is trusted."""

import struct
from contextlib import suppress

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from splitfed.compression.codecs.settings import Uniform
from splitfed.compression.lossless import BY_CHANNEL, decompress
from splitfed.compression.lossless_settings import Zstd
from splitfed.errors import WireError
from splitfed.seeds import Key

STAGE = Zstd(shuffle="channels").build()


def packet(*shape: int, bits: int = 3, spread: float = 0.2):
    """Return rows of few bits whose channels lie around numbers of their own."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape[-1], generator=generator) + spread * torch.randn(shape, generator=generator)
    return Uniform(bits=bits, scale_bits=16).build().encode(x, Key(0))


def sent(one, stage=STAGE) -> tuple[str, bytes]:
    tag, buffer = stage.compress(one.buffer, one.bits, one.shape)
    return tag, bytes(buffer)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(5,), (1, 7), (2, 2), (3, 5, 7), (40, 17, 65), (64, 37, 192)])
def test_a_packet_comes_back_as_it_was_and_is_never_larger(shape: tuple[int, ...], bits: int) -> None:
    one = packet(*shape, bits=bits)
    tag, buffer = sent(one)
    assert len(buffer) <= min(len(sent(one, Zstd(shuffle=s).build())[1]) for s in (False, True))
    assert bytes(decompress(tag, memoryview(buffer), len(one.buffer))) == bytes(one.buffer)


@given(
    data=st.binary(max_size=60), repeats=st.integers(1, 40), bits=st.sampled_from([2, 3, 4, 8]),
    shape=st.lists(st.integers(0, 40), max_size=3),
)  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_a_buffer_that_holds_other_things_than_its_shape_says_comes_back(data, repeats, bits, shape) -> None:
    buffer = data * repeats
    tag, compressed = STAGE.compress(buffer, bits, tuple(shape))
    assert bytes(decompress(tag, memoryview(bytes(compressed)), len(buffer))) == buffer


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_channels_that_differ_take_fewer_bytes(bits: int) -> None:
    """A channel whose codes hardly vary costs little, which rows of all channels hide."""
    one = packet(64, 37, 192, bits=bits)
    tag, buffer = sent(one)
    assert tag == BY_CHANNEL
    assert len(buffer) < 0.8 * len(sent(one, Zstd(shuffle=True).build())[1])


GOOD = packet(8, 9, 16)
MANY = packet(64, 37, 192)


def head(bits: int, groups: int, channels: int, tokens: int, rest: bytes = b"") -> bytes:
    return struct.pack("<BBHI", bits, groups, channels, tokens) + rest


def body(*frames: bytes) -> bytes:
    return struct.pack(f"<{len(frames)}I", *map(len, frames)) + b"".join(frames)


def zeros(size: int) -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(size))


FINE = head(2, 1, 4, 4) + body(b"", zeros(4))
REFUSED = {
    "nothing": (b"", 4),
    "half a head": (FINE[:5], 4),
    "no lengths": (FINE[:9], 4),
    "no frames": (FINE[:16], 4),
    "another size": (FINE, 5),
    "a smaller size": (FINE, 3),
    "trailing bytes": (FINE + b"\0", 4),
    "a frame for nothing": (head(2, 1, 4, 4) + body(zeros(1), zeros(4)), 4),
    "no frame for something": (head(2, 1, 4, 4) + body(b"", b""), 4),
    "codes of five bits": (head(5, 1, 4, 4) + body(b"", zeros(10)), 10),
    "codes of no bits": (head(0, 1, 4, 4) + body(b"", b""), 0),
    "three groups": (head(2, 3, 4, 4, b"\0") + body(b"", zeros(4), b"", b""), 4),
    "no groups": (head(2, 0, 4, 4) + body(b""), 4),
    "groups of no channels": (head(2, 4, 4, 4), 4),
    "one channel": (head(2, 1, 1, 16) + body(b"", zeros(4)), 4),
    "no tokens": (head(2, 1, 4, 0) + body(zeros(4), b""), 4),
    "more codes than bytes": (head(2, 1, 4, 5) + body(b"", zeros(5)), 4),
    "codes for all of memory": (head(2, 1, 0xFFFF, 0xFFFFFFFF) + body(b"", zeros(4)), 4),
    "sixes of more than six bits": (
        head(3, 1, 8, 8) + body(b"", zstandard.ZstdCompressor().compress(b"@" * 32)), 24,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_crafted_data_are_refused(name: str) -> None:
    data, size = REFUSED[name]
    with pytest.raises(WireError):
        decompress(BY_CHANNEL, data, size)
    assert bytes(decompress(BY_CHANNEL, FINE, 4)) == bytes(4)


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7), many=st.booleans(), cut=st.integers(0, 3))
@settings(deadline=None, max_examples=150)
def test_damaged_data_are_refused_or_keep_their_size(place: int, bit: int, many: bool, cut: int) -> None:
    one = MANY if many else GOOD
    tag, buffer = sent(one)
    assert tag == BY_CHANNEL
    damaged = bytearray(buffer[: len(buffer) - cut])
    damaged[place % min(len(damaged), 120)] ^= 1 << bit
    with suppress(WireError):
        assert len(decompress(tag, bytes(damaged), len(one.buffer))) == len(one.buffer)
