"""Codes of few bits channel by channel, and channels of similar codes together, so that a lossless stage finds what
neighbouring tokens have in common and keeps statistics of its own for each group; what is no code goes apart.

On its way a packet is a head, which says how its codes lie, and parts: all that follows the codes, then the codes of
each group of channels, packed as before.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from splitfed.compression.codecs.base import Buffer
from splitfed.compression.codecs.bits import pack, packed_size, unpack
from splitfed.compression.codecs.buffers import from_buffer, to_buffer
from splitfed.errors import WireError

WIDTHS = (2, 3, 4)  # bits of a code; wider ones are told apart by whole bytes
_HEAD = struct.Struct("<BBHI")  # bits, groups, channels, tokens
_GROUPS = 4
_GROUP_BITS = 2
_MANY = 1 << 16  # bytes of codes from which groups are worth the statistics of each
_MOST = 1 << 16


@dataclass(frozen=True, slots=True)
class ByChannel:
    """How a packet's codes lie: `bits` a code, [tokens, channels], and the group of each channel, uint8 [channels]."""

    bits: int
    tokens: int
    group: Tensor
    groups: int

    @property
    def coded(self) -> int:
        """Return the bytes of all codes as they lie in the packet, before all else."""
        return packed_size(self.tokens * len(self.group), self.bits)

    def head(self) -> bytes:
        """Return what the other end needs to know."""
        ids = bytes(to_buffer(pack(self.group, _GROUP_BITS))) if self.groups > 1 else b""
        return _HEAD.pack(self.bits, self.groups, len(self.group), self.tokens) + ids

    def sizes(self, size: int) -> list[int]:
        """Return the bytes of each part of a packet of a size."""
        members = torch.bincount(self.group.long(), minlength=self.groups).tolist()
        return [size - self.coded, *(packed_size(self.tokens * number, self.bits) for number in members)]

    def parts(self, buffer: Buffer) -> list[Buffer]:
        """Return the parts of a packet."""
        codes = self._codes(buffer)
        columns = (codes[self.group == group].reshape(-1) for group in range(self.groups))
        return [memoryview(buffer)[self.coded :], *(to_buffer(pack(column, self.bits)) for column in columns)]

    def whole(self, parts: list[Buffer]) -> Buffer:
        """Return the packet that these are the parts of, which have the `sizes` of one."""
        codes = torch.empty(len(self.group), self.tokens, dtype=torch.uint8)
        for group, part in enumerate(parts[1:]):
            here = self.group == group
            count = int(here.sum()) * self.tokens
            codes[here] = unpack(from_buffer(part, torch.uint8, "cpu"), self.bits, count).view(-1, self.tokens)
        packed = pack(codes.T.reshape(-1), self.bits)
        return to_buffer(torch.cat([packed, from_buffer(parts[0], torch.uint8, "cpu")]))

    def _codes(self, buffer: Buffer) -> Tensor:
        packed = from_buffer(memoryview(buffer)[: self.coded], torch.uint8, "cpu")
        return unpack(packed, self.bits, self.tokens * len(self.group)).view(self.tokens, -1).T.contiguous()


def by_channel(buffer: Buffer, bits: int, shape: Iterable[int]) -> ByChannel | None:
    """Return how the codes of a packet of this shape lie, `bits` each and the last dimension's channels side by side;
    None where they cannot be told apart so."""
    *rest, channels = (1, *shape)
    tokens = prod(rest)
    if bits not in WIDTHS or tokens < 2 or not 2 <= channels < _MOST or tokens >= 1 << 32:
        return None
    one = ByChannel(bits, tokens, torch.zeros(channels, dtype=torch.uint8), 1)
    left_over = -tokens * channels * bits % 8
    if len(buffer) < one.coded or buffer[one.coded - 1] >> (8 - left_over):
        return None  # no such codes: it would not come back as it was
    if one.coded < _MANY:
        return one
    mean = one._codes(buffer).float().mean(1)
    group = torch.empty(channels, dtype=torch.uint8)
    group[mean.argsort(stable=True)] = (torch.arange(channels) * _GROUPS // channels).to(torch.uint8)
    return ByChannel(bits, tokens, group, _GROUPS)


def read(data: Buffer, size: int) -> tuple[ByChannel, int]:
    """Read the head of a packet of a size, and return how its codes lie and where the head ends. Takes memory for no
    more than four times the size. Raises WireError for what no `head` returns."""
    if len(data) < _HEAD.size:
        raise WireError(f"{len(data)} bytes are no head of codes by channel")
    bits, groups, channels, tokens = _HEAD.unpack(data[: _HEAD.size])
    if bits not in WIDTHS or groups not in (1, _GROUPS) or channels < 2 or tokens < 2:
        raise WireError(f"{tokens} x {channels} codes of {bits} bits in {groups} groups do not lie by channel")
    if packed_size(tokens * channels, bits) > size:
        raise WireError(f"{tokens} x {channels} codes of {bits} bits in {size} bytes")
    end = _HEAD.size + (packed_size(channels, _GROUP_BITS) if groups > 1 else 0)
    if len(data) < end:
        raise WireError(f"{len(data)} bytes end within the head of codes by channel")
    group = torch.zeros(channels, dtype=torch.uint8)
    if groups > 1:
        group = unpack(from_buffer(data[_HEAD.size : end], torch.uint8, "cpu"), _GROUP_BITS, channels)
    return ByChannel(bits, tokens, group, groups), end
