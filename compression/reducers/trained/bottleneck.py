"""BottleNet++: trained layers that make each token narrower before it is sent, and wide again where it arrives.

    smashed[b, i] = W2 relu(W1 x[b, i] + b1) + b2          W1: d to h, W2: h to d'     (encoder, at the client)
    x~[b, i]      = W4 relu(W3 smashed[b, i] + b3) + b4    W3: d' to h, W4: h to d     (decoder, at the server)

After Shao and Zhang, "BottleNet++: An End-to-End Approach for Feature Compression in Device-Edge Co-Inference Systems",
2020, arXiv 1910.14315, as ADC is compared with it (arXiv 2509.15058): linear layers for each token where the original
has convolutions. Both learn with the model; encoders are averaged with the fronts, decoders go where the back goes.

Bytes of B samples without a lossless stage, in float32: up 4 B n d', down the same; d' / d of the uncompressed. The
encoder's (d + 1) h + (h + 1) d' numbers travel with the front, each way, as `parts`.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.reducers.base import Plan, Reducer, View, expected_targets
from splitfed.compression.reducers.trained.layers import Halves, mlp
from splitfed.seeds import Key


@dataclass(kw_only=True)
class EncodingPlan(Plan):
    """All tokens travel, as the encoder makes them."""

    encoder: nn.Module

    def reduce(self, activations: Tensor) -> Tensor:
        """Turn activations into what the encoder makes of them, in the encoder's precision."""
        return self.encoder(activations.to(next(self.encoder.parameters()).dtype))

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Return the labels `[B]` as they are: no sample is merged."""
        return labels


class Bottleneck(Reducer):
    """Encodes each token to `width` numbers and decodes it at the server."""

    separable = True

    def __init__(self, width: int, hidden: int | None = None) -> None:
        self.width, self.hidden = width, hidden

    def halves(self, geometry: Geometry, key: Key) -> Halves:
        """Return fresh layers for activations of `geometry.width` features."""
        wide, narrow = geometry.width, self.width
        hidden = self.hidden or (wide + narrow) // 2
        return Halves(mlp((wide, hidden, narrow), key.at("encoder")), mlp((narrow, hidden, wide), key.at("decoder")))

    def plan(self, view: View, key: Key) -> Plan:
        """Send what the encoder makes of the batch."""
        return EncodingPlan(encoder=view.encoder)

    def expected(self, geometry: Geometry) -> Expected:
        """Return the bounds: `[1..B, n, d']` and a label each."""
        smashed = Expect.floats((1, geometry.batch), geometry.tokens, self.width)
        return {"smashed": (smashed,), "targets": expected_targets(geometry)}
