"""Plain floats: `float32`, `float16` and `bfloat16`, two or four bytes a number; what does not fit is an error."""

from math import prod

import torch
from torch import Tensor

from splitfed.compression.codecs.base import Codec, Decoder, Packet
from splitfed.compression.codecs.buffers import FLOATS, bounds_fit, float_dtype, from_buffer, to_buffer
from splitfed.compression.codecs.choices import Format
from splitfed.compression.codecs.integers import encode_integers
from splitfed.errors import CodecError, NotFinite
from splitfed.seeds import Key

INTEGER_TAG = "int64"


class FloatCodec(Codec):
    """Stores every number in one float dtype, rounded to nearest, whatever dtype the tensor has.

    Relative error at most 2**-24 (float32; exact for float32, float16 and bfloat16), 2**-11 (float16; absolute error at
    most 2**-25 below its normal range) or 2**-8 (bfloat16), and then that of the tensor's own dtype. Integers are
    packed, but for float32, which means "as they are": 8 bytes each.
    """

    def __init__(self, stored: torch.dtype) -> None:
        self.stored = stored
        self.lossy = stored != torch.float32
        self.tag = str(stored).removeprefix("torch.")

    def encode(self, tensor: Tensor, key: Key) -> Packet:
        """Encode a tensor of any shape; CodecError for NaN, infinity and what this float cannot hold."""
        shape = tuple(tensor.shape)
        if tensor.dtype == torch.int64:
            if self.stored != torch.float32:
                return encode_integers(tensor)
            return Packet(INTEGER_TAG, "int64", shape, to_buffer(_as(tensor, torch.int64)), 64)
        dtype = float_dtype(tensor)
        if tensor.numel() and not bounds_fit(tensor.detach(), self.stored, tensor.dtype):
            ranges = " or ".join(dict.fromkeys((self.tag, dtype)))
            raise CodecError(f"the tensor holds NaN, infinity or a value beyond the range of {ranges}")
        return Packet(self.tag, dtype, shape, to_buffer(_as(tensor, self.stored)), 8 * self.stored.itemsize)


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype, memory_format=torch.contiguous_format)


def _decoder(stored: torch.dtype) -> Decoder:
    def decode(packet: Packet, device: torch.device | str) -> Tensor:
        dtype = getattr(torch, packet.dtype)
        values = from_buffer(packet.buffer, stored, device)
        if values.numel() and not bounds_fit(values, dtype):
            raise NotFinite(f"the data hold NaN, infinity or a value that {packet.dtype} cannot hold")
        return values.to(dtype).view(packet.shape)

    return Decoder(FLOATS, lambda shape: prod(shape) * stored.itemsize, decode)


def _decode_integers(packet: Packet, device: torch.device | str) -> Tensor:
    return from_buffer(packet.buffer, torch.int64, device).view(packet.shape)


DECODERS = {
    "float32": _decoder(torch.float32),
    "float16": _decoder(torch.float16),
    "bfloat16": _decoder(torch.bfloat16),
    INTEGER_TAG: Decoder(frozenset({"int64"}), lambda shape: prod(shape) * 8, _decode_integers),
}


_STORED = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
_SCALE_BYTES = 4
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


class Float8Codec(Codec):
    """Divides a tensor by scale = largest magnitude / largest float8, and rounds to nearest.

    One byte a number, and four for the scale, which comes last. Relative error at most 2**-4 (e4m3) or 2**-3 (e5m2), or
    absolute error at most 2**-18 (e4m3) or 2**-32 (e5m2) of the largest magnitude where that is more, and float
    rounding. Integers are packed instead.
    """

    def __init__(self, format: Format) -> None:
        self.tag, self.stored = f"float8-{format}", _STORED[format]

    def encode(self, tensor: Tensor, key: Key) -> Packet:
        """Encode a tensor of any shape; CodecError for NaN, infinity and what float32 cannot hold."""
        if tensor.dtype == torch.int64:
            return encode_integers(tensor)
        dtype, shape = float_dtype(tensor), tuple(tensor.shape)
        if not tensor.numel():
            return Packet(self.tag, dtype, shape, b"")
        values, most = tensor.detach().reshape(-1).to(torch.float32), torch.finfo(self.stored).max
        scale = values.abs().amax().div_(most).clamp_(min=_SMALLEST_SCALE)
        if not bool((scale * most).isfinite()):
            raise CodecError("the tensor holds NaN, infinity or numbers beyond the range of float32")
        scaled = _capable((values / scale).clamp_(-most, most)).to(self.stored).view(torch.uint8)
        parts = [scaled, scale.view(1).view(torch.uint8).to(scaled.device)]
        return Packet(self.tag, dtype, shape, to_buffer(torch.cat(parts)))


def _capable(tensor: Tensor) -> Tensor:
    """Return the tensor where float8 is known; Apple's GPUs do not know it."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def _size(shape: tuple[int, ...]) -> int:
    return prod(shape) + _SCALE_BYTES if prod(shape) else 0


def _scaled_decoder(stored: torch.dtype) -> Decoder:
    def decode(packet: Packet, device: torch.device | str) -> Tensor:
        dtype, buffer = getattr(torch, packet.dtype), memoryview(packet.buffer)
        if not len(buffer):
            return torch.empty(packet.shape, dtype=dtype, device=device)
        scaled = _capable(from_buffer(buffer[:-_SCALE_BYTES], torch.uint8, device)).view(stored)
        scale = from_buffer(buffer[-_SCALE_BYTES:], torch.float32, device)
        values = scaled.to(torch.float32).to(device).mul_(scale)
        if not bool((scale >= 0).all()) or not bounds_fit(values, dtype):
            raise NotFinite(f"the data or their scale hold NaN, infinity or a value that {packet.dtype} cannot hold")
        return values.to(dtype).view(packet.shape)

    return Decoder(FLOATS, _size, decode)


FLOAT8_DECODERS = {f"float8-{name}": _scaled_decoder(stored) for name, stored in _STORED.items()}
