"""Uniform quantisation: each row, each feature or the whole tensor on its own grid of 2**bits values from its smallest
number to its largest, rounded to nearest or, without bias, at random (as QSGD does, arXiv 1610.02132); before it, if
asked, a random rotation of the rows."""

from dataclasses import dataclass
from math import frexp, prod
from typing import get_args

import torch
from torch import Tensor

from splitfed.compression.codecs.base import Buffer, Codec, Decoder, Packet
from splitfed.compression.codecs.bits import pack, packed_size, unpack
from splitfed.compression.codecs.buffers import FLOATS, float_dtype, from_buffer, to_buffer
from splitfed.compression.codecs.choices import Bits, Scale, ScaleBits
from splitfed.compression.codecs.integers import encode_integers
from splitfed.compression.codecs.transform.rotation import rotate, unrotate
from splitfed.errors import CodecError, NotFinite
from splitfed.seeds import Key

WIDTHS: tuple[Bits, ...] = get_args(Bits)
_SCALES: tuple[Scale, ...] = get_args(Scale)
_SCALE_BITS: tuple[ScaleBits, ...] = get_args(ScaleBits)
_SEED_BYTES = 4
_MOST_ROTATED = 2.0**120  # turned back, it still fits in float32


@dataclass(frozen=True)
class Layout:
    """What a packet's tag says: `bits` a code, what has a grid of its own (`scale`), the bits of each of a grid's two
    numbers, and whether rows were rotated."""

    bits: Bits
    scale: Scale = "token"
    scale_bits: ScaleBits = 32
    rotation: bool = False

    @property
    def tag(self) -> str:
        """The tag, `uniform4` or `uniform2-channel-half-rotated`."""
        scale = "" if self.scale == "token" else f"-{self.scale}"
        return f"uniform{self.bits}{scale}{'-half' * (self.scale_bits == 16)}{'-rotated' * self.rotation}"

    @property
    def axes(self) -> tuple[int, ...]:
        """The dimensions of [rows, features] that one grid spans."""
        return {"token": (1,), "channel": (0,), "tensor": (0, 1)}[self.scale]

    def grids(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return how many grids there are along rows and along features."""
        rows, features = prod(shape[:-1]), shape[-1] if shape else 1
        return 1 if 0 in self.axes else rows, 1 if 1 in self.axes else features

    def size(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a packet: codes, scales, and the seed of a rotation."""
        if not prod(shape):
            return 0
        scales = scales_size(prod(self.grids(shape)), self.scale_bits)
        return packed_size(prod(shape), self.bits) + scales + _SEED_BYTES * self.rotation

    def fits(self, low: Tensor, step: Tensor, top: int, dtype: torch.dtype) -> bool:
        """Tell whether grids are grids, and hold nothing beyond what the dtype does: all values lie between a grid's
        two ends, the codes 0 and `top`. Rotated ones may be larger, and must leave room to be turned back."""
        ends = torch.stack([low, low + step * top])
        within = ends.abs() <= _MOST_ROTATED if self.rotation else ends.to(dtype).isfinite()
        return bool(within.all() & (step >= 0).all())

    def decode(self, packet: Packet, device: torch.device | str) -> Tensor:
        """Return a packet's tensor; WireError for grids that no encoder writes."""
        dtype, count = getattr(torch, packet.dtype), prod(packet.shape)
        if not count:
            return torch.empty(packet.shape, dtype=dtype, device=device)
        buffer, split, grids = memoryview(packet.buffer), packed_size(count, self.bits), self.grids(packet.shape)
        scales = buffer[split : split + scales_size(prod(grids), self.scale_bits)]
        low, step = read_scales(scales, grids, self.scale_bits, device)
        codes = unpack(from_buffer(buffer[:split], torch.uint8, device), self.bits, count)
        if not self.fits(low, step, int(codes.max()), dtype):
            raise NotFinite(f"a grid's low or step is not finite, negative, or too large for {packet.dtype}")
        values = codes.view(prod(packet.shape[:-1]), -1).to(torch.float32).mul_(step).add_(low)
        if self.rotation:
            if dtype == torch.float64:  # in which a sum of float32 is exact in whatever order: the same anywhere
                values = values.to(dtype)
            values = unrotate(values, int.from_bytes(buffer[-_SEED_BYTES:], "little"))
            if dtype == torch.float16:  # its largest numbers may come back a little beyond its range
                values.clamp_(-torch.finfo(dtype).max, torch.finfo(dtype).max)
        return values.to(dtype).view(packet.shape)


class UniformCodec(Codec):
    """Writes value = low + code * step, with `low` and `step` for each row of the last dimension (`token`), for each
    index of it (`channel`), or for the tensor.

    A row is a token of [B, N, D] or the weights into one output; tensors of one dimension or none are one row. The
    buffer is planar: packed codes, all lows, all steps. Error at most one step (stochastic) or half a step (nearest),
    a step being (largest - smallest) / (levels - 1) of the grid, and float rounding; equal values are exact. Without
    `levels` there are 2**bits; with fewer, which a receiver need not know, the codes above are not used. Integers are
    packed instead.

    With 16 `scale_bits`, low and step are float16 in units of a power of two that suits the tensor, rounded such that
    the grid still holds all its numbers: it spans up to 2**-9 of its largest number, and of itself, more. With a
    rotation all this is true of the rotated rows, and the error of a row has the same length before and after.
    """

    def __init__(self, layout: Layout, stochastic: bool, levels: int | None = None) -> None:
        self.layout, self.stochastic, self.levels = layout, stochastic, levels or 2**layout.bits

    def encode(self, tensor: Tensor, key: Key) -> Packet:
        """Encode a tensor of any shape; CodecError for NaN, infinity, and grids that span more than float32 holds
        (rotated: numbers from 2**114)."""
        if tensor.dtype == torch.int64:
            return encode_integers(tensor)
        layout, dtype, shape = self.layout, float_dtype(tensor), tuple(tensor.shape)
        if not tensor.numel():
            return Packet(layout.tag, dtype, shape, b"")
        rows = tensor.detach().reshape(prod(shape[:-1]), -1).to(torch.float32)
        seed = key.at("rotation").integer() >> 31
        if layout.rotation:
            rows = rotate(rows, seed)
        low, high = rows.amin(layout.axes, keepdim=True), rows.amax(layout.axes, keepdim=True)
        steps = self.levels - 1
        low, step, scales = write_scales(low, high, steps, layout.scale_bits)
        # NaN and infinity reach the ends of their grid, and so does a spread that overflows.
        if not layout.fits(low, step, steps, tensor.dtype if layout.scale_bits == 16 else torch.float32):
            raise CodecError("the tensor holds NaN, infinity or numbers that span more than float32 can hold")
        place = (rows - low).div_(step).add_(0.5)
        if self.stochastic:
            place.add_(_noise(place, key), alpha=2.0**-16)
        parts = [pack(place.clamp_(max=steps).to(torch.uint8).view(-1), layout.bits), scales]
        if layout.rotation:
            parts.append(torch.tensor([seed], device=rows.device).view(torch.uint8)[:_SEED_BYTES])
        return Packet(layout.tag, dtype, shape, to_buffer(torch.cat(parts)), layout.bits)


def _noise(like: Tensor, key: Key) -> Tensor:
    """Return integers in [-2**15, 2**15) as floats; four from each 64-bit draw, because drawing is what takes time."""
    count = like.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device)
    draws.random_(-(2**63), None, generator=key.generator(like.device))
    return draws.view(torch.int16)[:count].view(like.shape).to(torch.float32)


_LAYOUTS = [
    Layout(bits, scale, scale_bits, rotation)
    for bits in WIDTHS for scale in _SCALES for scale_bits in _SCALE_BITS for rotation in (False, True)
]  # fmt: skip
DECODERS = {layout.tag: Decoder(FLOATS, layout.size, layout.decode) for layout in _LAYOUTS}


_SMALLEST_STEP = torch.finfo(torch.float32).tiny
_SMALLEST_HALF = torch.finfo(torch.float16).smallest_normal * 2.0**-10
# Rounding a number to float16 moves it by 2**-11 of itself, or by 2**-25 where it is small; this is a little more.
_OF_ITSELF, _AT_LEAST = 1.1 * 2.0**-11, 2.0**-25


def scales_size(grids: int, bits: int) -> int:
    """Return the bytes that the scales of so many grids take: 8 each, or 4 each and 4 for the unit of float16."""
    return 8 * grids if bits == 32 else 4 * grids + 4


def write_scales(low: Tensor, high: Tensor, levels: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return low and step (float32, shaped as given) of grids that reach from `low` to `high` in so many steps, as the
    receiver will read them, and their bytes (uint8)."""
    if bits == 32:
        # Not below the normal numbers, where a step would be too coarse to reach the largest value; equal values have
        # all their codes at 0 and are exact with any step.
        step = (high - low).div_(levels).clamp_(min=_SMALLEST_STEP)
        return low, step, torch.cat([low.reshape(-1), step.reshape(-1)]).view(torch.uint8)
    unit = 2.0 ** max(frexp(max(-float(low.min()), float(high.max())))[1] - 15, -102)
    start = low / unit
    start = (start - start.abs() * _OF_ITSELF - _AT_LEAST).half()
    low = start.float() * unit
    width = (high - low).div_(levels).div_(unit).clamp_(min=_SMALLEST_HALF)
    width = (width + width * _OF_ITSELF + _AT_LEAST).half()
    parts = [torch.cat([start.reshape(-1), width.reshape(-1)]), low.new_full((1,), unit)]
    return low, width.float() * unit, torch.cat([part.view(torch.uint8) for part in parts])


def read_scales(buffer: Buffer, shape: tuple[int, ...], bits: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return low and step of grids of this shape from the `scales_size` bytes that a peer wrote, not yet checked."""
    if bits == 32:
        low, step = from_buffer(buffer, torch.float32, device).view(2, *shape)
        return low, step
    unit = from_buffer(memoryview(buffer)[-4:], torch.float32, device)
    low, step = from_buffer(memoryview(buffer)[:-4], torch.float16, device).view(2, *shape).float() * unit
    return low, step
