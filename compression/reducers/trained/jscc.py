"""Joint source-channel coding: trained layers turn each token into complex symbols that a noisy channel carries.

    v[b, i]       = [Re, Im] of k complex numbers, each part by an MLP, d to k        (encoder, at the client)
    s[b, i]       = sqrt(k) v / |v|, of mean power 1
    smashed[b, i] = what a receiver makes of s[b, i] behind the channel, 2 k numbers  (`radio.py`)
    x~[b, i]      = MLP of smashed[b, i] with zeros up to the most symbols, 2 K to d  (decoder, at the server)

After the JSCC of "Adaptive Semantic Token Communication" (arXiv 2505.17604): MLPs of three layers, whose widths go
evenly from one end to the other; here weights are drawn uniformly within sqrt(6 / inputs), and biases are 0. The K
symbols that the layers can make are in order: at a smaller ratio the first k of them are sent, so one model that was
trained at many ratios and SNRs serves them all.

The channel is part of the client: what crosses is what the receiver would have, and the gradient that comes back goes
through the channel into the encoder. So nothing that the server is told of noise need be believed, and a run over a
network that loses nothing trains a model for a radio. What comes down is not disturbed.

Channel symbols of B samples: B n k. Bytes without a lossless stage, in float32: up 8 B n k, down the same. The encoder
travels with the front, each way, as `parts`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.reducers.base import Meta, Plan, Reducer, View, expected_targets
from splitfed.compression.reducers.trained.layers import Halves, mlp
from splitfed.compression.reducers.trained.radio import received, unit_power
from splitfed.errors import WireError
from splitfed.seeds import Key

_LAYERS = 3
Span = tuple[float, float]


@dataclass(kw_only=True)
class SymbolsPlan(Plan):
    """How many symbols a token is sent as, `count`, through which channel: the SNR of each sample, `[B]` decibels, or
    None for a channel without noise."""

    encoder: nn.Module
    count: int
    snr: Tensor | None
    fading: bool
    key: Key

    def reduce(self, activations: Tensor) -> Tensor:
        """Turn activations `[B, n, d]` into what a receiver has of their symbols, `[B, n, 2 k]`."""
        symbols = self.encoder(activations.to(next(self.encoder.parameters()).dtype), self.count)
        return symbols if self.snr is None else received(symbols, self.snr, self.fading, self.key)

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Return the labels `[B]` as they are: no sample is merged."""
        return labels


class Jscc(Reducer):
    """Sends tokens as complex symbols, `ratio` of them for each feature, through a channel of `snr` decibels (None: no
    noise). With `drawn_ratio` and `drawn_snr` each mini-batch draws its ratio, and each sample its SNR."""

    def __init__(
        self, ratio: float, drawn_ratio: Span | None, snr: float | None, drawn_snr: Span | None, fading: bool
    ) -> None:
        self._ratio, self._drawn_ratio, self._snr, self._drawn_snr = ratio, drawn_ratio, snr, drawn_snr
        self._fading = fading
        self.separable = drawn_ratio is None

    def halves(self, geometry: Geometry, key: Key) -> Halves:
        """Return fresh layers for activations of `geometry.width` features."""
        width, most = geometry.width, self._counts(geometry.width)[1]
        encoder = SymbolEncoder(width, most, count_of(self._ratio, width), key.at("encoder"))
        return Halves(encoder, SymbolDecoder(width, most, key.at("decoder")))

    def foreseen(self) -> "Jscc":
        """Return the same with the mean of the ratios that are drawn."""
        ratio = self._ratio if self._drawn_ratio is None else sum(self._drawn_ratio) / 2
        return Jscc(ratio, None, self._snr, self._drawn_snr, self._fading)

    def plan(self, view: View, key: Key) -> Plan:
        """Draw what is drawn."""
        samples, _, width = view.activations.shape
        low, high = self._counts(width)
        count = int(torch.randint(low, high + 1, (), generator=key.at("ratio").generator()))
        snr = None if self._snr is None else torch.full((samples,), self._snr)
        if self._drawn_snr is not None:
            low_snr, high_snr = self._drawn_snr
            snr = low_snr + (high_snr - low_snr) * torch.rand(samples, generator=key.at("snr").generator())
        return SymbolsPlan(
            encoder=view.encoder, count=count, snr=snr, fading=self._fading, key=key.at("channel")
        )  # fmt: skip

    def check(
        self, smashed: Tensor, targets: Tensor, side: Mapping[str, Tensor], meta: Meta, geometry: Geometry
    ) -> None:
        """Refuse half a symbol."""
        super().check(smashed, targets, side, meta, geometry)
        if smashed.shape[-1] % 2:
            raise WireError(f"tokens of {smashed.shape[-1]} numbers, where a symbol is two")

    def expected(self, geometry: Geometry) -> Expected:
        """Return the bounds: `[1..B, n, 2 k]` and a label each."""
        low, high = self._counts(geometry.width)
        smashed = Expect.floats((1, geometry.batch), geometry.tokens, (2 * low, 2 * high))
        return {"smashed": (smashed,), "targets": expected_targets(geometry)}

    def _counts(self, width: int) -> tuple[int, int]:
        """Return how few and how many symbols a token of so many features is sent as."""
        low, high = self._drawn_ratio or (self._ratio, self._ratio)
        return count_of(low, width), count_of(high, width)


class SymbolEncoder(nn.Module):
    """Tokens of `width` features to symbols, `most` at most and `count` unless another number is asked for."""

    def __init__(self, width: int, most: int, count: int, key: Key) -> None:
        super().__init__()
        self.most, self._count = most, count
        self.real, self.imaginary = (_layers(width, most, key.at(part)) for part in ("real", "imaginary"))

    def forward(self, activations: Tensor, count: int | None = None) -> Tensor:
        """Turn activations `[B, n, d]` into real and imaginary parts side by side, `[B, n, 2 k]`, of mean power 1 a
        symbol."""
        pairs = torch.stack([self.real(activations), self.imaginary(activations)], -1)
        return unit_power(pairs[..., : count or self._count, :].flatten(-2))


class SymbolDecoder(nn.Module):
    """Symbols, `most` at most, to tokens of `width` features."""

    def __init__(self, width: int, most: int, key: Key) -> None:
        super().__init__()
        self.most, self.layers = most, _layers(2 * most, width, key)

    def forward(self, smashed: Tensor) -> Tensor:
        """Turn `[B, n, 2 k]` into activations `[B, n, d]`; symbols that did not come are zeros."""
        return self.layers(pad(smashed, (0, 2 * self.most - smashed.shape[-1])))


def count_of(ratio: float, width: int) -> int:
    """Return the symbols that a token of so many features is sent as: the floor of that share, and at least one."""
    return max(1, int(ratio * width))


def _layers(first: int, last: int, key: Key) -> nn.Sequential:
    """Return an MLP whose widths go evenly from the first to the last."""
    layers = mlp([round(first + (last - first) * layer / _LAYERS) for layer in range(_LAYERS + 1)], key)
    for layer in layers:
        if isinstance(layer, nn.Linear):
            # As He et al. draw them for ReLU: else what tells tokens apart is lost beside the biases of three layers.
            layer.weight.data.mul_(sqrt(6))
            layer.bias.data.zero_()
    return layers
