"""No reduction: what leaves the front is what enters the back."""

from torch import Tensor

from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.reducers.base import Plan, Reducer, View, expected_targets
from splitfed.seeds import Key


class _Everything(Plan):
    def reduce(self, activations: Tensor) -> Tensor:
        return activations

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        return labels


class NoReduction(Reducer):
    """The identity, a real object so that the path of a batch is the same with and without reduction."""

    separable = True

    def plan(self, view: View, key: Key) -> Plan:
        """Keep everything."""
        return _Everything()

    def expected(self, geometry: Geometry) -> Expected:
        """Return the bounds: activations `[1..B, n, d]` and a label each."""
        smashed = Expect.floats((1, geometry.batch), geometry.tokens, geometry.width)
        return {"smashed": (smashed,), "targets": expected_targets(geometry)}
