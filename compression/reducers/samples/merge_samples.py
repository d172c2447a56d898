"""Merging alone: samples that the model looks at alike become their mean, and all tokens travel."""

from dataclasses import dataclass

from torch import Tensor

from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.reducers.base import Plan, Reducer, View
from splitfed.compression.reducers.samples.merging import Merging, kept, merge
from splitfed.seeds import Key


@dataclass(kw_only=True)
class MergePlan(Plan):
    """Which samples of a batch become one."""

    merging: Merging

    def reduce(self, activations: Tensor) -> Tensor:
        """Turn activations `[B, n, d]` into cluster means `[C, n, d]`."""
        return self.merging.average(activations)

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Turn labels `[B]` into soft targets `[C, classes]`."""
        return self.merging.soft_targets(labels, classes)

    def groups(self, samples: int) -> Tensor:
        """Return each sample's cluster, `[B]`."""
        return self.merging.assignment


class MergeSamples(Reducer):
    """The first half of ADC: samples cluster by CLS attention, each cluster becomes one soft-labelled sample.

    ADC, arXiv 2509.15058, section 3.
    """

    needs_attention = True
    separable = True

    def __init__(self, kept_samples: float) -> None:
        self.kept_samples = kept_samples

    def plan(self, view: View, key: Key) -> Plan:
        """Cluster the batch by its CLS attention."""
        attention = view.attention()
        return MergePlan(merging=merge(attention, kept(self.kept_samples, len(attention)), key))

    def expected(self, geometry: Geometry) -> Expected:
        """Return the bounds: merged samples `[1..T, n, d]` and as many soft targets."""
        most = kept(self.kept_samples, geometry.batch)
        return {
            "smashed": (Expect.floats((1, most), geometry.tokens, geometry.width),),
            "targets": (Expect.floats((1, most), geometry.classes),),
        }
