"""Uniform quantisation: each row of the last dimension on its own grid of 2**bits values from its smallest to its
largest, rounded to nearest or, without bias, at random (as QSGD does, arXiv 1610.02132)."""

from functools import partial
from math import prod
from typing import Literal

import torch
from torch import Tensor

from splitfed.compression.bits import pack, packed_size, unpack
from splitfed.compression.buffers import FLOATS, float_dtype, from_buffer, to_buffer
from splitfed.compression.codec import Codec, Decoder, Packet
from splitfed.compression.integers import encode_integers
from splitfed.config import Config
from splitfed.errors import CodecError, WireError
from splitfed.seeds import Key

Bits = Literal[2, 3, 4, 6, 8]
WIDTHS = (2, 3, 4, 6, 8)
_SMALLEST_STEP = torch.finfo(torch.float32).tiny


class UniformCodec(Codec):
    """Writes value = low + code * step, with `low` and `step` in float32 for each row of the last dimension.

    A row is a token of [B, N, D] or the weights into one output; tensors of one dimension or none are one row. The
    buffer is planar: packed codes, all lows, all steps. Error at most one step (stochastic) or half a step (nearest),
    a step being (largest - smallest) / (2**bits - 1) of the row, and float rounding; a row of equal values is exact.
    Integers are packed instead.
    """

    def __init__(self, bits: Bits, stochastic: bool) -> None:
        self.bits, self.stochastic = bits, stochastic

    def encode(self, tensor: Tensor, key: Key) -> Packet:
        """Encode a tensor of any shape; CodecError for NaN, infinity, and rows that span more than float32 holds."""
        if tensor.dtype == torch.int64:
            return encode_integers(tensor)
        tag, dtype, shape = f"uniform{self.bits}", float_dtype(tensor), tuple(tensor.shape)
        if not tensor.numel():
            return Packet(tag, dtype, shape, b"")
        rows = tensor.detach().reshape(_rows(shape), -1).to(torch.float32)
        low = rows.amin(1, keepdim=True)
        levels = 2**self.bits - 1
        # Not below the normal numbers, where a step would be too coarse to reach the largest value; a row of equal
        # values has all its codes at 0 and is exact with any step.
        step = (rows.amax(1, keepdim=True) - low).div_(levels).clamp_(min=_SMALLEST_STEP)
        # NaN and infinity reach the top of their row, and so does a spread that overflows.
        if not bool((low + step * levels).isfinite().all()):
            raise CodecError("the tensor holds NaN, infinity or a row that spans more than float32 can hold")
        place = (rows - low).div_(step).add_(0.5)
        if self.stochastic:
            place.add_(_noise(place, key), alpha=2.0**-16)
        codes = place.clamp_(max=levels).to(torch.uint8).view(-1)
        parts = [pack(codes, self.bits), low.view(-1).view(torch.uint8), step.view(-1).view(torch.uint8)]
        return Packet(tag, dtype, shape, to_buffer(torch.cat(parts)))


def _noise(like: Tensor, key: Key) -> Tensor:
    """Return integers in [-2**15, 2**15) as floats; four from each 64-bit draw, because drawing is what takes time."""
    count = like.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device)
    draws.random_(-(2**63), None, generator=key.generator(like.device))
    return draws.view(torch.int16)[:count].view(like.shape).to(torch.float32)


class Uniform(Config):
    """`bits` bits a number and eight bytes a row; stochastic rounding is right on average, nearest errs less."""

    kind: Literal["uniform"] = "uniform"
    bits: Bits = 8
    rounding: Literal["stochastic", "nearest"] = "stochastic"

    def build(self) -> Codec:
        """Return the codec."""
        return UniformCodec(self.bits, self.rounding == "stochastic")


def _rows(shape: tuple[int, ...]) -> int:
    if not prod(shape):
        return 0
    return prod(shape[:-1])


def _size(bits: int, shape: tuple[int, ...]) -> int:
    return packed_size(prod(shape), bits) + 8 * _rows(shape)


def _decode(bits: int, packet: Packet, device: torch.device | str) -> Tensor:
    dtype, count, rows = getattr(torch, packet.dtype), prod(packet.shape), _rows(packet.shape)
    if not count:
        return torch.empty(packet.shape, dtype=dtype, device=device)
    buffer, split = memoryview(packet.buffer), packed_size(count, bits)
    low, step = from_buffer(buffer[split:], torch.float32, device).view(2, rows, 1)
    # Every value lies between these two, so they are all that must be checked.
    ends = torch.stack([low, low + step * (2**bits - 1)]).to(dtype)
    if not bool(ends.isfinite().all() & (step >= 0).all()):
        raise WireError(f"a row's low or step is not finite, negative, or too large for {packet.dtype}")
    codes = unpack(from_buffer(buffer[:split], torch.uint8, device), bits, count)
    return codes.view(rows, -1).to(torch.float32).mul_(step).add_(low).to(dtype).view(packet.shape)


DECODERS = {f"uniform{bits}": Decoder(FLOATS, partial(_size, bits), partial(_decode, bits)) for bits in WIDTHS}
