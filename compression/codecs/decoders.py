"""The decoder of any packet, found by the packet's tag: those of all codecs that are installed."""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from splitfed.compression.codecs import fedlite, floats, integers, uniform
from splitfed.compression.codecs.base import CodecSettings, Decoder, Packet
from splitfed.compression.codecs.settings import OWN
from splitfed.compression.codecs.transform import klt
from splitfed.compression.plugins import CODECS, Unusable, load
from splitfed.errors import WireError

_MAX_ELEMENTS = 2**48

DECODERS: dict[str, Decoder] = (
    integers.DECODERS | floats.DECODERS | floats.FLOAT8_DECODERS | uniform.DECODERS | fedlite.DECODERS | klt.DECODERS
)


def register(config: type[CodecSettings]) -> None:
    """Add a plug-in's decoders. Raises Unusable where they are none, or their tags are others' too."""
    decoders = getattr(config, "decoders", None)
    if not isinstance(decoders, Mapping) or not all(isinstance(decoder, Decoder) for decoder in decoders.values()):
        raise Unusable("its decoders must map each tag to a splitfed.compression.codecs.base.Decoder")
    if taken := [tag for tag, decoder in decoders.items() if DECODERS.get(tag, decoder) is not decoder]:
        raise Unusable(f"another codec has the tag {taken[0]!r} too")
    DECODERS.update(decoders)


def _decoder(tag: str, dtype: str, shape: tuple[int, ...]) -> Decoder:
    decoder = DECODERS.get(tag)
    if decoder is None:
        raise WireError(f"no codec has the tag {tag[:32]!r}")
    if dtype not in decoder.dtypes:
        raise WireError(f"{tag} does not carry {dtype[:32]!r}")
    if min(shape, default=0) < 0 or prod(max(size, 1) for size in shape) > _MAX_ELEMENTS:
        raise WireError(f"a tensor cannot have the shape {shape}")
    return decoder


def coded_size(tag: str, dtype: str, shape: tuple[int, ...]) -> int | range:
    """Return the number of bytes of a packet, or all it can be where that depends on the values (`int`).

    Takes no memory; raises WireError for an unknown tag, a dtype it does not carry, and an impossible shape.
    """
    return _decoder(tag, dtype, shape).size(shape)


def fits(length: int, size: int | range) -> bool:
    """Tell whether a length is what `coded_size` allows."""
    return length in size if isinstance(size, range) else length == size


def decode(packet: Packet, device: torch.device | str = "cpu") -> Tensor:
    """Return the tensor of a packet on a device, in memory of its own.

    Takes no memory before tag, dtype, shape and length have been found in order; raises WireError where they are not,
    and for data that no encoder writes, such as NaN. Bound the shape first (`splitfed.compression.expect`): memory
    follows it.
    """
    decoder = _decoder(packet.tag, packet.dtype, packet.shape)
    if not fits(len(packet.buffer), decoder.size(packet.shape)):
        raise WireError(f"{len(packet.buffer)} bytes are not a {packet.tag} packet of the shape {packet.shape}")
    return decoder.decode(packet, device)


# Last, for a plug-in may import what stands above.
PLUGINS = load(CODECS, CodecSettings, OWN, register)
