"""Numbers with which no training goes on: not finite, or finite and absurd.

A receiver of weights, activations, targets or gradients asks before it uses them, and whoever trains before an update:
one that is made with 1e30 spoils all that comes after it as surely as one with NaN. How much is absurd stands in
`splitfed.compression.expect`; both ends ask alike, so an honest client hears of itself first.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from splitfed.compression.expect import MOST_NUMBER
from splitfed.errors import Diverged

_SIDES = ("client", "server")
_MOST_FINITE = torch.finfo(torch.float32).max


def largest(tensors: Iterable[Tensor]) -> float:
    """Return the largest magnitude of any number in these tensors; NaN where one is NaN, and 0 where there is none."""
    ends = [torch.stack(tensor.detach().aminmax()) for tensor in tensors if tensor.numel()]
    # On the device, and told once: each look from outside would wait for the device.
    return float(torch.cat(ends).float().abs().amax()) if ends else 0.0


def check_number(
    what: str, number: float, where: object, most: float = MOST_NUMBER, sides: Sequence[str] = _SIDES
) -> None:
    """Raise Diverged for a number that is NaN or beyond `most` by its magnitude; `sides` are those whose learning rates
    may be the cause."""
    if not abs(number) <= most:
        raise Diverged(str(where), out_of_bounds(what, number, most), sides)


def most_norm(clip: float | None) -> float:
    """Return how large the norm of a gradient may be: what is clipped need only be finite."""
    return MOST_NUMBER if clip is None else _MOST_FINITE


def check_bounds(
    what: str, numbers: Tensor, where: object, most: float = MOST_NUMBER, sides: Sequence[str] = _SIDES
) -> None:
    """Raise Diverged unless all numbers of a tensor are within `most`."""
    check_number(what, largest([numbers]), where, most, sides)


def out_of_bounds(what: str, number: float, most: float = MOST_NUMBER) -> str:
    """Say that a number is not one to go on with."""
    value = f"{number:.1e}, beyond {most:g} and as good as " if math.isfinite(number) else ""
    return f"{what} is {value}NaN or infinite"


def shortened(samples: Tensor, norm: float | None) -> Tensor:
    """Return samples `[B, ...]` of which none has a larger L2 norm than `norm`, differentiably; all as they are where
    it is None."""
    return samples if norm is None else samples.renorm(2, 0, norm)
