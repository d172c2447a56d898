"""Who answers: an exit that is sure, or what comes after it. Confidences are in [0, 1], and 1 is sure."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from splitfed.errors import SplitfedError

Measure = Literal["probability", "margin", "entropy"]
MEASURES: tuple[Measure, ...] = get_args(Measure)


def confidence(probabilities: Tensor, measure: Measure) -> Tensor:
    """Return how sure answers are, `[..., C]` to `[...]`: by the largest `probability`, its `margin` over the second,
    or by `entropy`, as 1 - H / ln C."""
    if measure == "probability" or probabilities.shape[-1] == 1:
        return probabilities.amax(-1)
    if measure == "margin":
        first, second = probabilities.topk(2, -1).values.unbind(-1)
        return first - second
    entropy = torch.special.entr(probabilities).sum(-1)
    return (1 - entropy / math.log(probabilities.shape[-1])).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class Rule:
    """When an image's way ends. It is answered by the first exit whose confidence, by this `measure`, is `threshold` at
    least: with 0 all are answered by the first, with more than 1 none by any.

    Where its confidence has risen by less than `rise` since the exit before, it is given up there and sent on at once
    (recursive exits, arXiv 2412.19587, whose own rule is not public); None is never.
    """

    threshold: float
    measure: Measure = "probability"
    rise: float | None = None

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise SplitfedError(f"a confidence of {self.threshold:g}: it is 0 or more, and 1 is sure")

    def stops(self, now: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tell of images `[B]` with these confidences, and those at the exit before, which are answered here, and which
        are sent on from here; both bool `[B]`."""
        answered = now >= self.threshold
        if self.rise is None or before is None:
            return answered, torch.zeros_like(answered)
        return answered, ~answered & (now - before < self.rise)


@dataclass(frozen=True, slots=True)
class Routes:
    """Where the ways of N images ended: `answered` int64 `[N]` is the place of the exit among all, or their number
    where none answered; `left` that of the exit after which the image was sent on, the last one where it saw all."""

    answered: Tensor
    left: Tensor


def routes(confidences: Tensor, rule: Rule) -> Routes:
    """Follow images past exits whose confidences, `[E, N]`, are known."""
    exits, images = confidences.shape
    answered = torch.full((images,), exits, dtype=torch.int64)
    left = torch.full((images,), exits - 1, dtype=torch.int64)
    open_ = torch.ones(images, dtype=torch.bool)
    for place in range(exits):
        here, sent = rule.stops(confidences[place], confidences[place - 1] if place else None)
        answered[open_ & here], left[open_ & (here | sent)] = place, place
        open_ &= ~(here | sent)
    return Routes(answered, left)


def threshold_for(confidences: Tensor, right: Tensor, last_right: Tensor, accuracy: float, rule: Rule) -> float | None:
    """Return the lowest threshold with which so large a share of N images is answered rightly, or None where none is
    enough: `confidences` and `right` of the exits are `[E, N]`, `last_right` `[N]` is that of the whole model."""
    # Just above each confidence that occurs: between two of them nothing changes.
    above = torch.nextafter(confidences.flatten().float().unique(), torch.tensor(2.0))
    for threshold in _spread(torch.cat([torch.zeros(1), above])):
        found = routes(confidences, Rule(threshold, rule.measure, rule.rise))
        if float(chosen(right, last_right, found).float().mean()) >= accuracy:
            return threshold
    return None


def chosen(exits: Tensor, last: Tensor, found: Routes) -> Tensor:
    """Return for N images what answers them out of the exits' `[E, N]` and the whole model's `[N]`."""
    return torch.cat([exits, last[None]]).gather(0, found.answered[None])[0]


def _spread(values: Tensor, most: int = 512) -> list[float]:
    """Return some of ascending values, evenly among them, the first and the last with them."""
    if len(values) > most:
        values = values[torch.linspace(0, len(values) - 1, most).round().long()]
    return values.tolist()
