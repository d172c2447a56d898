"""The contract of a codec: tensor to bytes at the wire and back, pure in (tensor, key).

A packet describes itself: the receiver needs no configuration to read it. What it needs is to know what it is ready to
accept (`splitfed.expect`), and that is checked before a codec sees the bytes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from splitfed.seeds import Key

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Packet:
    """One encoded tensor: the codec's tag, the dtype (torch name) and shape that decoding gives back, and the bytes."""

    tag: str
    dtype: str
    shape: tuple[int, ...]
    buffer: Buffer


class Codec(ABC):
    """Encodes tensors; its decoder is found by the packet's tag, see `splitfed.compression.codecs.decode`."""

    @abstractmethod
    def encode(self, tensor: Tensor, key: Key) -> Packet:
        """Encode a tensor of any shape on any device; `key` feeds stochastic rounding.

        Raises CodecError for NaN, infinity, and values that do not fit.
        """
