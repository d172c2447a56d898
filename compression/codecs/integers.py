"""Integer packing: non-negative int64 (indices, labels) in the fewest whole bits that the largest value needs.

The first byte is that width. What follows is planar: the lowest byte of all values, then the next one, and last the
remaining bits packed together, so that the lossless stage sees like beside like.
"""

from math import prod

import torch
from torch import Tensor

from splitfed.compression.codecs.base import Codec, Decoder, Packet
from splitfed.compression.codecs.bits import pack, packed_size, unpack
from splitfed.compression.codecs.buffers import from_buffer, to_buffer
from splitfed.errors import CodecError, WireError
from splitfed.seeds import Key

TAG = "int"
MAX_BITS = 63


class IntegerCodec(Codec):
    """Packs non-negative int64, whatever the scenario says of floats: the codec of side tensors."""

    def encode(self, tensor: Tensor, key: Key) -> Packet:
        """Pack a tensor of any shape; nothing is lost."""
        return encode_integers(tensor)


def encode_integers(tensor: Tensor) -> Packet:
    """Pack an int64 tensor of any shape; CodecError for a negative value."""
    flat = tensor.detach().reshape(-1)
    low, high = torch.stack(torch.aminmax(flat)).tolist() if flat.numel() else (0, 0)
    if low < 0:
        raise CodecError(f"integers are packed without a sign, and one of them is {low}")
    bits = max(1, high.bit_length())
    whole, rest = divmod(bits, 8)
    planes = flat.contiguous().view(torch.uint8).view(-1, 8)
    parts = [flat.new_full((1,), bits, dtype=torch.uint8), planes[:, :whole].T.reshape(-1)]
    if rest:
        parts.append(pack(planes[:, whole].contiguous(), rest))
    return Packet(TAG, "int64", tuple(tensor.shape), to_buffer(torch.cat(parts)))


def _size(shape: tuple[int, ...]) -> range:
    count = prod(shape)
    return range(1 + packed_size(count, 1), 1 + packed_size(count, MAX_BITS) + 1)


def _decode(packet: Packet, device: torch.device | str) -> Tensor:
    count, bits = prod(packet.shape), packet.buffer[0]
    if not 1 <= bits <= MAX_BITS or len(packet.buffer) != 1 + packed_size(count, bits):
        raise WireError(f"{len(packet.buffer)} bytes do not hold {count} integers of {bits} bits")
    whole, rest = divmod(bits, 8)
    body = from_buffer(memoryview(packet.buffer)[1:], torch.uint8, device)
    planes = torch.zeros(count, 8, dtype=torch.uint8, device=device)
    planes[:, :whole] = body[: whole * count].view(whole, count).T
    if rest:
        planes[:, whole] = unpack(body[whole * count :], rest, count)
    return planes.view(-1).view(torch.int64).view(packet.shape)


DECODERS = {TAG: Decoder(frozenset({"int64"}), _size, _decode)}
