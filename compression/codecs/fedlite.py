"""FedLite (Wang et al. 2022, arXiv 2201.11865): product quantisation of a batch, with codebooks that k-means
makes for it.

Each row is cut into subvectors, and each of them travels as the number of its nearest centroid. Subvectors are grouped
by their place in the row, neighbours together; a group shares one codebook, which travels too. The client corrects its
gradient for what is lost: gradient + correction * (smashed - smashed as sent), see `Cut.corrected`.
"""

import struct
from dataclasses import dataclass
from math import gcd, prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from splitfed.compression.codecs.base import Buffer, Decoder, Packet
from splitfed.compression.codecs.bits import pack, packed_size, unpack
from splitfed.compression.codecs.buffers import FLOATS, bounds_fit, from_buffer, to_buffer
from splitfed.compression.codecs.choices import MOST_CENTROIDS, MOST_SUBVECTORS
from splitfed.compression.codecs.transform.rows import RowCodec
from splitfed.compression.kmeans import fit
from splitfed.errors import NotFinite, WireError
from splitfed.seeds import Key

TAG = "fedlite"
_HEADER = struct.Struct("<HHH")  # subvectors, groups, centroids


@dataclass(frozen=True)
class Division:
    """How a tensor is cut: `rows` of `width` numbers, each in `subvectors` of `length` (the last one filled up with
    zeros), in `groups` with `centroids` each. No more of anything than the shape can fill."""

    rows: int
    width: int
    length: int
    subvectors: int
    groups: int
    centroids: int

    @classmethod
    def of(cls, shape: tuple[int, ...], subvectors: int, groups: int, centroids: int) -> "Division":
        """Return the division that a scenario's numbers mean for a shape, which must have elements."""
        rows, width = prod(shape[:-1]), shape[-1] if shape else 1
        length = -(-width // subvectors)
        subvectors = -(-width // length)
        groups = gcd(groups, subvectors)
        return cls(rows, width, length, subvectors, groups, min(centroids, rows * subvectors // groups))

    @property
    def bits(self) -> int:
        """Bits that the number of a centroid takes."""
        return (self.centroids - 1).bit_length()

    @property
    def codebook_bytes(self) -> int:
        """Bytes of all codebooks, in float32."""
        return 4 * self.groups * self.centroids * self.length

    @property
    def size(self) -> int:
        """Bytes of the packet: header, codebooks, a number for each subvector."""
        return _HEADER.size + self.codebook_bytes + packed_size(self.rows * self.subvectors, self.bits)

    def split(self, rows: Tensor) -> Tensor:
        """Turn rows `[rows, width]` into the points of each group, `[groups, points, length]`."""
        filled = pad(rows, (0, self.subvectors * self.length - self.width))
        return (
            filled.view(self.rows, self.groups, -1, self.length).transpose(0, 1).reshape(self.groups, -1, self.length)
        )

    def join(self, points: Tensor) -> Tensor:
        """Turn points back into rows."""
        rows = points.view(self.groups, self.rows, -1).transpose(0, 1).reshape(self.rows, -1)
        return rows[:, : self.width].contiguous()


class FedLiteCodec(RowCodec):
    """Writes a header, codebooks in float32 `[groups, centroids, length]`, and the packed numbers of centroids.

    What comes back errs no more, summed over its squares, than if each subvector were replaced by its group's mean. The
    same where there are fewer subvectors than centroids: then each is its own, exact but for float rounding.
    """

    tag = TAG

    def __init__(self, subvectors: int, groups: int, centroids: int, iterations: int, correction: float) -> None:
        self.subvectors, self.groups, self.centroids = subvectors, groups, centroids
        self.iterations, self.correction = iterations, correction

    def write(self, rows: Tensor, positions: int, key: Key) -> Buffer:
        """Return the bytes of rows `[R, D]`."""
        division = Division.of(tuple(rows.shape), self.subvectors, self.groups, self.centroids)
        rows = rows.to(torch.float32)
        codebooks, numbers = fit(division.split(rows), division.centroids, key, self.iterations)
        header = bytearray(_HEADER.pack(self.subvectors, self.groups, self.centroids))
        parts = [torch.frombuffer(header, dtype=torch.uint8).to(rows.device), codebooks.view(-1).view(torch.uint8)]
        if division.bits:
            parts.append(pack(numbers.to(torch.uint8).view(-1), division.bits))
        return to_buffer(torch.cat(parts))


def _size(shape: tuple[int, ...]) -> int | range:
    if not prod(shape):
        return 0
    rows, width = prod(shape[:-1]), shape[-1] if shape else 1
    # A subvector filled up with zeros is less than twice what it holds, and no group has more centroids than points.
    codebooks = 4 * min(rows, MOST_CENTROIDS) * (2 * width - 1)
    return range(_HEADER.size + 4, _HEADER.size + codebooks + rows * width + 1)


def _decode(packet: Packet, device: torch.device | str) -> Tensor:
    dtype, buffer = getattr(torch, packet.dtype), memoryview(packet.buffer)
    if not len(buffer):
        return torch.empty(packet.shape, dtype=dtype, device=device)
    subvectors, groups, centroids = _HEADER.unpack_from(buffer)
    if not (1 <= groups <= subvectors <= MOST_SUBVECTORS and 2 <= centroids <= MOST_CENTROIDS) or subvectors % groups:
        raise WireError(f"{subvectors} subvectors in {groups} groups of {centroids} centroids")
    division = Division.of(packet.shape, subvectors, groups, centroids)
    if len(buffer) != division.size:
        raise WireError(f"{len(buffer)} bytes where {subvectors}/{groups}/{centroids} subvectors take {division.size}")
    split = _HEADER.size + division.codebook_bytes
    codebooks = from_buffer(buffer[_HEADER.size : split], torch.float32, device)
    if not bounds_fit(codebooks, dtype):
        raise NotFinite(f"a codebook holds NaN, infinity or a value that {packet.dtype} cannot hold")
    points = division.rows * division.subvectors // division.groups
    numbers = torch.zeros(division.groups, points, dtype=torch.int64, device=device)
    if division.bits:
        packed = from_buffer(buffer[split:], torch.uint8, device)
        numbers += unpack(packed, division.bits, numbers.numel()).view(numbers.shape)
    if int(numbers.max()) >= division.centroids:
        raise WireError(f"a subvector's centroid is number {int(numbers.max())} of {division.centroids}")
    numbers += division.centroids * torch.arange(division.groups, device=device).unsqueeze(1)
    found = codebooks.view(-1, division.length).index_select(0, numbers.view(-1))
    return division.join(found).to(dtype).view(packet.shape)


DECODERS = {TAG: Decoder(FLOATS, _size, _decode)}
