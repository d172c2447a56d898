"""A random rotation of rows, drawn from a seed and undone exactly: random signs, then a Hadamard transform of blocks.

It spreads what a few features hold over all of their block, so that a grid from the smallest to the largest number is
fine enough in few bits (as in DRIVE, arXiv 2105.08339, and QuIP#, arXiv 2402.04396). Longer blocks gain nothing on
activations of a DeiT: their large features are many.
"""

from functools import lru_cache
from hashlib import shake_128

import numpy as np
import torch
from torch import Tensor

BLOCK = 64


def rotate(rows: Tensor, seed: int) -> Tensor:
    """Return rows `[R, D]` rotated by one orthogonal matrix, which `seed` (0 to 2**32 - 1) and D decide.

    Blocks of 64 features, or of the largest power of two below; where they do not divide D, one more, with signs of its
    own, covers the last features. No number grows beyond 64 times the largest.
    """
    whole, rest, matrix = _blocks(rows)
    first, last = _signs(rows, len(matrix), seed)
    with torch.autocast(rows.device.type, enabled=False):
        rotated = _mix(rows * first, whole, matrix)
        if rest:
            rotated[:, -len(matrix) :] = (rotated[:, -len(matrix) :] * last) @ matrix
    return rotated


def unrotate(rows: Tensor, seed: int) -> Tensor:
    """Return the rows that `rotate` turned into these."""
    whole, rest, matrix = _blocks(rows)
    first, last = _signs(rows, len(matrix), seed)
    with torch.autocast(rows.device.type, enabled=False):
        if rest:  # what came last goes first; a block's matrix is its own inverse
            rows = rows.clone()
            rows[:, -len(matrix) :] = (rows[:, -len(matrix) :] @ matrix).mul_(last)
        return _mix(rows, whole, matrix).mul_(first)


def _blocks(rows: Tensor) -> tuple[int, int, Tensor]:
    """Return how many features whole blocks cover, how many are left, and the matrix of a block."""
    width = rows.shape[1]
    size = min(BLOCK, 1 << (width.bit_length() - 1))
    rest = width % size
    return width - rest, rest, _hadamard(size, rows.dtype, rows.device)


def _mix(rows: Tensor, whole: int, matrix: Tensor) -> Tensor:
    if whole == rows.shape[1]:
        return (rows.reshape(-1, len(matrix)) @ matrix).view(rows.shape)
    first = rows[:, :whole]
    mixed = (first.reshape(-1, len(matrix)) @ matrix).view(first.shape)
    return torch.cat([mixed, rows[:, whole:]], 1)


@lru_cache(maxsize=32)
def _hadamard(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    matrix = torch.ones(1, 1, dtype=dtype)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return (matrix * size**-0.5).to(device)


def _signs(rows: Tensor, block: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the signs of all features, and those of one more block."""
    # from a hash: the same on every device, machine and version of torch
    count = rows.shape[1] + block
    drawn = np.frombuffer(shake_128(seed.to_bytes(4, "little")).digest((count + 7) // 8), np.uint8)
    bits = torch.from_numpy(np.unpackbits(drawn)[:count]).to(rows.device, rows.dtype)
    first, last = bits.mul_(2).sub_(1).split([rows.shape[1], block])
    return first, last
