"""What a side with budgets computes for an image: of each block by the tokens that enter it, and of the way back what
leads to what trains.

A block's forward pass, its way back to the tokens, and that to its weights each take a t + b t^2 operations for t
tokens; torch counts them at two numbers of tokens, which gives a and b. The lowest block that trains is counted with
all of its way back, of which a part is left out where nothing below needs it.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from splitfed.model.adaptive.alast import Adaptive, Pass, still

_FEW, _MORE = 4, 8  # tokens
_DRAWS = 400  # mini-batches over which an expectation is the mean


@dataclass(frozen=True, slots=True)
class _Cost:
    """Operations by the number of tokens."""

    each: float
    pair: float

    @classmethod
    def of(cls, few: float, more: float) -> Self:
        pair = (more / _MORE - few / _FEW) / (_MORE - _FEW)
        return cls(few / _FEW - _FEW * pair, pair)

    def at(self, tokens: int) -> float:
        return self.each * tokens + self.pair * tokens * tokens


class PassOperations:
    """The operations of a part of the model for one image, without a reducer's. `whole` are those of a step and
    `forward` those of a forward pass alone where all blocks train on `tokens` tokens."""

    def __init__(self, blocks: nn.Sequential, width: int, tokens: int, whole: float, forward: float) -> None:
        device = next(blocks.parameters()).device
        counted = [_counted(blocks[0], torch.zeros(1, tokens, width, device=device)) for tokens in (_FEW, _MORE)]
        self._forward, self._back, self._weights = (_Cost.of(*both) for both in zip(*counted, strict=True))
        many = len(blocks)
        self._rest_forward = max(0.0, forward - many * self._forward.at(tokens))
        rest = whole - forward - many * (self._back.at(tokens) + self._weights.at(tokens))
        self._rest_back = max(0.0, rest)

    def forward(self, entered: tuple[int, ...]) -> float:
        """Return the operations of a forward pass alone."""
        return self._rest_forward + sum(map(self._forward.at, entered))

    def __call__(self, one: Pass, adaptive: Adaptive) -> int:
        """Return the operations of a pass for an image."""
        if adaptive.side == "front" and not one.learns:
            return round(self.forward(one.entered))
        embeds = one.learns and (adaptive.side == "back" or adaptive.settings.embedding != "never")
        lowest = 0 if embeds else min(one.trained, default=len(one.entered))
        back = sum(map(self._back.at, one.entered[lowest:]))
        weights = sum(self._weights.at(one.entered[block]) for block in one.trained)
        rest = self._rest_back if embeds or adaptive.side == "back" else 0.0
        return round(self.forward(one.entered) + back + weights + rest)


def _counted(block: nn.Module, tokens: Tensor) -> tuple[float, float, float]:
    """Count a block's forward pass, its way back to the tokens, and that to its weights."""

    def step(run: Callable[[Tensor], Tensor]) -> tuple[int, int]:
        given = tokens.clone().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            made = run(given)
            forward = counter.get_total_flops()
            made.backward(made)
        return forward, counter.get_total_flops()

    copy = deepcopy(block)  # whose gradients are nobody's
    (forward, still_all), (_, whole) = step(partial(still, copy)), step(copy)
    return forward, still_all - forward, whole - still_all


@dataclass(frozen=True, slots=True)
class Expected:
    """What is to be expected of a mini-batch before any budget has moved: operations of an image at both sides, with
    those of a forward pass alone, the share of mini-batches of which a gradient crosses the cut, and how many blocks of
    each side train."""

    front: float
    front_forward: float
    back: float
    back_forward: float
    learns: float
    blocks: tuple[float, float]


def expected(
    front: Adaptive, back: Adaptive, at_front: PassOperations, at_back: PassOperations, tokens: int, left: int,
    prefix: int,
) -> Expected:  # fmt: skip
    """Return what is to be expected where so many tokens enter the front, and so many are left that enter the back: the
    mean over many mini-batches."""
    ways = front.foreseen(tokens, prefix), back.foreseen(left, prefix)
    totals, trained = [0, 0], [0, 0]
    for step in range(_DRAWS):
        passed = front.pretend(step, ways[0]), back.pretend(step, ways[1])
        totals = [totals[0] + at_front(passed[0], front), totals[1] + at_back(passed[1], back)]
        trained = [number + len(one.trained) for number, one in zip(trained, passed, strict=True)]
    forwards = at_front.forward(ways[0]), at_back.forward(ways[1])
    return Expected(
        totals[0] / _DRAWS, forwards[0], totals[1] / _DRAWS, forwards[1], front.numbers.share,
        (trained[0] / _DRAWS, trained[1] / _DRAWS),
    )  # fmt: skip
