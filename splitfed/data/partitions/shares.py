"""Shares of the classes that are drawn from a Dirichlet distribution, as flwr-datasets' partitioners draw them.

Both draw the same numbers in the same order, and deal the same, which tests hold. Those need minutes for 10,000
clients, as they go through all clients for each class, or for each image.
"""

import numpy as np
import torch
from torch import Tensor

_REPEATS = 10


def draw_shares(
    labels: np.ndarray, clients: int, alpha: float, min_size: int, self_balancing: bool, seed: int
) -> list[Tensor]:
    """Return what flwr-datasets' `DirichletPartitioner` deals of labels `[N]`, without shuffling.

    Raises `ValueError` where no draw gave each client `min_size` images, or one cannot be divided by.
    """
    random = np.random.default_rng(seed)
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(1 + _REPEATS):
        held, cuts = np.zeros(clients, dtype=np.int64), []
        for own in rows:
            shares = random.dirichlet(np.full(clients, alpha))
            if self_balancing:
                shares[held > len(labels) / clients] = 0
                shares = shares / sum(shares.tolist())  # added up one by one, as there
            ends = shares.cumsum() * len(own)
            if not np.isfinite(ends).all():
                raise ValueError("a draw of shares that add up to nothing")
            cuts.append(ends.astype(np.int64)[:-1])
            held += np.diff(cuts[-1], prepend=0, append=len(own))
        if held.min() >= min_size:
            owners = np.concatenate(
                [np.searchsorted(cut, np.arange(len(own)), "right") for cut, own in zip(cuts, rows, strict=True)]
            )
            order = np.concatenate(rows)[owners.argsort(kind="stable")]
            return list(torch.from_numpy(order).split(held.tolist()))
    raise ValueError("no draw was large enough for all")


def draw_inner(labels: np.ndarray, sizes: tuple[int, ...], alpha: float, seed: int) -> list[Tensor]:
    """Return what flwr-datasets' `InnerDirichletPartitioner` deals of labels `[N]` from 0 on, without shuffling.

    It draws the same numbers in the same order, but its time does not grow with images times clients. Raises
    `ValueError` where no class that a client draws from has images left.
    """
    random = np.random.default_rng(seed)
    left_of = np.bincount(labels)
    rows = [iter(np.flatnonzero(labels == label)[::-1]) for label in range(len(left_of))]
    priors = random.dirichlet(np.full(len(left_of), alpha), size=len(sizes))
    left, open_ = list(sizes), list(range(len(sizes)))
    dealt = [torch.empty(size, dtype=torch.int64) for size in sizes]
    waiting = sum(sizes)
    while waiting:
        place = int(random.integers(0, len(open_)))
        client = open_[place]
        if not left[client]:
            open_.pop(place)
            continue
        left[client] -= 1
        while True:
            shares = priors[client].cumsum()
            if not shares[-1] > 0:
                raise ValueError("no class is left to draw from")
            label = int((shares / shares[-1]).searchsorted(random.random(), side="right"))
            if left_of[label]:
                break
            priors[:, label] = 0
            with np.errstate(invalid="ignore", divide="ignore"):
                priors = priors / priors.sum(axis=1, keepdims=True)
        left_of[label] -= 1
        dealt[client][left[client]] = int(next(rows[label]))
        waiting -= 1
    return dealt
