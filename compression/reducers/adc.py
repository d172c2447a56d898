"""ADC, attention-based double compression: merge similar samples, then discard the merged samples' weak tokens.

Bytes without a lossless stage, in float32, of T merged samples of k tokens (k + 1 with `fuse`): up 4 T k d, and 4 T C
of soft targets over C classes; down 4 T k d.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.reducers.base import Plan, Reducer, View
from splitfed.compression.reducers.samples.merging import (
    Merging,
    fuse,
    gather,
    kept,
    kept_tokens,
    marked,
    merge,
    strongest,
    weak,
)
from splitfed.seeds import Key


@dataclass(kw_only=True)
class AdcPlan(Plan):
    """Which samples of a batch become one, which tokens each merged sample keeps: `positions` `[C, k]`; and the weights
    `[C, n]` of the discarded ones in one token more, if they are fused."""

    merging: Merging
    positions: Tensor
    weights: Tensor | None = None

    def reduce(self, activations: Tensor) -> Tensor:
        """Turn activations `[B, n, d]` into merged and thinned samples `[C, k, d]`, or `[C, k + 1, d]`."""
        # the same as merging first, without averaging what is then discarded
        tokens = gather(activations, self.positions[self.merging.assignment])
        if self.weights is not None:
            tokens = torch.cat([tokens, fuse(activations, self.weights[self.merging.assignment])], 1)
        return self.merging.average(tokens)

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Turn labels `[B]` into soft targets `[C, classes]`."""
        return self.merging.soft_targets(labels, classes)

    def kept(self, samples: int, tokens: int) -> Tensor:
        """Return the marks `[B, n]` of the tokens that each sample's cluster keeps; fused ones have no place left."""
        return marked(self.positions[self.merging.assignment], tokens)

    def groups(self, samples: int) -> Tensor:
        """Return each sample's cluster, `[B]`."""
        return self.merging.assignment


class Adc(Reducer):
    """Merges samples whose class tokens attend alike, keeps the tokens with the highest mean attention.

    ADC, arXiv 2509.15058, section 3. The server needs no half of its own: the back takes any number of tokens.
    Whatever samples are compared by, tokens are chosen by attention.
    """

    needs_attention = True
    separable = True

    def __init__(
        self, kept_samples: float, kept_tokens: float, iterations: int = 50, pooling: str = "attention",
        fuse: bool = False,
    ) -> None:  # fmt: skip
        self.kept_samples = kept_samples
        self.kept_tokens = kept_tokens
        self.iterations = iterations
        self.pooling = pooling
        self.fuse = fuse

    def plan(self, view: View, key: Key) -> Plan:
        """Cluster the batch, and choose each cluster's tokens by its mean attention."""
        attention = view.attention()
        points = self._points(view.activations, attention)
        merging = merge(points, kept(self.kept_samples, len(points)), key, self.iterations)
        count = kept_tokens(self.kept_tokens, attention.shape[1], view.prefix)
        centroids = merging.average(attention)
        positions = strongest(centroids, count, view.prefix)
        weights = weak(centroids, positions) if self.fuse and count < attention.shape[1] else None
        return AdcPlan(merging=merging, positions=positions, weights=weights)

    def _points(self, activations: Tensor, attention: Tensor) -> Tensor:
        if self.pooling == "attention":
            return attention
        return activations[:, 0] if self.pooling == "cls" else activations.mean(1)

    def expected(self, geometry: Geometry) -> Expected:
        """Return the bounds: merged samples `[1..T, k, d]`, fused `[1..T, k + 1, d]`, and as many soft targets."""
        most = kept(self.kept_samples, geometry.batch)
        count = kept_tokens(self.kept_tokens, geometry.tokens, geometry.prefix)
        count += self.fuse and count < geometry.tokens
        return {
            "smashed": (Expect.floats((1, most), count, geometry.width),),
            "targets": (Expect.floats((1, most), geometry.classes),),
        }
