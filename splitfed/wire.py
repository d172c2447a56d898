"""The wire format: one frame is a version byte, the header's length and a CRC-32 (both uint32, little endian), a
msgpack header, and the raw buffers of its tensors, one after the other.

The header is [kind, round, client, step, meta, tensors], and each tensor in it [name, tag, dtype, shape, lossless tag,
coded length, sent length]. The checksum covers everything else in the frame. A receiver trusts none of it: everything
is checked against what it expects before memory is taken.
"""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import msgpack
import torch
from torch import Tensor

from splitfed.compression.codec import Buffer, Packet
from splitfed.compression.codecs import coded_size, decode, fits
from splitfed.compression.lossless import RAW, Lossless, decompress
from splitfed.errors import CodecError, WireError
from splitfed.expect import Expected
from splitfed.ledger import Sizes

VERSION = 1
ERROR = "error"
MAX_HEADER = 64 * 1024

_PREFIX = struct.Struct("<BI")
_CHECKSUM = struct.Struct("<I")
_FIXED = _PREFIX.size + _CHECKSUM.size
_MAX_NUMBER, _MAX_NAME, _MAX_META, _MAX_KEY, _MAX_TEXT, _MAX_DIMS = 2**63 - 1, 128, 16, 32, 256, 8

Meta = Mapping[str, int | float | str | bool]


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
    meta: dict[str, int | float | str | bool]
    tensors: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One tensor in a header that has been checked."""

    name: str
    tag: str
    dtype: str
    shape: tuple[int, ...]
    lossless: str
    coded: int
    sent: int


def pack(
    kind: str,
    round: int,
    client: int,
    step: int,
    packets: Mapping[str, tuple[Packet, Lossless]],
    meta: Meta | None = None,
) -> Packed:
    """Write one frame from encoded tensors by name, each with its lossless stage.

    A tensor's role is its name before the first slash (`side/indices`: `side`). `client` is -1 where a frame is for all
    of them. Raises CodecError for what no receiver would take: a meta value that is not finite, a header over 64 KiB.
    """
    problem = _meta_problem(meta or {})
    if problem:
        raise CodecError(f"a {kind} frame of round {round}, client {client}, step {step}: {problem}")
    entries, buffers = [], []
    for name, (packet, stage) in packets.items():
        lossless, sent = stage.compress(packet.buffer)
        entries.append(_Entry(name, packet.tag, packet.dtype, packet.shape, lossless, len(packet.buffer), len(sent)))
        buffers.append(sent)
    rows = [(e.name, e.tag, e.dtype, e.shape, e.lossless, e.coded, e.sent) for e in entries]
    header = msgpack.packb([kind, round, client, step, meta or {}, rows])
    if len(header) > MAX_HEADER:
        raise CodecError(f"a {kind} frame needs a header of {len(header)} bytes, more than {MAX_HEADER}")
    prefix = _PREFIX.pack(VERSION, len(header))
    buffer = b"".join([prefix, _CHECKSUM.pack(_checksum(prefix, header, *buffers)), header, *buffers])
    return Packed(_by_role(entries), len(buffer), buffer)


def pack_error(round: int, client: int, step: int, reason: str) -> Packed:
    """Write a frame of the kind `error`, whose meta `reason` is this text, shortened where it is too long."""
    text = reason.encode("utf-8", "replace").decode()[:_MAX_TEXT]
    return pack(ERROR, round, client, step, {}, {"reason": text})


def unpack(
    buffer: Buffer, kinds: Mapping[str, Expected], *, max_bytes: int, device: torch.device | str = "cpu"
) -> Frame:
    """Read a peer's frame of at most `max_bytes`, of one of `kinds`, holding exactly the tensors that its kind expects.

    Tensors are decoded on `device`. Memory is taken only for what is expected. Raises WireError, and nothing else,
    whatever the bytes are.
    """
    header, body = _split(buffer, max_bytes)
    kind, round, client, step, meta, rows = _list(_parse(header), 6, "a header")
    if type(kind) is not str or kind not in kinds:
        raise WireError(f"a frame of the kind {_short(kind)}, where {', '.join(sorted(kinds))} is expected")
    for what, number, least in (("round", round, 0), ("client", client, -1), ("step", step, 0)):
        _number(number, least, what)
    if type(meta) is not dict or (problem := _meta_problem(meta)):
        raise WireError(f"a {kind} frame whose meta are refused: {problem if type(meta) is dict else 'not a map'}")
    entries = _entries(rows, kinds[kind])
    if sum(entry.sent for entry in entries) != len(body):
        raise WireError(f"a {kind} frame of {len(body)} bytes of tensors, but its header declares another number")
    tensors, start = {}, 0
    for e in entries:
        coded = decompress(e.lossless, body[start : start + e.sent], e.coded)
        tensors[e.name] = decode(Packet(e.tag, e.dtype, e.shape, coded), device)
        start += e.sent
    return Frame(_by_role(entries), len(buffer), kind, round, client, step, meta, tensors)


def _checksum(*parts: Buffer) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def _by_role(entries: list[_Entry]) -> dict[str, Sizes]:
    sizes: dict[str, Sizes] = {}
    for e in entries:
        role = e.name.partition("/")[0]
        reduced = (8 if e.dtype == "int64" else 4) * prod(e.shape)
        sizes[role] = sizes.get(role, Sizes()) + Sizes(0, reduced, e.coded, e.sent)
    return sizes


def _split(buffer: Buffer, max_bytes: int) -> tuple[memoryview, memoryview]:
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


def _parse(header: memoryview) -> Any:
    try:
        return msgpack.unpackb(
            header, strict_map_key=True, object_pairs_hook=_map, max_str_len=4 * _MAX_TEXT, max_bin_len=0,
            max_ext_len=0, max_map_len=_MAX_META, max_array_len=MAX_HEADER,
        )  # fmt: skip
    # ValueError covers bad UTF-8, limits, trailing bytes and nesting; OutOfData alone is not one.
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"a header that is not msgpack: {type(error).__name__}") from None


def _map(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _short(value: Any) -> str:
    return repr(value)[:40] if type(value) in (str, int, float, bool) else type(value).__name__


def _list(value: Any, length: int, what: str) -> list:
    if type(value) is not list or len(value) != length:
        raise WireError(f"{what} that is not a list of {length}")
    return value


def _number(value: Any, least: int, what: str) -> int:
    if type(value) is not int or not least <= value <= _MAX_NUMBER:
        raise WireError(f"{what} is {_short(value)}, not a number from {least}")
    return value


def _meta_problem(meta: Meta) -> str | None:
    if len(meta) > _MAX_META:
        return f"{len(meta)} entries, more than {_MAX_META}"
    for key, value in meta.items():
        if type(key) is not str or len(key) > _MAX_KEY:
            return f"the key {_short(key)}"
        if (type(value) is str and len(value) <= _MAX_TEXT) or type(value) is bool:
            continue
        if (type(value) is int and abs(value) <= _MAX_NUMBER) or (type(value) is float and isfinite(value)):
            continue
        return f"{key} is {_short(value)}"
    return None


def _entries(rows: Any, expected: Expected) -> list[_Entry]:
    """Check the tensors of a header against what is expected, without a look at their bytes."""
    entries: dict[str, _Entry] = {}
    for row in _list(rows, len(expected), "the tensors"):
        name, tag, dtype, shape, lossless, coded, sent = _list(row, 7, "a tensor's entry")
        if type(name) is not str or name not in expected or name in entries:
            raise WireError(f"a tensor {_short(name)} that is not expected, or twice")
        if not type(tag) is type(dtype) is type(lossless) is str:
            raise WireError(f"{name} has a tag, dtype or stage that is no text")
        if type(shape) is not list or len(shape) > _MAX_DIMS:
            raise WireError(f"{name} has a shape that is no list of numbers")
        dims = tuple(_number(size, 0, f"a dimension of {name}") for size in shape)
        if not any(choice.allows(dtype, dims) for choice in expected[name]):
            raise WireError(f"{name} is {dtype[:32]} {list(dims)}, which is not expected")
        if not fits(_number(coded, 0, f"the length of {name}"), coded_size(tag, dtype, dims)):
            raise WireError(f"{name} has {coded} bytes, which no {tag} packet of this shape has")
        if _number(sent, 0, f"the sent length of {name}") > coded or (lossless == RAW and sent != coded):
            raise WireError(f"{name} was sent as {sent} bytes for {coded}")
        entries[name] = _Entry(name, tag, dtype, dims, lossless, coded, sent)
    return list(entries.values())
