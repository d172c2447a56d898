"""Transform coding (Goyal 2001, doi 10.1109/79.952802): the rows of a tensor in the basis in which they are
uncorrelated (Karhunen-Loeve), all numbers rounded to one step, and what is left in little more than its entropy.

Of tokens much is the same at a position whatever the image, as position embeddings add it. So a mean is taken off the
rows first: one of all, or one for each position where that takes fewer bytes, its own counted.

The basis is that of the tensor itself and travels with it, its vectors as coarse as their share of the error allows. Of
a mean-square error all directions bear the same part, and those that vary less than that are left out (reverse
water-filling).

    step, bits of the means' step over it, vectors, groups of these, groups of coefficients, if by position | groups
    | mean, what positions differ from it by, vectors and coefficients as integers

The receiver adds up whole numbers, which is exact, so that two machines read the same from a packet.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import frexp, prod

import numpy as np
import torch
from torch import Tensor

from splitfed.compression.codecs.base import Buffer, Decoder, Packet
from splitfed.compression.codecs.buffers import FLOATS
from splitfed.compression.codecs.transform import rans
from splitfed.compression.codecs.transform.rows import RowCodec, positions_of
from splitfed.errors import NotFinite, WireError
from splitfed.seeds import Key

TAG = "klt"
HEAD = struct.Struct("<fbIBB?")
OF_VECTORS, OF_COEFFICIENTS = struct.Struct("<BI"), struct.Struct("<Ib")
_FINEST = 12  # bits behind the point of a vector's numbers
_COARSE = 0.15  # the error that a vector's rounding may add, as a share of that of its coefficients
_MEAN, _MEANS = 0.02, 0.06  # the error that the mean's rounding may add, as a share of all; so for many means
_WIDEST = 24  # bits of the mean's step over the other, or under it
_UP = 0.4  # what is added before a fraction is cut off: half would err least, less costs fewer bits for the same error
_PARTS = 16  # of a step, in which it is told how much nearer to 0 than their codes coefficients are
_GROUPS, _ENOUGH = 24, 512  # groups of coefficients at most; numbers that are worth a group of their own


@dataclass(frozen=True, slots=True)
class Basis:
    """Directions `[K, D]` as integers in units of 2**-`bits` `[K]`, those that vary most first, and the `step` that
    coefficients are rounded to."""

    vectors: Tensor
    bits: Tensor
    step: float

    @property
    def floats(self) -> Tensor:
        """The directions, float64."""
        return torch.ldexp(self.vectors.double(), -self.bits.unsqueeze(1))


class KltCodec(RowCodec):
    """Writes each row of the last dimension as coefficients of the directions in which the tensor's rows vary most.

    `snr`, in dB, is the variance of the rows over the mean-square error that is aimed at. How many bytes that takes
    depends on the values: rows that have much in common take few.
    """

    tag = TAG

    def __init__(self, snr: float) -> None:
        self.snr = snr

    def write(self, rows: Tensor, positions: int, key: Key) -> Buffer:
        """Return the bytes of rows `[R, D]`."""
        rows = rows.cpu().double()
        spread = _about(rows, rows.mean(0, keepdim=True))
        varies = float(spread.variances.sum())
        error = varies * 10 ** (-self.snr / 10)
        if 1 < positions < len(rows):
            means = rows.view(-1, positions, rows.shape[1]).mean(0)
            apart = float((means - spread.means).square().sum(1).mean())
            # Chance alone makes means of few samples differ: by half of this.
            if apart > 2 * positions / len(rows) * varies:
                spread = min(spread, _about(rows, means), key=lambda one: one.bits(error))
        # No coefficient is larger than this, and no more steps than the coder knows.
        largest = (float(spread.variances[0]) * len(rows)) ** 0.5
        level = spread.level(error)
        step = _rounded_up(max((12 * level) ** 0.5, 2 * largest / rans.MOST, float(rows.abs().max()) * 2.0**-24))
        basis = _coarse(spread.directions, spread.variances, step)
        finer = frexp((12 * spread.of_means(error)) ** 0.5 / step)[1] - 1
        wider = max(finer, -_WIDEST, frexp(2 * float(spread.means.abs().max()) / step / rans.MOST)[1])
        means = (spread.means / (step * 2.0**wider)).round()
        left = rows - (means * (step * 2.0**wider)).repeat(len(rows) // len(means), 1)
        return _write(means, wider, basis, _fit(left, basis))


@dataclass(frozen=True, slots=True)
class Spread:
    """How rows vary about `means` `[M, D]`, one or one for each position: the `variances` `[n]`, largest first, and the
    `directions` `[n, D]` that have them; n is the smaller of R and D."""

    rows: int
    means: Tensor
    variances: Tensor
    directions: Tensor

    def of_means(self, error: float) -> float:
        """Return the mean-square error that a number of the means may have of that of a row."""
        return (_MEAN if len(self.means) == 1 else _MEANS) * error / self.means.shape[1]

    def level(self, error: float) -> float:
        """Return the level to which the errors of directions rise."""
        return _water(self.variances, error)

    def bits(self, error: float) -> float:
        """Return about how many bits it takes at an error, but for what all ways have in common."""
        apart = (self.means - self.means.mean(0)).square().mean(0)
        # Their step is up to twice as fine as it may be.
        of_means = len(self.means) * _bits(apart, self.of_means(error) / 2)
        return of_means + self.rows * _bits(self.variances, self.level(error))


def _about(rows: Tensor, means: Tensor) -> Spread:
    """Return how rows vary about these means, of which each takes its turn."""
    return Spread(len(rows), means, *_principal(rows - means.repeat(len(rows) // len(means), 1)))


def _bits(variances: Tensor, error: float) -> float:
    """Return about how many bits tell one number of each variance at an error of each: a quarter of a bit more than the
    least, which is what a grid costs, for those that vary by more."""
    told = variances[variances > error]
    return float(torch.log2(told / max(error, torch.finfo(told.dtype).tiny)).sum()) / 2 + len(told) / 4


def _rounded_up(value: float) -> float:
    """Return a normal number of float32 that is above a number, if there is one."""
    limits = torch.finfo(torch.float32)
    return float(np.nextafter(np.float32(min(max(value, limits.tiny), 0.9 * limits.max)), np.float32(np.inf)))


def _principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances `[n]`, largest first, of rows `[R, D]` without their mean, and the directions `[n, D]` that
    have them; n is the smaller of R and D."""
    count, width = rows.shape
    if width <= count:
        values, vectors = torch.linalg.eigh(rows.T @ rows)
        vectors = vectors.T
    else:
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        vectors = vectors.T @ rows
        vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp_(min=torch.finfo(vectors.dtype).tiny)
    return values.flip(0).clamp_(min=0) / count, vectors.flip(0)


def _water(variances: Tensor, error: float) -> float:
    """Return the level to which errors of directions rise, each at most to its variance, to be `error` together."""
    least = variances.flip(0)
    left = torch.arange(len(least), 0, -1)
    levels = (error - (least.cumsum(0) - least)) / left  # if all that vary less are under water
    above = torch.nonzero(levels <= least)
    return float(levels[above[0]]) if len(above) else float(least[-1])


def _coarse(directions: Tensor, variances: Tensor, step: float) -> Basis:
    """Return those directions that vary by more than rounding to a step does, each as coarse as it may be."""
    noise = step**2 / 12
    kept = int((variances > noise).sum())
    width = directions.shape[1]
    needed = torch.log2(variances[:kept] * width / (12 * _COARSE * noise)).mul_(0.5).ceil_().clamp_(2, _FINEST)
    bits = needed.to(torch.int64)
    return Basis(torch.ldexp(directions[:kept], bits.unsqueeze(1)).round_().to(torch.int64), bits, step)


def _fit(rows: Tensor, basis: Basis) -> Tensor:
    """Return the coefficients `[R, K]`, in steps, by which sums of a basis are closest to rows."""
    vectors = basis.floats
    if not len(vectors):
        return rows.new_empty(len(rows), 0)
    return torch.linalg.lstsq(vectors @ vectors.T, vectors @ rows.T).solution.T / basis.step


def _write(means: Tensor, wider: int, basis: Basis, coefficients: Tensor) -> bytes:
    by_bits = torch.unique_consecutive(basis.bits, return_counts=True)
    vectors = [(int(bits), int(count)) for bits, count in zip(*by_bits, strict=True)]
    codes = (coefficients.abs() + _UP).floor_().clamp_(max=rans.MOST).mul_(coefficients.sign()).to(torch.int64)
    together = list(_alike(codes))
    nearer = [_nearer(*parts) for parts in zip(coefficients.split(together, 1), codes.split(together, 1), strict=True)]
    many, middle = len(means) > 1, means.mean(0, keepdim=True).round()
    head = HEAD.pack(basis.step, wider, len(basis.bits), len(vectors), len(together), many)
    sizes = [OF_VECTORS.pack(*group) for group in vectors]
    sizes += [OF_COEFFICIENTS.pack(*group) for group in zip(together, nearer, strict=True)]
    groups = [
        middle.to(torch.int64).flatten(),
        *([(means - middle).to(torch.int64).flatten()] if many else []),
        *(part.reshape(-1) for part in basis.vectors.split([count for _, count in vectors])),
        *(part.T.reshape(-1) for part in codes.split(together, dim=1)),
    ]
    return b"".join([head, *sizes, rans.encode([group.numpy() for group in groups])])


def _nearer(coefficients: Tensor, codes: Tensor) -> int:
    """Return by how many parts of a step those that were rounded to a code but 0 are nearer to 0 than their code."""
    coded = codes != 0
    if not bool(coded.any()):
        return 0
    return max(-_PARTS, min(_PARTS, round(_PARTS * float((codes.abs() - coefficients.abs())[coded].mean()))))


def _alike(coefficients: Tensor) -> Iterator[int]:
    """Yield how many neighbouring directions have coefficients of about the same size, and statistics in common."""
    if not coefficients.shape[1]:
        return
    rows = len(coefficients)
    octaves = coefficients.double().square().mean(0).clamp_(min=2.0**-20).log2().round().tolist()
    here, number, groups = octaves[0], 0, 1
    for octave in octaves:
        if octave != here and number * rows >= _ENOUGH and groups < _GROUPS:
            yield number
            number, groups = 0, groups + 1
        here = octave if not number else here
        number += 1
    yield number


def _size(shape: tuple[int, ...]) -> int | range:
    if not prod(shape):
        return 0
    rows, width = prod(shape[:-1]), shape[-1] if shape else 1
    vectors = min(rows, width)
    groups = 2 + _FINEST + _GROUPS
    sizes = _FINEST * OF_VECTORS.size + _GROUPS * OF_COEFFICIENTS.size
    numbers = width * (1 + positions_of(shape)) + vectors * (width + rows)
    return range(HEAD.size, HEAD.size + sizes + rans.most_bytes(numbers, groups) + 1)


def _decode(packet: Packet, device: torch.device | str) -> Tensor:
    dtype, buffer = getattr(torch, packet.dtype), memoryview(packet.buffer)
    if not prod(packet.shape):
        return torch.empty(packet.shape, dtype=dtype, device=device)
    rows, width = prod(packet.shape[:-1]), packet.shape[-1] if packet.shape else 1
    step, wider, number, of_vectors, of_coefficients, many = HEAD.unpack_from(buffer)
    at = HEAD.size + of_vectors * OF_VECTORS.size
    end = at + of_coefficients * OF_COEFFICIENTS.size
    if number > min(rows, width) or of_vectors > _FINEST or of_coefficients > _GROUPS or end > len(buffer):
        raise WireError(f"{number} directions in {of_vectors} and {of_coefficients} groups for {rows} rows of {width}")
    if not 0 < step < float("inf") or abs(wider) > _WIDEST:
        raise NotFinite("a step is not positive and finite, or a mean far beyond it")
    vectors = list(OF_VECTORS.iter_unpack(buffer[HEAD.size : at]))
    coefficients = list(OF_COEFFICIENTS.iter_unpack(buffer[at:end]))
    together = [n for n, _ in coefficients]
    if sum(n for _, n in vectors) != number or sum(together) != number or any(bits > _FINEST for bits, _ in vectors):
        raise WireError(f"groups of directions that are not {number} in all, or finer than {_FINEST} bits")
    counts = [width, *([width * positions_of(packet.shape)] if many else []), *(width * n for _, n in vectors)]
    means, *groups = map(torch.from_numpy, rans.decode(buffer[end:], [*counts, *(rows * n for n in together)]))
    means = means.view(1, width)
    if many:
        means = means + groups.pop(0).view(-1, width)
    values = torch.ldexp(means.double(), torch.tensor(wider)).repeat(rows // len(means), 1)
    if number:
        parts = (torch.ldexp(g.double(), torch.tensor(-bits)) for g, (bits, _) in zip(groups, vectors, strict=False))
        basis = torch.cat([part.view(-1, width) for part in parts])
        codes = zip(groups[len(vectors) :], coefficients, strict=True)
        found = torch.cat([(_PARTS * part - nearer * part.sign()).view(-1, rows) for part, (_, nearer) in codes])
        values.addmm_(found.double().T, basis, alpha=1 / _PARTS)
    values.mul_(step)
    most = torch.finfo(dtype).max
    if float(values.abs().max()) > 2 * most:
        raise NotFinite(f"a number is larger than {packet.dtype} holds")
    return values.clamp_(-most, most).to(dtype).view(packet.shape).to(device)


DECODERS = {TAG: Decoder(FLOATS, _size, _decode)}
