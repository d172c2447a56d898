"""Partitions in which clients hold different numbers of images."""

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from splitfed.config import Config, as_tuple
from splitfed.data.partitions.base import Column, in_order, require
from splitfed.errors import DataError
from splitfed.seeds import Key

if TYPE_CHECKING:
    from flwr_datasets.partitioner import IdToSizeFncPartitioner
    from torch import Tensor


Sizes = Annotated[tuple[PositiveInt, ...], BeforeValidator(as_tuple), Field(min_length=1)]


class Linear(Config):
    """The number of images grows evenly with the client's number: client 9 holds ten times what client 0 does."""

    kind: Literal["linear"] = "linear"
    min_size: NonNegativeInt = 1
    """Images that every client must hold, or the partition is refused; with 0 a client may be empty."""

    def split(self, labels: "Tensor", clients: int, key: Key, column: Column | None = None) -> "list[Tensor]":
        """Deal the rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint and complete.

        The same key gives the same rows. Raises `DataError` where a client would hold fewer than `min_size`.
        """
        from flwr_datasets.partitioner import LinearPartitioner

        return _grown(self, LinearPartitioner(clients), clients, len(labels), key)


class Square(Config):
    """The number of images grows with the square of the client's number, counted from 1."""

    kind: Literal["square"] = "square"
    min_size: NonNegativeInt = 1
    """Images that every client must hold, or the partition is refused; with 0 a client may be empty."""

    def split(self, labels: "Tensor", clients: int, key: Key, column: Column | None = None) -> "list[Tensor]":
        """Deal the rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint and complete.

        The same key gives the same rows. Raises `DataError` where a client would hold fewer than `min_size`.
        """
        from flwr_datasets.partitioner import SquarePartitioner

        return _grown(self, SquarePartitioner(clients), clients, len(labels), key)


class Exponential(Config):
    """The number of images grows exponentially with the client's number: each holds 2.7 times what the last one
    does."""

    kind: Literal["exponential"] = "exponential"
    min_size: NonNegativeInt = 1
    """Images that every client must hold, or the partition is refused; with 0 a client may be empty."""

    def split(self, labels: "Tensor", clients: int, key: Key, column: Column | None = None) -> "list[Tensor]":
        """Deal the rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint and complete.

        The same key gives the same rows. Raises `DataError` where a client would hold fewer than `min_size`.
        """
        from flwr_datasets.partitioner import ExponentialPartitioner

        if clients > _MOST_EXPONENTIAL:
            raise DataError(
                f"federation.clients: sizes cannot grow exponentially over {clients} clients, the last is too large; "
                f"use at most {_MOST_EXPONENTIAL}, or another data.partition"
            )
        return _grown(self, ExponentialPartitioner(clients), clients, len(labels), key)


class Size(Config):
    """Each client holds as many images as `partition_sizes` says, a number for each; what is left goes to nobody."""

    kind: Literal["size"] = "size"
    partition_sizes: Sizes
    """Images of each client, a number for each."""

    def split(self, labels: "Tensor", clients: int, key: Key, column: Column | None = None) -> "list[Tensor]":
        """Deal rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint.

        The same key gives the same rows. Raises `DataError` where the sizes do not fit clients and images.
        """
        check_sizes(self.partition_sizes, clients, len(labels))
        return _cut(in_order(len(labels), key), self.partition_sizes)


_MOST_EXPONENTIAL = 700  # e to the power of 710 is no float


def _grown(
    config: Linear | Square | Exponential, partitioner: "IdToSizeFncPartitioner", clients: int, rows: int, key: Key
) -> "list[Tensor]":
    from datasets import Dataset

    require(clients, rows, config.min_size)
    order = in_order(rows, key)
    partitioner.dataset = Dataset.from_dict({"row": order.numpy()})
    with suppress(ValueError):  # it works the sizes out before it refuses those of 0, which min_size may allow
        partitioner.load_partition(0)
    sizes = [int(size) for size in partitioner.partition_id_to_size.values()]
    small = [client for client, size in enumerate(sizes) if size < config.min_size]
    if small:
        raise DataError(
            f"data.partition.min_size: {config.kind} sizes leave {len(small)} of {clients} clients with fewer than "
            f"{config.min_size} of {rows} images; use fewer clients"
            + (", or min_size: 0 to let them be empty" if config.min_size == 1 else " or a smaller min_size")
        )
    return _cut(order, sizes)


def _cut(order: "Tensor", sizes: Any) -> "list[Tensor]":
    return [part.sort().values for part in order[: sum(sizes)].split(list(sizes))]


def check_sizes(sizes: tuple[int, ...], clients: int, rows: int) -> None:
    """Raise `DataError` where there is not a size for each client, or there are too few images."""
    if len(sizes) != clients:
        raise DataError(
            f"data.partition.partition_sizes: {len(sizes)} sizes for {clients} clients; give one for each, or set "
            f"federation.clients to {len(sizes)}"
        )
    if sum(sizes) > rows:
        raise DataError(
            f"data.partition.partition_sizes: together {sum(sizes)} images, where there are {rows} to train on; use "
            "smaller sizes"
        )
