"""What codecs have in common that write the rows of a tensor together: what they are given is checked, and what is no
row of floats is written without them."""

from abc import abstractmethod
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitfed.compression.codecs.base import Buffer, Codec, Packet
from splitfed.compression.codecs.buffers import bounds_fit, float_dtype
from splitfed.compression.codecs.integers import encode_integers
from splitfed.errors import CodecError
from splitfed.seeds import Key


class RowCodec(Codec):
    """Writes the rows of the last dimension, under its `tag`. Integers are packed instead, and a tensor without numbers
    is no bytes."""

    tag: ClassVar[str]

    def encode(self, tensor: Tensor, key: Key) -> Packet:
        """Encode a tensor of any shape; CodecError for NaN, infinity and what float32 cannot hold."""
        if tensor.dtype == torch.int64:
            return encode_integers(tensor)
        dtype, shape = float_dtype(tensor), tuple(tensor.shape)
        if not tensor.numel():
            return Packet(self.tag, dtype, shape, b"")
        if not bounds_fit(tensor.detach(), torch.float32):
            raise CodecError("the tensor holds NaN, infinity or numbers beyond the range of float32")
        rows = tensor.detach().reshape(prod(shape[:-1]), -1)
        return Packet(self.tag, dtype, shape, self.write(rows, positions_of(shape), key))

    @abstractmethod
    def write(self, rows: Tensor, positions: int, key: Key) -> Buffer:
        """Return the bytes of rows `[R, D]` of finite floats, one number at least: those of a sample's positions, and
        then those of the next sample's."""


def positions_of(shape: tuple[int, ...]) -> int:
    """Return how many rows of a tensor of this shape are one sample's, such as the tokens of one that is `[B, N, D]`; 1
    where nothing tells."""
    return shape[-2] if len(shape) > 2 else 1
