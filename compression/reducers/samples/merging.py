"""Merging samples and choosing tokens: the mathematics that the ADC family of reducers shares."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from splitfed.compression.kmeans import kmeans
from splitfed.seeds import Key


def kept(share: float, count: int, least: int = 2) -> int:
    """Return how many of `count` a share keeps: the floor, but at least `least` where there are that many.

    Grows with `count`, so a smaller batch never keeps more than a full one.
    """
    floor = math.floor(share * count + 1e-9)  # 0.29 * 100 is 28.999999999999996
    return min(count, max(least, floor))


def kept_tokens(share: float, tokens: int, prefix: int) -> int:
    """Return how many of a sequence's tokens a share keeps: all prefix tokens and one more at least."""
    return kept(share, tokens, max(2, prefix + 1))


@dataclass(frozen=True)
class Merging:
    """Which samples become one: the cluster of each sample, `[B]`, and the clusters' sizes, `[C]`."""

    assignment: Tensor
    sizes: Tensor

    def average(self, samples: Tensor) -> Tensor:
        """Turn samples `[B, ...]` into the means of the clusters, `[C, ...]`, differentiably and in one product."""
        weights = one_hot(self.assignment, len(self.sizes)).T.to(samples.dtype) / self.sizes.unsqueeze(1)
        with torch.autocast(samples.device.type, enabled=False):
            return (weights.to(samples.dtype) @ samples.flatten(1)).unflatten(1, samples.shape[1:])

    def soft_targets(self, labels: Tensor, classes: int) -> Tensor:
        """Turn labels `[B]` into the means of their one-hot vectors, `[C, classes]` float32, rows summing to 1."""
        return self.average(one_hot(labels, classes).float())


def merge(points: Tensor, clusters: int, key: Key, iterations: int = 50) -> Merging:
    """Group samples by what stands for each, `[B, F]`: in ADC (arXiv 2509.15058, section 3) the attention that CLS pays
    to its tokens."""
    samples = len(points)
    if clusters >= samples:  # nobody shares a cluster, and identical samples stay apart
        one = torch.arange(samples, device=points.device)
        return Merging(one, torch.ones_like(one))
    return Merging(*kmeans(points, clusters, key, iterations))


def strongest(attention: Tensor, count: int, prefix: int) -> Tensor:
    """Return the positions `[B, count]`, ascending, of the prefix tokens and of those that attention `[B, n]` favours.

    Of equal tokens the first is taken.
    """
    if count <= prefix:
        return torch.arange(count, device=attention.device).expand(len(attention), -1)
    order = attention[:, prefix:].sort(dim=1, descending=True, stable=True).indices + prefix
    first = torch.arange(prefix, device=attention.device).expand(len(attention), -1)
    return torch.cat([first, order[:, : count - prefix]], 1).sort(dim=1).values


def marked(positions: Tensor, tokens: int) -> Tensor:
    """Return a table `[B, n]`, float32, of ones at positions `[B, k]` and zeros elsewhere."""
    return torch.zeros(len(positions), tokens, device=positions.device).scatter(1, positions, 1.0)


def gather(activations: Tensor, positions: Tensor) -> Tensor:
    """Take the tokens at positions `[B, k]` out of activations `[B, n, d]`, differentiably: `[B, k, d]`."""
    samples, tokens, _ = activations.shape
    rows = positions + tokens * torch.arange(samples, device=positions.device).unsqueeze(1)
    # whole rows of one long table: several times faster than Tensor.gather, backward above all
    return activations.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, positions.shape)


def weak(attention: Tensor, positions: Tensor) -> Tensor:
    """Return the weights `[B, n]` of the tokens not at positions `[B, k]`, by attention `[B, n]`; rows sum to 1.

    Where they all got none, they weigh the same.
    """
    # the least that float32 holds without loss does not show, unless there is nothing else
    left = attention.clamp(min=torch.finfo(torch.float32).tiny).scatter(1, positions, 0)
    return left / left.sum(1, keepdim=True)


def fuse(activations: Tensor, weights: Tensor) -> Tensor:
    """Turn activations `[B, n, d]` and weights `[B, n]` into one token each, `[B, 1, d]`, differentiably."""
    with torch.autocast(activations.device.type, enabled=False):
        return weights.to(activations.dtype).unsqueeze(1) @ activations
