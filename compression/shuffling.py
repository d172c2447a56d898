"""Other orders of a buffer's bits, in which Zstandard finds more: it counts whole bytes, whatever the numbers' width.

Numbers of several bytes become planes: the lowest bytes of all, then the next ones. Codes of 3 or 6 bits, whose bits
straddle bytes, are spread to six bits a byte.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from splitfed.compression.bits import pack, unpack
from splitfed.compression.buffers import from_buffer, to_buffer
from splitfed.compression.codec import Buffer
from splitfed.errors import WireError


@dataclass(frozen=True, slots=True)
class Order:
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
    f"planes{width}": Order(lambda size: size, partial(_planes, width), partial(_numbers, width)) for width in (2, 4, 8)
}
ORDERS["sixes"] = Order(_sixes_size, _spread, _close)


def order_for(bits: int, size: int) -> str | None:
    """Return the name of the order that suits numbers of so many bits in a buffer of a size, or None for its own."""
    if not size:
        return None
    if bits in (16, 32, 64) and size % (bits // 8) == 0:
        return f"planes{bits // 8}"
    return "sixes" if bits in (3, 6) else None
