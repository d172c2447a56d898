"""Samples of different numbers of tokens: as rows one after the other, as they travel, and filled up, as a model takes
them."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence, unpad_sequence


def flat(samples: Tensor, lengths: Tensor) -> Tensor:
    """Return the first so many rows of samples `[B, k, d]`, one after the other, `[T, d]`, differentiably."""
    return torch.cat(unpad_sequence(samples, lengths.cpu(), batch_first=True))


def padded(rows: Tensor, lengths: Tensor) -> Tensor:
    """Return rows `[T, d]` as samples of so many rows each, filled up with zeros, `[B, longest, d]`, differentiably."""
    return pad_sequence(list(rows.split(lengths.tolist())), batch_first=True)
