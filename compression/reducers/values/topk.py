"""Top-k sparsification: of each sample its k values of largest magnitude travel, with their places.

The server puts them back among zeros; the gradient that comes down is that of these k values, which know their places.

    smashed[b, j] = x[b, p_j],   p_1 < ... < p_k   places in the flattened sample of n * d values
    gaps[b, j]    = p_j - p_(j-1) - 1              (p_0 = -1)

Bytes of B samples without a lossless stage, in float32: up 4 B k of values, 1 + ceil(B k w / 8) of gaps, w being the
bits of the largest one; down 4 B k. Gaps say as much as places do, in fewer bits, and no place can come twice.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.reducers.base import (
    Meta,
    Plan,
    Reducer,
    View,
    expected_targets,
    meta_number,
)
from splitfed.compression.reducers.samples.merging import kept
from splitfed.errors import WireError
from splitfed.seeds import Key


@dataclass(kw_only=True)
class SparsePlan(Plan):
    """Which values of each flattened sample travel: `places` `[B, k]`, ascending."""

    places: Tensor

    def reduce(self, activations: Tensor) -> Tensor:
        """Turn activations `[B, n, d]` into the kept values `[B, k]`."""
        return activations.flatten(1).gather(1, self.places)

    def where(self) -> Tensor:
        """Return the places `[B, k]` in the flattened samples."""
        return self.places

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Return the labels `[B]` as they are: no sample is merged."""
        return labels

    def kept(self, samples: int, tokens: int) -> Tensor:
        """Return the share `[B, n]` of each token's values that travel."""
        width = int(self.meta["width"])
        counts = torch.zeros(samples, tokens, device=self.places.device)
        return counts.scatter_add_(1, self.places // width, torch.ones_like(self.places, dtype=counts.dtype)) / width


class Sparse(Reducer):
    """Values and gaps up, zeros filled in at the server; a subclass says which values."""

    separable = True
    side_places = True

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio

    @abstractmethod
    def choose(self, magnitudes: Tensor, count: int, key: Key) -> Tensor:
        """Return the places `[B, count]`, ascending, to be kept of magnitudes `[B, n * d]`."""

    def places(self, geometry: Geometry) -> int:
        """Return the number of values of a sample."""
        return geometry.tokens * geometry.width

    def where(self, side: Mapping[str, Tensor]) -> Tensor:
        """Return the places that the gaps lead to."""
        return _places(side["gaps"])

    def plan(self, view: View, key: Key) -> Plan:
        """Choose the values."""
        _, tokens, width = view.activations.shape
        # NaN compares with nothing; as the largest it is kept, and the codec says what is wrong
        magnitudes = view.activations.flatten(1).float().abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
        places = self.choose(magnitudes, kept(self.ratio, tokens * width, least=1), key)
        gaps = places.diff(dim=1, prepend=places.new_full((len(places), 1), -1)) - 1
        return SparsePlan(side={"gaps": gaps}, meta={"tokens": tokens, "width": width}, places=places)

    def check(
        self, smashed: Tensor, targets: Tensor, side: Mapping[str, Tensor], meta: Meta, geometry: Geometry
    ) -> None:
        """Refuse gaps that lead out of a sample, and samples of another size than those of this cut."""
        super().check(smashed, targets, side, meta, geometry)
        gaps, size = side["gaps"], geometry.tokens * geometry.width
        meta_number(meta, "tokens", geometry.tokens, geometry.tokens)
        meta_number(meta, "width", geometry.width, geometry.width)
        if gaps.shape != smashed.shape:
            raise WireError(f"gaps {tuple(gaps.shape)} for values {tuple(smashed.shape)}")
        low, high = (int(bound) for bound in gaps.aminmax())
        # one by one first: their sum could overflow
        if low < 0 or high >= size or int(_places(gaps)[:, -1].max()) >= size:
            raise WireError(f"gaps that lead out of a sample of {size} values")

    def restore(
        self, smashed: Tensor, side: Mapping[str, Tensor], meta: Meta, decoder: nn.Module | None = None
    ) -> Tensor:  # fmt: skip
        """Turn values `[B, k]` into samples `[B, n, d]` with zeros everywhere else."""
        tokens, width = int(meta["tokens"]), int(meta["width"])
        whole = smashed.new_zeros(len(smashed), tokens * width)
        return whole.scatter(1, _places(side["gaps"]), smashed).unflatten(1, (tokens, width))

    def expected(self, geometry: Geometry) -> Expected:
        """Return the bounds: values and gaps `[1..B, k]`, and a label each."""
        count = kept(self.ratio, geometry.tokens * geometry.width, least=1)
        return {
            "smashed": (Expect.floats((1, geometry.batch), count),),
            "side/gaps": (Expect.integers((1, geometry.batch), count),),
            "targets": expected_targets(geometry),
        }


class TopK(Sparse):
    """The k largest magnitudes of each flattened sample; of equal ones the first. As in Zheng et al., 2023 (arXiv
    2305.18469), to whom top-k is what the randomised one is compared with."""

    def choose(self, magnitudes: Tensor, count: int, key: Key) -> Tensor:
        """Return the places of the largest; nothing is drawn."""
        return first_largest(magnitudes, count)


class RandomTopK(Sparse):
    """k values drawn one after the other without repetition: each place of the top k has the weight (1 - alpha) / k,
    each of the N - k others alpha / (N - k) (Zheng et al., 2023, arXiv 2305.18469; alpha 0.1 where ADC is compared
    with it).

    The top ones run out while the others hardly do, so the share u of others in what is kept is above alpha: for
    1 << k << N it solves u + alpha / (1 - alpha) ln u = 0, which is 0.19 for alpha 0.1. With alpha 0 it is top-k.
    """

    def __init__(self, ratio: float, alpha: float) -> None:
        super().__init__(ratio)
        self.alpha = alpha

    def choose(self, magnitudes: Tensor, count: int, key: Key) -> Tensor:
        """Return the places drawn: those of the k first arrivals, where each has an exponential clock whose rate is its
        weight (Efraimidis and Spirakis, 2006), which is drawing one after the other."""
        samples, size = magnitudes.shape
        if count == size:
            return torch.arange(size, device=magnitudes.device).expand(samples, -1)
        top = first_largest(magnitudes, count)
        weights = torch.full_like(magnitudes, self.alpha / (size - count)).scatter_(1, top, (1 - self.alpha) / count)
        clocks = torch.empty_like(magnitudes).exponential_(generator=key.generator(magnitudes.device))
        return first_largest(weights / clocks, count)


def first_largest(scores: Tensor, count: int) -> Tensor:
    """Return the places `[B, count]`, ascending, of the largest of scores `[B, N]`, none of them NaN; of equal ones
    the first."""
    least = scores.topk(count, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, equal = scores > least, scores == least
    chosen = above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))
    return chosen.nonzero()[:, 1].view(len(scores), count)


def _places(gaps: Tensor) -> Tensor:
    return (gaps + 1).cumsum(1) - 1
