"""Discarding alone: each sample keeps its prefix tokens and those that its class token attends to most."""

from dataclasses import dataclass

from torch import Tensor

from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.reducers.base import Plan, Reducer, View, expected_targets
from splitfed.compression.reducers.samples.merging import gather, kept_tokens, marked, strongest
from splitfed.seeds import Key


@dataclass(kw_only=True)
class DiscardPlan(Plan):
    """Which tokens of each sample travel: `positions` `[B, k]`, ascending."""

    positions: Tensor

    def reduce(self, activations: Tensor) -> Tensor:
        """Turn activations `[B, n, d]` into the kept tokens `[B, k, d]`."""
        return gather(activations, self.positions)

    def where(self) -> Tensor:
        """Return the positions `[B, k]`."""
        return self.positions

    def travelling(self, positions: Tensor) -> Tensor:
        """Return those of the kept tokens, `[B, k]`."""
        return positions.gather(1, self.positions)

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Return the labels `[B]` as they are: no sample is merged."""
        return labels

    def kept(self, samples: int, tokens: int) -> Tensor:
        """Return the marks `[B, n]` of the tokens that travel."""
        return marked(self.positions, tokens)


class DiscardTokens(Reducer):
    """The second half of ADC, for single samples instead of merged ones (ADC, arXiv 2509.15058, section 3)."""

    needs_attention = True
    separable = True

    def __init__(self, share: float) -> None:
        self.kept_tokens = share

    def places(self, geometry: Geometry) -> int:
        """Return the number of tokens."""
        return geometry.tokens

    def plan(self, view: View, key: Key) -> Plan:
        """Choose the tokens; nothing is drawn."""
        attention = view.attention()
        count = kept_tokens(self.kept_tokens, attention.shape[1], view.prefix)
        return DiscardPlan(positions=strongest(attention, count, view.prefix))

    def expected(self, geometry: Geometry) -> Expected:
        """Return the bounds: samples `[1..B, k, d]` and a label each."""
        count = kept_tokens(self.kept_tokens, geometry.tokens, geometry.prefix)
        smashed = Expect.floats((1, geometry.batch), count, geometry.width)
        return {"smashed": (smashed,), "targets": expected_targets(geometry)}
