"""ADC, attention-based double compression: merge similar samples, then discard the merged samples' weak tokens."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor

from splitfed.compression.merging import Merging, gather, kept, kept_tokens, merge, strongest
from splitfed.compression.reducer import Plan, Reducer, View
from splitfed.config import Config
from splitfed.expect import Expect, Expected, Geometry
from splitfed.seeds import Key

Share = Annotated[float, Field(gt=0, le=1)]


class AdcConfig(Config):
    """How much of a batch ADC keeps: `ratio` = `kept_samples` * `kept_tokens`; any two of the three, or `ratio` alone.

    `ratio` alone is split evenly, which the paper found best: both shares are its square root.
    """

    kind: Literal["adc"] = "adc"
    ratio: Share | None = None
    kept_samples: Share | None = None
    kept_tokens: Share | None = None
    iterations: int = Field(50, ge=1)

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
        return Adc(*self.shares(), self.iterations)


@dataclass(kw_only=True)
class AdcPlan(Plan):
    """Which samples of a batch become one, and which tokens each merged sample keeps: `positions` `[C, k]`."""

    merging: Merging
    positions: Tensor

    def reduce(self, activations: Tensor) -> Tensor:
        """Turn activations `[B, n, d]` into merged and thinned samples `[C, k, d]`."""
        # the same as merging first, without averaging what is then discarded
        return self.merging.average(gather(activations, self.positions[self.merging.assignment]))

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Turn labels `[B]` into soft targets `[C, classes]`."""
        return self.merging.soft_targets(labels, classes)


class Adc(Reducer):
    """Merges samples whose class tokens attend alike, keeps the tokens with the highest mean attention.

    ADC, arXiv 2509.15058, section 3. The server needs no half of its own: the back takes any number of tokens.
    """

    needs_attention = True

    def __init__(self, kept_samples: float, kept_tokens: float, iterations: int = 50) -> None:
        self.kept_samples = kept_samples
        self.kept_tokens = kept_tokens
        self.iterations = iterations

    def plan(self, view: View, key: Key) -> Plan:
        """Cluster the batch by its CLS attention and choose each cluster's tokens by the centroid's."""
        attention = view.attention()
        merging = merge(attention, kept(self.kept_samples, len(attention)), key, self.iterations)
        count = kept_tokens(self.kept_tokens, attention.shape[1], view.prefix)
        return AdcPlan(merging=merging, positions=strongest(merging.average(attention), count, view.prefix))

    def expected(self, geometry: Geometry) -> Expected:
        """Return the bounds: merged samples `[1..T, k, d]` and as many soft targets."""
        most = kept(self.kept_samples, geometry.batch)
        count = kept_tokens(self.kept_tokens, geometry.tokens, geometry.prefix)
        return {
            "smashed": (Expect.floats((1, most), count, geometry.width),),
            "targets": (Expect.floats((1, most), geometry.classes),),
        }
