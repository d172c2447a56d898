"""The lossless stage after a codec: Zstandard, or nothing; never larger than stored raw."""

import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import zstandard

from splitfed.compression.channels import ByChannel, by_channel, read
from splitfed.compression.codecs.base import Buffer
from splitfed.compression.codecs.bits import pack, unpack
from splitfed.compression.codecs.buffers import from_buffer, to_buffer
from splitfed.errors import WireError


@dataclass(frozen=True, slots=True)
class ByteOrder:
    """One way to lay out a buffer: the size that one of a size becomes, the way there, and the way back to a size."""

    size: Callable[[int], int]
    apply: Callable[[Buffer], Buffer]
    undo: Callable[[Buffer, int], Buffer]


def _planes(width: int, buffer: Buffer) -> Buffer:
    return to_buffer(from_buffer(buffer, torch.uint8, "cpu").view(-1, width).T.contiguous())


def _numbers(width: int, buffer: Buffer, size: int) -> Buffer:
    if size % width:
        raise WireError(f"{size} bytes are not numbers of {width}")
    return to_buffer(from_buffer(buffer, torch.uint8, "cpu").view(width, -1).T.contiguous())


def _sixes_size(size: int) -> int:
    return (size * 8 + 5) // 6


def _spread(buffer: Buffer) -> Buffer:
    return to_buffer(unpack(from_buffer(buffer, torch.uint8, "cpu"), 6, _sixes_size(len(buffer))))


def _close(buffer: Buffer, size: int) -> Buffer:
    sixes = from_buffer(buffer, torch.uint8, "cpu")
    if sixes.numel() and int(sixes.max()) > 63:
        raise WireError("a byte that was to hold six bits holds more")
    return to_buffer(pack(sixes, 6)[:size])


ORDERS = {
    f"planes{width}": ByteOrder(lambda size: size, partial(_planes, width), partial(_numbers, width))
    for width in (2, 4, 8)
}
ORDERS["sixes"] = ByteOrder(_sixes_size, _spread, _close)


def order_for(bits: int, size: int) -> str | None:
    """Return the name of the order that suits numbers of so many bits in a buffer of a size, or None for its own."""
    if not size:
        return None
    if bits in (16, 32, 64) and size % (bits // 8) == 0:
        return f"planes{bits // 8}"
    return "sixes" if bits in (3, 6) else None


RAW, ZSTD = "raw", "zstd"
BY_CHANNEL = f"{ZSTD}-channels"
_REST_BITS = 16  # of the numbers that follow codes of few bits: most often scales
# What level 19 uses at most; a decoder may have to hold a window besides its output.
MAX_WINDOW = 8 * 1024 * 1024


class Lossless(ABC):
    """Shrinks buffers; `decompress` undoes it by the tag."""

    @abstractmethod
    def compress(self, buffer: Buffer, bits: int = 8, shape: Iterable[int] = ()) -> tuple[str, Buffer]:
        """Return the tag and the bytes to send, no more of them than there were; `bits` is the width of what the buffer
        holds most of, `shape` that of the tensor whose codes they are."""


class _PerThread(threading.local):
    """Zstandard's contexts, which are costly to make and belong to one thread."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        if level not in self.compressors:
            self.compressors[level] = zstandard.ZstdCompressor(level=level, write_content_size=True)
        return self.compressors[level]


_contexts = _PerThread()


class ZstdStage(Lossless):
    """Zstandard frames that declare their content's size, of the buffer or of its bits in another order; raw where they
    would not be smaller. `shuffle` says which orders are tried: none, that of its bits, or also `channels`."""

    def __init__(self, level: int, shuffle: bool | str) -> None:
        self.level, self.shuffle = level, shuffle

    def compress(self, buffer: Buffer, bits: int = 8, shape: Iterable[int] = ()) -> tuple[str, Buffer]:
        """Return the smallest of the buffer itself and its frames."""
        order = order_for(bits, len(buffer)) if self.shuffle else None
        tried: list[tuple[str, Buffer]] = [(RAW, buffer), (_tag(order), self._frame(buffer, order))]
        if self.shuffle == "channels" and (lies := by_channel(buffer, bits, shape)) is not None:
            tried.append((BY_CHANNEL, self._by_channel(buffer, lies)))
        return min(tried, key=lambda one: len(one[1]))

    def _frame(self, buffer: Buffer, order: str | None) -> bytes:
        return _contexts.compressor(self.level).compress(ORDERS[order].apply(buffer) if order else buffer)

    def _by_channel(self, buffer: Buffer, lies: ByChannel) -> bytes:
        parts = zip(lies.parts(buffer), _orders(lies, len(buffer)), strict=True)
        frames = [self._frame(part, order) if len(part) else b"" for part, order in parts]
        return b"".join([lies.head(), struct.pack(f"<{len(frames)}I", *map(len, frames)), *frames])


def _orders(lies: ByChannel, size: int) -> list[str | None]:
    """Return the order of each part."""
    rest, *groups = lies.sizes(size)
    return [order_for(_REST_BITS, rest), *(order_for(lies.bits, group) for group in groups)]


def _tag(order: str | None) -> str:
    return f"{ZSTD}-{order}" if order else ZSTD


class NoStage(Lossless):
    """Leaves buffers as they are."""

    def compress(self, buffer: Buffer, bits: int = 8, shape: Iterable[int] = ()) -> tuple[str, Buffer]:
        """Return the buffer itself."""
        return RAW, buffer


_ORDERS = {_tag(name): name for name in ORDERS}


def decompress(tag: str, data: Buffer, size: int) -> Buffer:
    """Return the `size` bytes that a stage turned into `data`; raw data are returned as they are.

    Takes memory for `size` bytes (several times that where they were shuffled) and a window of `MAX_WINDOW`, whatever
    the data claim. Raises WireError for an unknown tag, a length other than `size`, a frame that does not declare it or
    holds more or less, and trailing bytes.
    """
    if tag == RAW:
        if len(data) != size:
            raise WireError(f"{len(data)} raw bytes where {size} are expected")
        return data
    if tag == ZSTD:
        return _inflate(data, size)
    if tag == BY_CHANNEL:
        return _from_channels(data, size)
    if (order := _ORDERS.get(tag)) is None:
        raise WireError(f"no lossless stage has the tag {tag[:32]!r}")
    return _undone(data, size, order)


def _from_channels(data: Buffer, size: int) -> Buffer:
    lies, start = read(data, size)
    sizes, orders = lies.sizes(size), _orders(lies, size)
    lengths = struct.Struct(f"<{len(sizes)}I")
    if len(data) < start + lengths.size:
        raise WireError(f"{len(data)} bytes end before the lengths of {len(sizes)} frames")
    frames, start = lengths.unpack(data[start : start + lengths.size]), start + lengths.size
    if sum(frames) != len(data) - start:
        raise WireError(f"{len(data) - start} bytes of frames whose lengths are {frames}")
    parts: list[Buffer] = []
    for frame, part, order in zip(frames, sizes, orders, strict=True):
        sent = data[start : start + frame]
        if not part and frame:
            raise WireError(f"a frame of {frame} bytes for nothing")
        parts.append(b"" if not part else _undone(sent, part, order))
        start += frame
    return lies.whole(parts)


def _undone(frame: Buffer, size: int, order: str | None) -> Buffer:
    return ORDERS[order].undo(_inflate(frame, ORDERS[order].size(size)), size) if order else _inflate(frame, size)


def _inflate(data: Buffer, size: int) -> bytes:
    # A frame declares its size in its header, which alone decides what the decompressor allocates. The stage stores
    # nothing as raw; Zstandard has several ways to write nothing, and checks none of them.
    try:
        parameters = zstandard.get_frame_parameters(data)
        if parameters.content_size != size or size == 0:
            raise WireError(f"a zstd frame declares {parameters.content_size} bytes where {size} are expected")
        if parameters.window_size > MAX_WINDOW:
            raise WireError(f"a zstd frame asks for a window of {parameters.window_size} bytes")
        content = _contexts.decompressor.decompress(
            data, max_output_size=size, read_across_frames=False, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise WireError(f"a zstd frame is damaged: {error}") from None
    if len(content) != size:
        raise WireError(f"a zstd frame holds {len(content)} bytes where {size} are expected")
    return content
