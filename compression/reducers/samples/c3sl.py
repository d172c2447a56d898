"""C3-SL: batch-wise compression by circular convolution. R samples become one, and one becomes R noisy samples again.

    encode (client):  s_g = sum_r  k_r (*) z_(gR+r)         (*) circular convolution over the N = n * d flattened values
    decode (server):  z~_(gR+r) = k_r (.) s_g               (.) circular correlation, the adjoint of (*)
    k_r = v_r / |v_r|,  v_r drawn from N(0, 1/N)            R keys for the whole run

Hsieh, Chuang and Wu, "C3-SL: Circular Convolution-Based Batch-Wise Compression for Communication-Efficient Split
Learning", 2022, arXiv 2207.12397. Random keys are nearly orthogonal, so each sample comes back with noise, from the
others of its group and from its own key. Keys never travel: a number does, from which both sides draw them.

Bytes of B samples without a lossless stage, in float32: up 4 ceil(B / R) N, down the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.fft import irfft, rfft
from torch.nn.functional import pad

from splitfed.compression.expect import Expect, Expected, Geometry
from splitfed.compression.reducers.base import (
    Meta,
    Plan,
    Reducer,
    View,
    expected_targets,
    meta_number,
)
from splitfed.errors import WireError
from splitfed.seeds import Key


@dataclass(kw_only=True)
class BindingPlan(Plan):
    """Groups of `r` samples in the order of the batch, bound by the keys of the number in `meta`."""

    r: int

    def reduce(self, activations: Tensor) -> Tensor:
        """Turn activations `[B, n, d]` into sums of bound samples `[ceil(B / R), n, d]`."""
        samples = _wide(activations.flatten(1))
        bound = bind(samples, _spectra_for(samples, int(self.meta["keys"]), self.r))
        return bound.unflatten(1, activations.shape[1:])

    def targets(self, labels: Tensor, classes: int) -> Tensor:
        """Return the labels `[B]` as they are: the server gets as many samples back."""
        return labels


class C3sl(Reducer):
    """Binds `r` samples into one with keys that belong to the run's seed, and unbinds them at the server."""

    def __init__(self, r: int) -> None:
        self.r = r

    def plan(self, view: View, key: Key) -> Plan:
        """Take the batch as it comes, and the same keys for every batch of a run: the back learns with their noise."""
        keys = Key(key.seed, ("c3sl",)).integer()
        return BindingPlan(meta={"keys": keys, "samples": len(view.activations)}, r=self.r)

    def check(
        self, smashed: Tensor, targets: Tensor, side: Mapping[str, Tensor], meta: Meta, geometry: Geometry
    ) -> None:
        """Refuse another number of groups or of targets than the samples in them make."""
        meta_number(meta, "keys", 0, 2**63 - 1)
        samples = meta_number(meta, "samples", 1, geometry.batch)
        if len(targets) != samples or len(smashed) != -(-samples // self.r):
            raise WireError(f"{len(targets)} targets and {len(smashed)} groups of {self.r} for {samples} samples")

    def restore(
        self, smashed: Tensor, side: Mapping[str, Tensor], meta: Meta, decoder: nn.Module | None = None
    ) -> Tensor:  # fmt: skip
        """Turn `[G, n, d]` into samples `[B, n, d]`, each with the noise of its group."""
        bound = _wide(smashed.flatten(1))
        samples = unbind(bound, _spectra_for(bound, int(meta["keys"]), self.r))
        return samples[: int(meta["samples"])].unflatten(1, smashed.shape[1:])

    def expected(self, geometry: Geometry) -> Expected:
        """Return the bounds: groups `[1..ceil(B / R), n, d]` and a label for each sample."""
        smashed = Expect.floats((1, -(-geometry.batch // self.r)), geometry.tokens, geometry.width)
        return {"smashed": (smashed,), "targets": expected_targets(geometry)}


def bind(samples: Tensor, spectra: Tensor) -> Tensor:
    """Turn samples `[B, N]` into `[ceil(B / R), N]`, each the sum of R of them convolved with their keys, whose spectra
    are `[R, N // 2 + 1]`; a last group may be smaller."""
    whole = pad(samples, (0, 0, 0, -len(samples) % len(spectra)))  # zeros add nothing to a sum
    bound = (rfft(whole).unflatten(0, (-1, len(spectra))) * spectra).sum(1)
    return irfft(bound, n=samples.shape[1])


def unbind(bound: Tensor, spectra: Tensor) -> Tensor:
    """Turn `[G, N]` into samples `[G * R, N]` by correlation with each key."""
    return irfft(rfft(bound).unsqueeze(1) * spectra.conj(), n=bound.shape[1]).flatten(0, 1)


@lru_cache(maxsize=4)
def key_spectra(number: int, r: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the spectra `[R, N // 2 + 1]` of the R keys of length N = `size` that a number stands for.

    Drawn on the CPU in float64, so they are the same on any device.
    """
    keys = torch.randn(r, size, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    return rfft(keys / keys.norm(dim=1, keepdim=True)).to(dtype).to(device)


def _spectra_for(samples: Tensor, number: int, r: int) -> Tensor:
    return key_spectra(number, r, samples.shape[1], samples.dtype.to_complex(), samples.device)


def _wide(samples: Tensor) -> Tensor:
    """Return samples in float32 at least: a Fourier transform in fewer bits loses too much."""
    return samples.to(torch.promote_types(samples.dtype, torch.float32))
