"""A random order of labelled images that divides stratified wherever it is cut."""

import torch
from torch import Tensor

from splitfed.seeds import Key


def spread(labels: Tensor, key: Key) -> Tensor:
    """Return a random order of the rows of `labels` (int64 `[N]`, from 0 on): every stretch of it holds the classes in
    about their overall shares, so what is cut off anywhere is drawn at random and stratified by class."""
    random = key.numpy()
    order = torch.from_numpy(random.permutation(len(labels)))
    order = order[labels[order].argsort(stable=True)]
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    owner = labels[order]
    # Image i of a class with c images stands at (i + offset) / c; the offset keeps rare classes from coming together.
    offset = torch.from_numpy(random.random(len(counts)))
    place = (torch.arange(len(labels)) - starts[owner] + offset[owner]) / counts[owner]
    return order[place.argsort(stable=True)]
