"""What a noisy channel makes of complex symbols, and what a receiver that knows its channel makes of that.

    y[i] = h x[i] + n[i]              |x|^2 is 1 on average, n ~ CN(0, v), v = 10^(-SNR / 10)
    z[i] = h* y[i] / (|h|^2 + v)      the linear estimate of x[i] of least mean squared error

h is 1 in white noise (AWGN), and under Rayleigh fading CN(0, 1), one number for each sample: it holds for all symbols
of an image (block fading). As h* n is |h| CN(0, v), all that matters of h is its gain g = |h|^2, which is exponential
with mean 1, and numbers remain real:

    z[i] = (g x[i] + sqrt(g) n[i]) / (g + v)

Without noise (v = 0) z is x, whatever the gain.
"""

import torch
from torch import Tensor

from splitfed.seeds import Key

_STEPS = 4096  # of the mean over gains


def unit_power(pairs: Tensor) -> Tensor:
    """Scale real and imaginary parts side by side, `[..., 2 k]`, so that the mean power of their k symbols is 1; what
    is all zeros stays so."""
    power = 2 * pairs.square().mean(-1, keepdim=True)
    return pairs * power.clamp(min=torch.finfo(pairs.dtype).tiny).rsqrt()


def received(pairs: Tensor, snr: Tensor, fading: bool, key: Key) -> Tensor:
    """Return what a receiver makes of the symbols of B samples, `[B, n, 2 k]`, which reach it at `snr` decibels each,
    `[B]`, through noise and, with `fading`, a gain, all drawn from `key`."""
    each = (-1,) + (1,) * (pairs.dim() - 1)
    variance = noise(snr).to(pairs).view(each)
    gain = torch.ones_like(variance)
    if fading:
        drawn = torch.empty(len(pairs), device=pairs.device)
        gain = drawn.exponential_(generator=key.at("gain").generator(pairs.device)).to(pairs).view(each)
    drawn = torch.randn(pairs.shape, generator=key.at("noise").generator(pairs.device), device=pairs.device)
    return (gain * pairs + (gain * variance / 2).sqrt() * drawn.to(pairs)) / (gain + variance)


def noise(snr: Tensor) -> Tensor:
    """Return the variance of the noise of a complex symbol, at these decibels."""
    return 10 ** (-snr.double() / 10)


def capacity(snr: float, fading: bool) -> float:
    """Return the bits that a symbol can carry at most without error (Shannon): log2(1 + SNR), under fading the mean of
    log2(1 + g SNR) over all gains, which codes reach that are longer than fades."""
    ratio = 10 ** (snr / 10)
    ranks = (torch.arange(_STEPS, dtype=torch.float64) + 0.5) / _STEPS
    gains = -torch.log(ranks) if fading else torch.ones_like(ranks)
    return float(torch.log2(1 + gains * ratio).mean())
