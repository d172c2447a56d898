"""What stands for a mini-batch before there is any, so that whatever carries one can go through it and count.

`Cut`, `EvaluationCut`, `WeightWire` and the end of a stream each know which frames they send. Their `rehearse` packs
these, both ends in one place, and tells what each adds to the ledger.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from splitfed.compression.expect import Geometry
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


class RandomBatch:
    """A mini-batch of random activations, attention and labels, drawn from one key alone."""

    def __init__(self, examples: int, geometry: Geometry, key: Key, device: torch.device) -> None:
        self._generator, self._device = key.generator(), device
        self.activations = self.like((examples, geometry.tokens, geometry.width)).requires_grad_()
        self._attention = torch.rand(examples, geometry.tokens, generator=self._generator).to(device)
        self.labels = torch.randint(geometry.classes, (examples,), generator=self._generator).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def attention(self) -> Tensor:
        """Return what the class token would pay to all tokens, rows summing to 1."""
        return self._attention / self._attention.sum(1, True)

    def like(self, shape: tuple[int, ...]) -> Tensor:
        """Return random numbers of this shape: what a part of the model might make of the batch."""
        return torch.randn(shape, generator=self._generator).to(self._device)
