"""The contract of a codec: tensor to bytes at the wire and back, pure in (tensor, key).

A packet describes itself: the receiver needs no configuration to read it. What it needs is to know what it is ready to
accept (`splitfed.compression.expect`), and that is checked before a codec sees the bytes.

Settings are of the contract, and are read without torch: so nothing heavy is imported here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from splitfed.config import Config
from splitfed.seeds import Key

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Packet:
    """One encoded tensor: the codec's tag, the dtype (torch name) and shape that decoding gives back, and the bytes.

    The bytes may be those of the tensor itself: write them into a frame before the tensor changes. `bits`, which does
    not travel, is the width of what the buffer holds most of, for the lossless stage to go by.
    """

    tag: str
    dtype: str
    shape: tuple[int, ...]
    buffer: Buffer
    bits: int = 8


class Codec(ABC):
    """Encodes tensors; its decoder is found by the packet's tag, see `splitfed.compression.codecs.decoders.decode`.

    `correction` times what it took from `smashed` is added to the client's gradient, see `Cut.corrected`; and so at the
    second cut, if there is one. One that is not `lossy` gives back every float32 as it was.
    """

    correction: float = 0.0
    lossy: bool = True

    @abstractmethod
    def encode(self, tensor: "Tensor", key: Key) -> Packet:
        """Encode a tensor of any shape on any device; `key` feeds stochastic rounding.

        Raises CodecError for NaN, infinity, and values that do not fit.
        """


@dataclass(frozen=True, slots=True)
class Decoder:
    """The receiving half of a codec, one for each tag.

    `dtypes` are the torch names that it can give back. `size` tells how many bytes a shape takes: a number, or a range
    where that depends on the values. `decode` takes packets whose dtype and length have been checked against both,
    returns a tensor with memory of its own on a device, and raises WireError for bytes that no encoder writes.
    """

    dtypes: frozenset[str]
    size: Callable[[tuple[int, ...]], int | range]
    decode: "Callable[[Packet, torch.device | str], Tensor]"


class CodecSettings(Config, ABC):
    """The section of a scenario that names a codec by its `kind`, which a subclass narrows to one `Literal`.

    A class of another package has `decoders`, which read the packets that its codec writes, by their tags, but for
    those of packed integers, which are always there. They are known wherever the class is installed, so that a receiver
    needs no configuration. Those of splitfed's own stand in `splitfed.compression.codecs.decoders`.
    """

    kind: str
    decoders: ClassVar[Mapping[str, Decoder]]

    @abstractmethod
    def build(self) -> Codec:
        """Return the codec."""
