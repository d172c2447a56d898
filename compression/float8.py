"""Eight-bit floats with one scale for the tensor: `e4m3` has 4 significant bits, `e5m2` has 3 and a wider range."""

from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from splitfed.compression.buffers import FLOATS, bounds_fit, float_dtype, from_buffer, to_buffer
from splitfed.compression.codec import Codec, CodecSettings, Decoder, Packet
from splitfed.compression.integers import encode_integers
from splitfed.errors import CodecError, WireError
from splitfed.seeds import Key

Format = Literal["e4m3", "e5m2"]
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


def _decoder(stored: torch.dtype) -> Decoder:
    def decode(packet: Packet, device: torch.device | str) -> Tensor:
        dtype, buffer = getattr(torch, packet.dtype), memoryview(packet.buffer)
        if not len(buffer):
            return torch.empty(packet.shape, dtype=dtype, device=device)
        scaled = _capable(from_buffer(buffer[:-_SCALE_BYTES], torch.uint8, device)).view(stored)
        scale = from_buffer(buffer[-_SCALE_BYTES:], torch.float32, device)
        values = scaled.to(torch.float32).to(device).mul_(scale)
        if not bool((scale >= 0).all()) or not bounds_fit(values, dtype):
            raise WireError(f"the data or their scale hold NaN, infinity or a value that {packet.dtype} cannot hold")
        return values.to(dtype).view(packet.shape)

    return Decoder(FLOATS, _size, decode)


DECODERS = {f"float8-{name}": _decoder(stored) for name, stored in _STORED.items()}


class Float8(CodecSettings):
    """A byte a number; `e4m3` suits activations, `e5m2` what spans many orders of magnitude."""

    kind: Literal["float8"] = "float8"
    decoders: ClassVar = DECODERS
    format: Format = "e4m3"

    def build(self) -> Codec:
        """Return the codec."""
        return Float8Codec(self.format)
