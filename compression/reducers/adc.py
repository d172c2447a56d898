"""ADC, attention-based double compression: merge similar samples, then discard the merged samples' weak tokens.

Bytes without a lossless stage, in float32, of T merged samples of k tokens (k + 1 with `fuse`): up 4 T k d, and 4 T C
of soft targets over C classes; down 4 T k d.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.reducers.base import Plan, Reducer, ReducerSettings, View
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

Share = Annotated[float, Field(gt=0, le=1)]


Pooling = Literal["attention", "cls", "average"]


class AdcConfig(ReducerSettings):
    """Merge samples that are looked at alike, then discard the tokens that are hardly looked at.

    `ratio` = `kept_samples` * `kept_tokens`: give any two of the three, or `ratio` alone, which is split evenly, as the
    paper found best: both shares are its square root. `pooling` is what samples are compared by: the attention of the
    class token, that token itself, or the average of all tokens. `fuse` makes one more token of those that are
    discarded.
    """

    kind: Literal["adc"] = "adc"
    ratio: Share | None = None
    kept_samples: Share | None = None
    kept_tokens: Share | None = None
    iterations: int = Field(50, ge=1)
    pooling: Pooling = "attention"
    fuse: bool = False

    @model_validator(mode="after")
    def _shares_fit(self) -> "AdcConfig":
        self.shares()
        return self

    def shares(self) -> tuple[float, float]:
        """Return the kept shares of samples and of tokens. Raises ValueError where they are not determined."""
        ratio, samples, tokens = self.ratio, self.kept_samples, self.kept_tokens
        if ratio is None:
            if samples is None or tokens is None:
                raise ValueError("give ratio, or both kept_samples and kept_tokens")
            return samples, tokens
        if samples is None and tokens is None:
            return math.sqrt(ratio), math.sqrt(ratio)
        if samples is not None and tokens is not None:
            raise ValueError("ratio is kept_samples * kept_tokens: give two of the three, not all")
        other = ratio / (tokens if samples is None else samples)  # type: ignore[operator]
        if other > 1:
            given = "kept_tokens" if samples is None else "kept_samples"
            raise ValueError(f"{given} is below ratio, which would need a share of {other:.3g} of the others")
        return (other, tokens) if samples is None else (samples, other)  # type: ignore[return-value]

    def build(self) -> "Adc":
        """Return the reducer."""
        return Adc(*self.shares(), self.iterations, self.pooling, self.fuse)


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

    def __init__(
        self, kept_samples: float, kept_tokens: float, iterations: int = 50, pooling: Pooling = "attention",
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
