"""Fusing: the tokens that would be discarded become one token more, weighted by the attention that the class token
pays them, as in EViT (Liang et al., 2022, arXiv 2202.07800).

EViT adds them up with the attention itself as weights. Here the weights sum to 1, so that the fused token is as large
as any other however little attention was left over.
"""

import torch
from torch import Tensor


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
