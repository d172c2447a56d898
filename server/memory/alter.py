"""What makes stored samples look a little different in each pass, at no byte: mixed, with fewer tokens, under softer
labels."""

import torch
from torch import Tensor, nn

from splitfed.federation.memory import Memory
from splitfed.seeds import Key


class Alter:
    """Changes inputs of the back `[B, k, D]`, whose first `prefix` tokens always stay, and their targets as the
    settings of memory say."""

    def __init__(self, settings: Memory, prefix: int, classes: int) -> None:
        self._mix, self._drop, self._smooth = settings.mix, settings.drop_tokens, settings.smoothing
        self._prefix, self._classes = prefix, classes

    def __call__(self, inputs: Tensor, targets: Tensor, key: Key) -> tuple[Tensor, Tensor]:
        """Return altered inputs, and targets that are probabilities `[B, classes]` wherever they are not plain any
        more."""
        if self._drop:
            inputs = self._dropped(inputs, key.at("drop"))
        if self._mix or self._smooth:
            targets = self._soft(targets)
        if self._mix:
            inputs, targets = self._mixed(inputs, targets, key.at("mix"))
        return inputs, targets

    def _dropped(self, inputs: Tensor, key: Key) -> Tensor:
        """Leave out the same share of patch tokens of all samples, others of each: PatchDropout (arXiv 2208.07220)."""
        samples, tokens = inputs.shape[:2]
        rest = tokens - self._prefix
        kept = max(1, round(rest * (1 - self._drop)))
        if kept >= rest:
            return inputs
        scores = torch.rand(samples, rest, generator=key.generator())
        chosen = scores.topk(kept, dim=1).indices.sort(dim=1).values + self._prefix
        always = torch.arange(self._prefix).expand(samples, -1)
        places = torch.cat([always, chosen], dim=1).to(inputs.device)
        return inputs.gather(1, places.unsqueeze(-1).expand(-1, -1, inputs.shape[2]))

    def _soft(self, targets: Tensor) -> Tensor:
        if not targets.is_floating_point():
            targets = nn.functional.one_hot(targets, self._classes).float()
        return targets * (1 - self._smooth) + self._smooth / self._classes

    def _mixed(self, inputs: Tensor, targets: Tensor, key: Key) -> tuple[Tensor, Tensor]:
        """Mix each sample with another, all in one proportion: mixup (arXiv 1710.09412)."""
        share = _beta(self._mix, key.at("share"))
        others = torch.randperm(len(inputs), generator=key.at("others").generator()).to(inputs.device)
        return inputs.lerp(inputs[others], 1 - share), targets.lerp(targets[others], 1 - share)


def _beta(alpha: float, key: Key) -> float:
    """Draw from the beta distribution with both parameters `alpha`."""
    import numpy as np

    return float(np.random.default_rng(key.integer()).beta(alpha, alpha))
