"""What stands for a mini-batch before there is any, so that whatever carries one can go through it and count.

`Cut`, `EvaluationCut`, `WeightWire` and the end of a stream each know which frames they send. Their `rehearse` packs
these, both ends in one place, and tells what each adds to the ledger.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from splitfed.compression.expect import Geometry
from splitfed.model.adaptive.alast import adaptives
from splitfed.run.ledger import Direction, Sizes
from splitfed.seeds import Key
from splitfed.wire.frame import Place

Crossed = tuple[Direction, dict[str, Sizes]]
"""Which way a frame goes, and what it adds to the ledger, by role."""

Pair = tuple[int, int]
"""The bytes of a frame up, and of its answer down."""

PLACE = Place(1, 0, 1)  # of a frame that is rehearsed


def size(roles: Mapping[str, Sizes]) -> int:
    """Return the bytes of a frame before the lossless stage."""
    return sum(part.coded or part.sent for part in roles.values())


def pairs(frames: Iterable[Crossed]) -> list[Pair]:
    """Return the bytes of frames up, each with those of its answer."""
    sizes = [size(roles) for _, roles in frames]
    return list(zip(sizes[::2], sizes[1::2], strict=True))


def mixed(share: float, answered: list[Pair], quiet: list[Pair]) -> list[Pair]:
    """Return the frames of a mini-batch on average, of which a `share` is answered with a gradient."""
    return [
        (up, round(share * down + (1 - share) * other)) for (up, down), (_, other) in zip(answered, quiet, strict=True)
    ]


# How the variances of rows fall, the k-th largest as k to minus this, and the share of activations' variance that is
# their position's: measured behind three blocks of a pretrained DeiT-Tiny, whose activations of photographs of 32 and
# of 224 px, and their gradients, `klt` wrote in as many bytes as such random rows, give or take a fifth. Behind random
# weights they took an eighth of that, and rows of equal variance more than twice as many.
_ACTIVATIONS, _GRADIENTS = 1.2, 1.0
_POSITIONS = 0.3


class RandomBatch:
    """A mini-batch of random activations, attention and labels, drawn from one key alone.

    What depends on values and not on shapes alone, such as the bytes of a codec that looks for what rows have in
    common, is told as for a pretrained front. One that starts from random weights sends less at first. A `back` is for
    how many tokens it passes on to a tail, if its blocks have budgets. Of so many `samples` of a client, in all their
    variants, it has the last, whose `ids` take the most bits."""

    def __init__(
        self, examples: int, geometry: Geometry, key: Key, device: torch.device, back: nn.Module | None = None,
        samples: int = 0,
    ) -> None:  # fmt: skip
        self._generator, self._device, self._prefix = key.generator(), device, geometry.prefix
        self._back = next(iter(adaptives(back)), None)
        self.ids = torch.arange(examples) + max(0, samples - examples)
        shape = (examples, geometry.tokens, geometry.width)
        positions = torch.randn(shape[1:], generator=self._generator).to(device)
        own = self._rows(shape, _ACTIVATIONS)
        self.activations = (own * (1 - _POSITIONS) ** 0.5 + positions * _POSITIONS**0.5).requires_grad_()
        self._attention = torch.rand(examples, geometry.tokens, generator=self._generator).to(device)
        self.labels = torch.randint(geometry.classes, (examples,), generator=self._generator).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def attention(self, tokens: int | None = None) -> Tensor:
        """Return what the class token would pay to all tokens, or to the first so many, rows summing to 1."""
        seen = self._attention[:, :tokens]
        return seen / seen.sum(1, True)

    def like(self, shape: tuple[int, ...]) -> Tensor:
        """Return random numbers of this shape: what might be the gradient of a part of the model."""
        return self._rows(shape, _GRADIENTS)

    def behind(self, restored: Tensor) -> Tensor:
        """Return what stands for the output of the back, of what stands for its input."""
        return restored if self._back is None else restored[:, : self._back.leaves(restored.shape[1], self._prefix)]

    def _rows(self, shape: tuple[int, ...], fall: float) -> Tensor:
        """Return numbers of mean variance 1 whose rows vary along the waves of a cosine transform, ever less."""
        places = torch.arange(shape[-1], dtype=torch.float64)
        waves = torch.cos(torch.pi / shape[-1] * places[:, None] * (places + 0.5))
        waves = waves / waves.norm(dim=1, keepdim=True)
        variances = (places + 1) ** -fall
        mixed = ((variances / variances.mean()).sqrt()[:, None] * waves).float().numpy()
        drawn = torch.randn(shape, generator=self._generator).numpy()
        # By numpy: torch would count this product among what a step computes.
        return torch.from_numpy(drawn @ mixed).to(self._device)
