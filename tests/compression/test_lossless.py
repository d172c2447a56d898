"""The lossless stage: never larger than raw, and no frame, however crafted, takes memory that was not expected."""

import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from splitfed.compression.codecs.bits import pack as pack_bits
from splitfed.compression.lossless import MAX_WINDOW, decompress
from splitfed.compression.lossless_settings import LosslessConfig, Zstd
from splitfed.errors import WireError

BLOCK = 128 * 1024


def build(config):
    return TypeAdapter(LosslessConfig).validate_python(config).build()


def zstd_frame(declared: int | None, blocks: int, window_log: int | None = None, block: int = BLOCK) -> bytes:
    """A zstd frame by hand: `blocks` runs of `block` zeros each, whatever size and window it declares.

    Without a window, the frame is a single segment, whose window is its declared size.
    """
    flags = (0 if declared is None else 3 << 6) | (1 << 5 if window_log is None else 0)
    header = bytes([flags]) + (b"" if window_log is None else bytes([(window_log - 10) << 3]))
    header += b"" if declared is None else struct.pack("<Q", declared)
    runs = [((i == blocks - 1) | 1 << 1 | block << 3).to_bytes(3, "little") + b"\0" for i in range(blocks)]
    return struct.pack("<I", 0xFD2FB528) + header + b"".join(runs)


@given(
    data=st.binary(max_size=300), repeats=st.integers(1, 50), level=st.sampled_from([1, 3, 19]),
    bits=st.sampled_from([2, 3, 4, 6, 8, 16, 32, 64]),
)  # fmt: skip
@settings(deadline=None, max_examples=100)
def test_comes_back_and_is_never_larger(data, repeats, level, bits):
    for config in ({"kind": "zstd", "level": level}, {"kind": "zstd", "level": level, "shuffle": True}, "none"):
        for buffer in (data * repeats, memoryview(data * repeats)):
            tag, sent = build(config).compress(buffer, bits)
            assert len(sent) <= len(buffer)
            assert bytes(decompress(tag, memoryview(bytes(sent)), len(buffer))) == data * repeats


def test_noise_is_stored_raw_and_zeros_are_not():
    noise = os.urandom(1000)
    assert build("zstd").compress(noise) == ("raw", noise)
    assert build("zstd").compress(b"")[0] == "raw"
    tag, sent = build("zstd").compress(bytes(1000))
    assert tag == "zstd"
    assert len(sent) < 30


def test_shuffling_finds_what_bytes_of_their_own_order_hide():
    """The high bytes of numbers of one size are alike; so are codes of three bits, which no byte shows."""
    generator = torch.Generator().manual_seed(0)
    numbers = (1 + 0.1 * torch.rand(10_000, generator=generator)).numpy().tobytes()
    codes = (torch.rand(80_000, generator=generator) < 0.02).to(torch.uint8) * 5
    gains = {}
    for bits, buffer in ((32, numbers), (3, pack_bits(codes, 3).numpy().tobytes())):
        tag, sent = build({"kind": "zstd", "shuffle": True}).compress(buffer, bits)
        assert bytes(decompress(tag, sent, len(buffer))) == buffer
        gains[tag] = len(sent) / len(build("zstd").compress(buffer, bits)[1])
    assert set(gains) == {"zstd-planes4", "zstd-sixes"}
    assert max(gains.values()) < 0.97
    assert build({"kind": "zstd", "shuffle": True}).compress(bytes(1000), 4)[0] == "zstd", (
        "halves of bytes are in order"
    )
    assert build({"kind": "zstd", "shuffle": True}).compress(bytes(1001), 32)[0] == "zstd", "these are no whole numbers"


def test_the_frames_of_the_tests_are_real():
    assert bytes(decompress("zstd", zstd_frame(8 * BLOCK, 8), 8 * BLOCK)) == bytes(8 * BLOCK)
    assert bytes(decompress("zstd", zstd_frame(8 * BLOCK, 8, window_log=20), 8 * BLOCK)) == bytes(8 * BLOCK)


def test_the_highest_level_fits_in_the_window():
    data = os.urandom(5_000_000) * 4
    tag, sent = build({"kind": "zstd", "level": 19}).compress(data)
    assert tag == "zstd"
    assert bytes(decompress(tag, sent, len(data))) == data


GOOD = zstandard.ZstdCompressor(level=1).compress(bytes(1000))
SKIPPABLE = struct.pack("<II", 0x184D2A50, 1000) + bytes(1000)
REFUSED = {
    "an unknown tag": ("brotli", bytes(10), 10),
    "raw and short": ("raw", bytes(9), 10),
    "raw and long": ("raw", bytes(11), 10),
    "no frame": ("zstd", b"", 10),
    "no zstd": ("zstd", bytes(50), 10),
    "another size": ("zstd", GOOD, 999),
    "truncated": ("zstd", GOOD[:-1], 1000),
    "trailing bytes": ("zstd", GOOD + b"\0", 1000),
    "two frames": ("zstd", GOOD + GOOD, 1000),
    "a second, empty frame": ("zstd", GOOD + zstandard.ZstdCompressor().compress(b""), 1000),
    "a skippable frame alone": ("zstd", SKIPPABLE, 1000),
    "a skippable frame before": ("zstd", SKIPPABLE + GOOD, 1000),
    "a skippable frame behind": ("zstd", GOOD + SKIPPABLE, 1000),
    "nothing, compressed": ("zstd", zstandard.ZstdCompressor().compress(b""), 0),
    "nothing, and trailing bytes": ("zstd", zstandard.ZstdCompressor().compress(b"") + bytes(9), 0),
    "an unknown order": ("zstd-planes3", GOOD, 1000),
    "planes of another size": ("zstd-planes4", GOOD, 996),
    "planes of no whole numbers": ("zstd-planes4", zstandard.ZstdCompressor().compress(bytes(1001)), 1001),
    "sixes of the size of the content": ("zstd-sixes", GOOD, 1000),
    "sixes of more than six bits": ("zstd-sixes", zstandard.ZstdCompressor().compress(b"@" * 1000), 750),
    "sixes of nothing": ("zstd-sixes", zstandard.ZstdCompressor().compress(b""), 0),
    "no declared size": ("zstd", zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000)), 1000),
    "declared small, holds 1 GiB": ("zstd", zstd_frame(BLOCK, 8192), BLOCK),
    "declared small with a window, holds 1 GiB": ("zstd", zstd_frame(BLOCK, 8192, window_log=20), BLOCK),
    "declares and holds 1 GiB": ("zstd", zstd_frame(1 << 30, 8192), BLOCK),
    "declares nothing, holds 1 GiB": ("zstd", zstd_frame(None, 8192, window_log=20), BLOCK),
    "declares 2**62": ("zstd", zstd_frame(2**62, 1), BLOCK),
    "declares more than it holds": ("zstd", zstd_frame(2 * BLOCK, 1), 2 * BLOCK),
    "a huge window": ("zstd", zstd_frame(BLOCK, 1, window_log=31), BLOCK),
    "a window of twice the cap": ("zstd", zstd_frame(BLOCK, 1, window_log=24), BLOCK),
    "the largest window, and no size": ("zstd", zstd_frame(None, 8192, window_log=41), BLOCK),
}


@pytest.mark.parametrize("name", REFUSED)
def test_crafted_data_are_refused(name):
    tag, data, size = REFUSED[name]
    with pytest.raises(WireError):
        decompress(tag, data, size)
    assert bytes(decompress("zstd", GOOD, 1000)) == bytes(1000), "the next message must not suffer"


def test_crafted_data_take_no_memory():
    script = (
        "import resource\n"
        "from splitfed.errors import WireError\n"
        "from splitfed.compression.lossless import decompress\n"
        "from test_lossless import REFUSED, GOOD\n"
        "decompress('zstd', GOOD, 1000)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for tag, data, size in REFUSED.values():\n"
        "    try:\n"
        "        decompress(tag, data, size)\n"
        "    except WireError:\n"
        "        pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    growth = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert growth < 4 * MAX_WINDOW


@given(data=st.binary(max_size=200), place=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=300)
def test_damaged_frames_are_refused_or_keep_their_size(data, place, bit):
    frame = bytearray(GOOD)
    frame[place % len(frame)] ^= 1 << bit
    for crafted in (bytes(frame), struct.pack("<I", 0xFD2FB528) + data):
        try:
            assert len(decompress("zstd", crafted, 1000)) == 1000
        except WireError:
            continue


def test_threads_do_not_share_contexts():
    stage, failures = build("zstd"), []

    def work(number: int) -> None:
        data = bytes([number]) * 100_000
        for _ in range(50):
            tag, sent = stage.compress(data)
            if bytes(decompress(tag, sent, len(data))) != data:
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_scenario_names_stages_by_kind():
    assert TypeAdapter(LosslessConfig).validate_python("zstd") == Zstd()
    for wrong in ("gzip", {"kind": "zstd", "level": 20}, {"kind": "none", "level": 1}):
        with pytest.raises(ValidationError):
            TypeAdapter(LosslessConfig).validate_python(wrong)
