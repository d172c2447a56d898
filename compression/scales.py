"""Where the numbers of a tensor lie between: the low and the step of each of its grids, as 32 or as 16 bits."""

from math import frexp

import torch
from torch import Tensor

from splitfed.compression.buffers import from_buffer
from splitfed.compression.codec import Buffer

_SMALLEST_STEP = torch.finfo(torch.float32).tiny
_SMALLEST_HALF = torch.finfo(torch.float16).smallest_normal * 2.0**-10
# Rounding a number to float16 moves it by 2**-11 of itself, or by 2**-25 where it is small; this is a little more.
_OF_ITSELF, _AT_LEAST = 1.1 * 2.0**-11, 2.0**-25


def scales_size(grids: int, bits: int) -> int:
    """Return the bytes that the scales of so many grids take: 8 each, or 4 each and 4 for the unit of float16."""
    return 8 * grids if bits == 32 else 4 * grids + 4


def write_scales(low: Tensor, high: Tensor, levels: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return low and step (float32, shaped as given) of grids that reach from `low` to `high` in so many steps, as the
    receiver will read them, and their bytes (uint8)."""
    if bits == 32:
        # Not below the normal numbers, where a step would be too coarse to reach the largest value; equal values have
        # all their codes at 0 and are exact with any step.
        step = (high - low).div_(levels).clamp_(min=_SMALLEST_STEP)
        return low, step, torch.cat([low.reshape(-1), step.reshape(-1)]).view(torch.uint8)
    unit = 2.0 ** max(frexp(max(-float(low.min()), float(high.max())))[1] - 15, -102)
    start = low / unit
    start = (start - start.abs() * _OF_ITSELF - _AT_LEAST).half()
    low = start.float() * unit
    width = (high - low).div_(levels).div_(unit).clamp_(min=_SMALLEST_HALF)
    width = (width + width * _OF_ITSELF + _AT_LEAST).half()
    parts = [torch.cat([start.reshape(-1), width.reshape(-1)]), low.new_full((1,), unit)]
    return low, width.float() * unit, torch.cat([part.view(torch.uint8) for part in parts])


def read_scales(buffer: Buffer, shape: tuple[int, ...], bits: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return low and step of grids of this shape from the `scales_size` bytes that a peer wrote, not yet checked."""
    if bits == 32:
        low, step = from_buffer(buffer, torch.float32, device).view(2, *shape)
        return low, step
    unit = from_buffer(memoryview(buffer)[-4:], torch.float32, device)
    low, step = from_buffer(memoryview(buffer)[:-4], torch.float16, device).view(2, *shape).float() * unit
    return low, step
