"""Partitions whose shares of the classes are drawn from a Dirichlet distribution.

Both draw the same numbers as flwr-datasets' partitioners in the same order, and deal the same, which tests hold. Those
need minutes for 10,000 clients, as they go through all clients for each class, or for each image.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor

from splitfed.config import Config
from splitfed.data.partitions.base import Column, images, in_order, require
from splitfed.data.partitions.by_size import Sizes, check_sizes
from splitfed.errors import DataError
from splitfed.seeds import Key

_REPEATS = 10


class Dirichlet(Config):
    """The shares of each class over the clients are drawn from a Dirichlet distribution (arXiv 1905.12022).

    The smaller `alpha`, the fewer classes a client mostly sees; a large one comes near `iid`. Draws that leave a client
    with fewer than `min_size` images are repeated, ten times at most. `self_balancing` gives no further class to a
    client that already holds more than its even share of the images.
    """

    kind: Literal["dirichlet"] = "dirichlet"
    alpha: PositiveFloat = 0.5
    min_size: NonNegativeInt = 1
    self_balancing: bool = False

    def split(self, labels: Tensor, clients: int, key: Key, column: Column | None = None) -> list[Tensor]:
        """Deal the rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint and complete.

        The same key gives the same rows. Raises `DataError` where `min_size` cannot be, or was not, reached.
        """
        require(clients, len(labels), self.min_size)
        order = in_order(len(labels), key)
        try:
            rows = draw_shares(
                labels[order].numpy(), clients, float(self.alpha), self.min_size, self.self_balancing,
                key.at("shares").integer(),
            )  # fmt: skip
        except ValueError:
            way_out = "a smaller min_size" + (" (0 lets clients be empty)" if self.min_size == 1 else "")
            raise DataError(
                f"data.partition.alpha: with {self.alpha:g}, no draw gave each of {clients} clients at least "
                f"{images(self.min_size)} of {len(labels)}; use a larger alpha, fewer clients or {way_out}"
            ) from None
        return [order[part].sort().values for part in rows]


class InnerDirichlet(Config):
    """Each client draws its own shares of the classes from a Dirichlet distribution (arXiv 2111.04263).

    The smaller `alpha`, the fewer classes a client mostly sees. The numbers of images are given: `partition_sizes`, a
    number for each client, or equal ones when null. What is left goes to nobody.
    """

    kind: Literal["inner_dirichlet"] = "inner_dirichlet"
    alpha: PositiveFloat = 0.5
    partition_sizes: Sizes | None = None

    def split(self, labels: Tensor, clients: int, key: Key, column: Column | None = None) -> list[Tensor]:
        """Deal rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint.

        The same key gives the same rows. Raises `DataError` where the sizes do not fit clients and images, or where
        `alpha` leaves a client nothing to draw from.
        """
        require(clients, len(labels))
        share, more = divmod(len(labels), clients)
        sizes = self.partition_sizes or tuple(share + (client < more) for client in range(clients))
        check_sizes(sizes, clients, len(labels))
        order = in_order(len(labels), key)
        ranks = labels.unique(return_inverse=True)[1][order].numpy()
        try:
            rows = draw_inner(ranks, sizes, float(self.alpha), key.at("shares").integer())
        except ValueError:
            raise DataError(
                f"data.partition.alpha: with {self.alpha:g}, no images are left of the classes that a client draws; "
                "use a larger alpha, or partition_sizes that leave images over"
            ) from None
        return [order[part].sort().values for part in rows]


def draw_shares(
    labels: np.ndarray, clients: int, alpha: float, min_size: int, self_balancing: bool, seed: int
) -> list[Tensor]:
    """Return what flwr-datasets' `DirichletPartitioner` deals of labels `[N]`, without shuffling.

    Raises `ValueError` where no draw gave each client `min_size` images, or one cannot be divided by.
    """
    random = np.random.default_rng(seed)
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(1 + _REPEATS):
        dealt, cuts = np.zeros(clients, dtype=np.int64), []
        for own in rows:
            shares = random.dirichlet(np.full(clients, alpha))
            if self_balancing:
                shares[dealt > len(labels) / clients] = 0
                shares = shares / sum(shares.tolist())  # added up one by one, as there
            ends = shares.cumsum() * len(own)
            if not np.isfinite(ends).all():
                raise ValueError("a draw of shares that add up to nothing")
            cuts.append(ends.astype(np.int64)[:-1])
            dealt += np.diff(cuts[-1], prepend=0, append=len(own))
        if dealt.min() >= min_size:
            owners = np.concatenate(
                [np.searchsorted(cut, np.arange(len(own)), "right") for cut, own in zip(cuts, rows, strict=True)]
            )
            order = np.concatenate(rows)[owners.argsort(kind="stable")]
            return list(torch.from_numpy(order).split(dealt.tolist()))
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
