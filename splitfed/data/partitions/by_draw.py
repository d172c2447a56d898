"""Partitions whose shares of the classes are drawn from a Dirichlet distribution."""

from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeInt, PositiveFloat

from splitfed.config import Config
from splitfed.data.partitions.base import Column, images, in_order, require
from splitfed.data.partitions.by_size import Sizes, check_sizes
from splitfed.errors import DataError
from splitfed.seeds import Key

if TYPE_CHECKING:
    from torch import Tensor


class Dirichlet(Config):
    """The shares of each class over the clients are drawn from a Dirichlet distribution (arXiv 1905.12022).

    Draws that leave a client with too few images are repeated, ten times at most.
    """

    kind: Literal["dirichlet"] = "dirichlet"
    alpha: PositiveFloat = 0.5
    """Concentration of the distribution: the smaller, the fewer classes a client mostly sees; a large one comes near
    `iid`."""
    min_size: NonNegativeInt = 1
    """Images that every client holds at least; with 0 a client may be empty."""
    self_balancing: bool = False
    """Whether a client that already holds more than its even share of the images is given no further class."""

    def split(self, labels: "Tensor", clients: int, key: Key, column: Column | None = None) -> "list[Tensor]":
        """Deal the rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint and complete.

        The same key gives the same rows. Raises `DataError` where `min_size` cannot be, or was not, reached.
        """
        from splitfed.data.partitions.shares import draw_shares

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

    The numbers of images are given. What is left goes to nobody.
    """

    kind: Literal["inner_dirichlet"] = "inner_dirichlet"
    alpha: PositiveFloat = 0.5
    """Concentration of the distribution: the smaller, the fewer classes a client mostly sees."""
    partition_sizes: Sizes | None = None
    """Images of each client, a number for each; null gives all the same, give or take one."""

    def split(self, labels: "Tensor", clients: int, key: Key, column: Column | None = None) -> "list[Tensor]":
        """Deal rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint.

        The same key gives the same rows. Raises `DataError` where the sizes do not fit clients and images, or where
        `alpha` leaves a client nothing to draw from.
        """
        from splitfed.data.partitions.shares import draw_inner

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
