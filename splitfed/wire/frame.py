"""The wire format: one frame is a version byte, the header's length and a checksum (both uint32, little endian), the
header, and the raw buffers of its tensors, one after the other.

The checksum, the lower half of XXH3-64, covers everything else in the frame. A receiver trusts none of it: everything
is checked against what it expects before memory is taken.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from xxhash import xxh3_64

from splitfed.compression.codecs.base import Buffer, Packet
from splitfed.compression.codecs.decoders import decode
from splitfed.compression.expect import Expected
from splitfed.compression.lossless import Lossless, decompress
from splitfed.errors import CodecError, WireError
from splitfed.run.ledger import Sizes
from splitfed.wire.header import MAX_HEADER, Entry, Header, Scalar, meta_problem, read_header

VERSION = 2

_PREFIX = struct.Struct("<BI")
_CHECKSUM = struct.Struct("<I")
_FIXED = _PREFIX.size + _CHECKSUM.size


class Place(NamedTuple):
    """Where in a run a frame of the data plane belongs: a client's steps of a round are counted from 1."""

    round: int
    client: int
    step: int

    def __str__(self) -> str:
        return f"round {self.round}, client {self.client}, step {self.step}"


@dataclass(frozen=True, slots=True)
class Counted:
    """What a frame adds to the ledger: bytes by role (`raw` stays 0) and `total`, the length of its buffer."""

    sizes: dict[str, Sizes]
    total: int

    @property
    def envelope(self) -> int:
        """Bytes of the frame that are not a tensor's."""
        return self.total - sum(sizes.sent for sizes in self.sizes.values())


@dataclass(frozen=True, slots=True)
class Packed(Counted):
    """A frame ready to send."""

    buffer: bytes


@dataclass(frozen=True, slots=True)
class Frame(Counted):
    """A frame that has been received, checked and decoded."""

    kind: str
    round: int
    client: int
    step: int
    meta: dict[str, Scalar]
    tensors: dict[str, Tensor]

    @property
    def place(self) -> Place:
        """Where the frame says that it belongs."""
        return Place(self.round, self.client, self.step)


def pack(
    kind: str,
    round: int,
    client: int,
    step: int,
    packets: Mapping[str, tuple[Packet, Lossless]],
    meta: Mapping[str, Scalar] | None = None,
) -> Packed:
    """Write one frame from encoded tensors by name, each with its lossless stage.

    A tensor's role is its name before the first slash (`side/indices`: `side`). `client` is -1 where a frame is for all
    of them. Raises CodecError for what no receiver would take: a meta value that is not finite, a header over 64 KiB.
    """
    problem = meta_problem(meta or {})
    if problem:
        raise CodecError(f"the meta of a {kind} frame ({Place(round, client, step)}): {problem}")
    entries, buffers = [], []
    for name, (packet, stage) in packets.items():
        lossless, sent = stage.compress(packet.buffer, packet.bits, packet.shape)
        entries.append(Entry(name, packet.tag, packet.dtype, packet.shape, lossless, len(packet.buffer), len(sent)))
        buffers.append(sent)
    header = Header(kind, round, client, step, dict(meta or {}), entries).write()
    if len(header) > MAX_HEADER:
        raise CodecError(f"a {kind} frame needs a header of {len(header)} bytes, more than {MAX_HEADER}")
    prefix = _PREFIX.pack(VERSION, len(header))
    buffer = b"".join([prefix, _CHECKSUM.pack(_checksum(prefix, header, *buffers)), header, *buffers])
    return Packed(_by_role(entries), len(buffer), buffer)


def unpack(
    buffer: Buffer, kinds: Mapping[str, Expected], *, max_bytes: int, device: torch.device | str = "cpu"
) -> Frame:
    """Read a peer's frame of at most `max_bytes`, of one of `kinds`, holding exactly the tensors that its kind expects.

    Tensors are decoded on `device`. Memory is taken only for what is expected. Raises WireError, and nothing else,
    whatever the bytes are.
    """
    head, body = _split(buffer, max_bytes)
    header = read_header(head, kinds)
    if sum(entry.sent for entry in header.entries) != len(body):
        raise WireError(f"{len(body)} bytes of tensors in a {header.kind} frame whose header declares another number")
    tensors, start = {}, 0
    for e in header.entries:
        coded = decompress(e.lossless, body[start : start + e.sent], e.coded)
        tensors[e.name] = decode(Packet(e.tag, e.dtype, e.shape, coded), device)
        start += e.sent
    sizes = _by_role(header.entries)
    return Frame(sizes, len(buffer), header.kind, header.round, header.client, header.step, header.meta, tensors)


def look(buffer: Buffer, kinds: Mapping[str, Expected], *, max_bytes: int) -> Header:
    """Read the header alone of a peer's frame, checked as `unpack` does. Raises WireError."""
    return read_header(_split(buffer, max_bytes)[0], kinds)


def count(header: Header, total: int) -> Counted:
    """Return what a frame of `total` bytes with this header adds to the ledger."""
    return Counted(_by_role(header.entries), total)


def _checksum(*parts: Buffer) -> int:
    digest = xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.intdigest() & 0xFFFFFFFF


def _by_role(entries: list[Entry]) -> dict[str, Sizes]:
    sizes: dict[str, Sizes] = {}
    for e in entries:
        role = e.name.partition("/")[0]
        reduced = (8 if e.dtype == "int64" else 4) * prod(e.shape)
        sizes[role] = sizes.get(role, Sizes()) + Sizes(0, reduced, e.coded, e.sent)
    return sizes


def _split(buffer: Buffer, max_bytes: int) -> tuple[memoryview, memoryview]:
    """Check the frame as a whole and return its header and its data."""
    if not _FIXED <= len(buffer) <= max_bytes:
        raise WireError(f"a frame of {len(buffer)} bytes, where {_FIXED} to {max_bytes} are allowed")
    view = memoryview(buffer)
    version, length = _PREFIX.unpack_from(view)
    if version != VERSION:
        raise WireError(f"a frame in version {version} of the wire format; this is version {VERSION}")
    if length > min(MAX_HEADER, len(view) - _FIXED):
        raise WireError(f"a header of {length} bytes in a frame of {len(view)}")
    if _CHECKSUM.unpack_from(view, _PREFIX.size)[0] != _checksum(view[: _PREFIX.size], view[_FIXED:]):
        raise WireError("a frame whose checksum is wrong")
    return view[_FIXED : _FIXED + length], view[_FIXED + length :]
