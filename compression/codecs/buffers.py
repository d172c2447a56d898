"""Tensors to raw little-endian bytes and back, with as few copies as torch allows, and the checks all codecs share."""

from math import isfinite

import torch
from torch import Tensor

from splitfed.compression.codecs.base import Buffer
from splitfed.errors import CodecError

FLOATS = frozenset({"float32", "float16", "bfloat16", "float64"})


def dtype_name(tensor: Tensor) -> str:
    """Return the torch name of a tensor's dtype, `"float32"`."""
    return str(tensor.dtype).removeprefix("torch.")


def float_dtype(tensor: Tensor) -> str:
    """Return the dtype's name; CodecError unless it is a float that codecs carry."""
    name = dtype_name(tensor)
    if name not in FLOATS:
        raise CodecError(f"no codec carries tensors of {name}; convert to float32 or int64 first")
    return name


def to_buffer(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor without copying one that is on the CPU: hand over its memory with it."""
    return tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy().data


def from_buffer(buffer: Buffer, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return a one-dimensional tensor of these bytes, in memory of its own; their number must fit the dtype."""
    if not len(buffer):
        return torch.empty(0, dtype=dtype, device=device)
    # A bytearray, because torch wants writable memory and a slice of a frame is neither that nor aligned.
    return torch.frombuffer(bytearray(buffer), dtype=dtype).to(device)


def bounds_fit(tensor: Tensor, *dtypes: torch.dtype) -> bool:
    """Tell whether a float tensor, which must have elements, is finite and stays so when converted to these dtypes, one
    after the other.

    Only the smallest and the largest value are converted: both carry NaN on, and rounding keeps the order. Where the
    dtype stays, a finite sum shows as much in a quarter of the time; one that is not may have overflowed.
    """
    if all(dtype == tensor.dtype for dtype in dtypes) and isfinite(tensor.sum().item()):
        return True
    bounds = torch.stack(torch.aminmax(tensor))
    for dtype in dtypes:
        bounds = bounds.to(dtype)
    return bool(bounds.isfinite().all())
