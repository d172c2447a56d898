"""What the server takes of weights that come back: nothing absurd, and, where it is asked to clip, no update that is
longer than the scenario says."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from splitfed.compression.expect import most_weight
from splitfed.split.bounds import check_number, largest

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Given:
    """What a client was sent: how large its largest weight is, and all of them where its update is to be clipped."""

    largest: float
    weights: Weights | None


class Guard:
    """Measures what comes back against what was sent; `clip` is the largest L2 norm of an update, None for any."""

    def __init__(self, clip: float | None = None) -> None:
        self.clip = clip

    def given(self, weights: Weights) -> Given:
        """Return what to remember of the weights that a client was sent."""
        return Given(largest(weights.values()), weights if self.clip is not None else None)

    def taken(self, weights: dict[str, Tensor], given: Given | None, where: str) -> dict[str, Tensor]:
        """Return the weights that came back to those that were `given` (None: not known), their update shortened to
        `clip`. Raises Diverged where training cannot have made them, or one of them is NaN."""
        most = most_weight(given.largest if given else 0.0)
        check_number("the largest of its weights", largest(weights.values()), where, most, ("client",))
        if self.clip is None or given is None or given.weights is None:
            return weights
        return shortened(weights, given.weights, self.clip)


def shortened(weights: dict[str, Tensor], start: Weights, norm: float) -> dict[str, Tensor]:
    """Return weights whose distance to `start`, over all tensors together, is `norm` at most; in the same direction."""
    updates = {name: tensor.double() - start[name].double() for name, tensor in weights.items()}
    length = math.sqrt(math.fsum(float(update.square().sum()) for update in updates.values()))
    if length <= norm:
        return weights
    return {name: (start[name].double() + update * (norm / length)).float() for name, update in updates.items()}
