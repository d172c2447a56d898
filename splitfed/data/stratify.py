"""Draws by class: which of its images a client holds out for federated evaluation, and an order of images of which any
stretch holds the classes in their shares."""

import torch
from torch import Tensor

from splitfed.seeds import Key


def count_held_out(images: int, share: float) -> int:
    """Return how many of a client's images it holds out."""
    return min(images - 1, max(1, round(share * images))) if share and images > 1 else 0


def divide(rows: Tensor, labels: Tensor, share: float, key: Key, client: int) -> tuple[Tensor, Tensor]:
    """Divide a client's `rows` (int64 `[N]`) of images, whose labels are `labels[rows]`, into those that it trains on
    and those that it holds out; both ascending, and the same for the same run's key and client."""
    count = count_held_out(len(rows), share)
    if not count:
        return rows, rows[:0]
    order = spread(labels[rows], key.at("held_out", client))
    return rows[order[count:]].sort().values, rows[order[:count]].sort().values


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
