"""Packing of small codes: `bits` bits each, one after the other, lowest bit first, on any device.

Neighbouring codes are bytes of one wider word, and a word's fields are moved together in pairs, then in pairs of pairs:
three steps at most, each over the whole tensor, for every width.
"""

from math import gcd

import torch
from torch import Tensor

_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def packed_size(count: int, bits: int) -> int:
    """Return how many bytes `count` codes take."""
    return (count * bits + 7) // 8


def _group(bits: int) -> tuple[int, int]:
    """Return the fewest codes that fill whole bytes, and how many bytes that is."""
    return 8 // gcd(bits, 8), bits // gcd(bits, 8)


def _steps(bits: int, lanes: int) -> list[tuple[int, int, int, int]]:
    """Return, for each step of packing, the shift that closes the gap in each pair of fields, and three masks: the
    first fields of the pairs, the second ones before it, and the second ones after it."""
    steps, slot, field, total = [], 8, bits, 8 * lanes
    while slot < total:
        first = sum(((1 << field) - 1) << at for at in range(0, total, 2 * slot))
        steps.append((slot - field, first, _signed(first << slot, total), first << field))
        slot, field = 2 * slot, 2 * field
    return steps


def _signed(mask: int, width: int) -> int:
    """Return the signed number of the same bits, which is how torch takes a mask."""
    return mask - (1 << width) if mask >> (width - 1) else mask


_STEPS = {bits: _steps(bits, _group(bits)[0]) for bits in range(1, 8)}


def _whole(flat: Tensor, multiple: int) -> Tensor:
    """Return contiguous bytes, filled up with zeros to a multiple, that a view as wider words may begin at."""
    missing = -flat.numel() % multiple
    if missing:
        return torch.cat([flat, flat.new_zeros(missing)])
    return flat.clone() if flat.storage_offset() % 8 or not flat.is_contiguous() else flat


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes [n], each below 2**bits, into uint8 [ceil(n * bits / 8)]; `bits` is 1 to 8."""
    if bits == 8 or not codes.numel():
        return codes
    lanes, width = _group(bits)
    word = _whole(codes, lanes).view(_WORDS[lanes])
    for shift, first, _, closed in _STEPS[bits]:
        word = (word >> shift).bitwise_and_(closed).bitwise_or_(word & first)
    if width == 1:
        return word.to(torch.uint8)
    packed = word.view(torch.uint8).view(-1, lanes)[:, :width].reshape(-1)
    return packed[: packed_size(codes.numel(), bits)]


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the `count` codes, uint8 [count], that `pack` put into uint8 [ceil(count * bits / 8)]."""
    if bits == 8 or not count:
        return packed
    lanes, width = _group(bits)
    if width == 1:
        word = packed.to(_WORDS[lanes])
    else:
        groups = _whole(packed, width).view(-1, width)
        word = torch.nn.functional.pad(groups, (0, lanes - width)).view(-1).view(_WORDS[lanes])
    for shift, first, second, _ in reversed(_STEPS[bits]):
        word = (word << shift).bitwise_and_(second).bitwise_or_(word & first)
    return word.view(torch.uint8)[:count]
