"""Semantic tokens: gates in the front close tokens, more or fewer of each sample; what is left of them travels.

    counts[b] = p + the patch tokens open in sample b, at least 1             p: prefix tokens, which always travel
    smashed   = the open tokens of all samples, one after the other          [T, d], T = sum of counts

One model serves every budget, the share of patch tokens that is left, as `reducers/trained/gates.py` explains. The
server fills samples up to the longest one with zeros, to which no token attends; these never cross.

Bytes of B samples of n tokens without a lossless stage, in float32, at the budget beta in training: up 4 T d with
T = B p + max(B, round(beta B (n - p))), and 1 + ceil(B w / 8) of counts, w being the bits of the largest; down 4 T d.
The gates travel with the front, as `parts`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.reducers.base import Meta, Plan, Reducer, View, expected_targets
from splitfed.compression.reducers.tokens.ragged import padded
from splitfed.compression.reducers.trained.gates import TokenGates
from splitfed.compression.reducers.trained.layers import IDENTITY, Halves
from splitfed.errors import WireError
from splitfed.seeds import Key


@dataclass(kw_only=True)
class OpenPlan(Plan):
    """Which tokens travel: those that are `open`, bool `[B, n]`."""

    open: Tensor

    def reduce(self, activations: Tensor) -> Tensor:
        """Turn activations `[B, n, d]` into the open tokens, `[T, d]`."""
        return activations.flatten(0, 1).index_select(0, self.open.flatten().nonzero().squeeze(1))

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Return the labels `[B]` as they are: no sample is merged."""
        return labels

    def kept(self, samples: int, tokens: int) -> Tensor:
        """Return the marks `[B, n]` of the tokens that travel."""
        return self.open.float()


class SemanticTokens(Reducer):
    """Sends the tokens that the front's gates leave open (arXiv 2405.02330): in evaluation the share `budget`, in
    training one that each mini-batch draws evenly from a range `drawn`, or `budget` where that is None."""

    ragged = True
    evaluates = True

    def __init__(self, budget: float, drawn: tuple[float, float] | None, gates: int) -> None:
        self._budget, self._drawn, self._gates = budget, drawn, gates

    def halves(self, geometry: Geometry, key: Key) -> Halves:
        """Return fresh gates; nothing is encoded."""
        gates = TokenGates(geometry.width, geometry.prefix, self._gates, self._budget, key.at("gates"))
        return Halves(IDENTITY, IDENTITY, gates=gates)

    def budget(self, key: Key) -> float:
        """Return the budget of a mini-batch of training."""
        if self._drawn is None:
            return self._budget
        low, high = self._drawn
        return low + (high - low) * float(torch.rand((), generator=key.generator()))

    def lengths(self, side: Mapping[str, Tensor]) -> Tensor:
        """Return the counts."""
        return side["counts"]

    def stand_in(self, activations: Tensor, prefix: int, key: Key, training: bool = True) -> Tensor:
        """Close random patch tokens, as many as a mean budget closes of all samples together."""
        budget = sum(self._drawn) / 2 if training and self._drawn else self._budget
        samples, tokens, _ = activations.shape
        patches = samples * (tokens - prefix)
        order = torch.randperm(patches, generator=key.at("closed").generator()).view(samples, tokens - prefix)
        order = order.scatter(1, order.argmin(1, keepdim=True), -1)  # one of each sample is left
        left = order < 0
        rest = order[~left].sort().values[: max(0, round(budget * patches) - samples)]
        left |= torch.isin(order, rest)
        left = nn.functional.pad(left, (prefix, 0), value=True)
        return activations * left.unsqueeze(-1).to(activations.device)

    def plan(self, view: View, key: Key) -> Plan:
        """Send what is not closed; the front has decided it."""
        found = view.activations.ne(0).any(-1)
        found[:, : view.prefix] = True
        return OpenPlan(side={"counts": found.sum(1)}, open=found)

    def check(
        self, smashed: Tensor, targets: Tensor, side: Mapping[str, Tensor], meta: Meta, geometry: Geometry
    ) -> None:
        """Refuse counts that no sample can have, and those that are not of what came."""
        counts = side["counts"]
        if len(targets) != len(counts):
            raise WireError(f"{len(targets)} targets for {len(counts)} samples")
        low, high = (int(bound) for bound in counts.aminmax())
        least = min(geometry.prefix + 1, geometry.tokens)
        if low < least or high > geometry.tokens:
            raise WireError(f"samples of {low} to {high} tokens, where {least} to {geometry.tokens} are sent")
        if (total := int(counts.sum())) != len(smashed):
            raise WireError(f"{len(smashed)} tokens, where the samples have {total}")

    def restore(
        self, smashed: Tensor, side: Mapping[str, Tensor], meta: Meta, decoder: nn.Module | None = None
    ) -> Tensor:  # fmt: skip
        """Turn tokens `[T, d]` into samples filled up with zeros, `[B, longest, d]`."""
        return padded(smashed, side["counts"])

    def expected(self, geometry: Geometry) -> Expected:
        """Return the bounds: `[1..B n, d]` tokens, `[1..B]` counts, and a label each."""
        return {
            "smashed": (Expect.floats((1, geometry.batch * geometry.tokens), geometry.width),),
            "side/counts": (Expect.integers((1, geometry.batch)),),
            "targets": expected_targets(geometry),
        }
