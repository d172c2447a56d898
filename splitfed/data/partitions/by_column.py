"""Partitions that follow a column of the data set: who wrote it, where it was taken, how old it is."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from splitfed.config import Config
from splitfed.data.partitions.base import Column, complete, deal, images, in_order, require
from splitfed.errors import DataError
from splitfed.seeds import Key

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class NaturalId(Config):
    """Each client holds the images of one value of a column: a writer, a hospital, a camera.

    Clients are numbered in the sorted order of the values in the training split, and there must be as many.
    """

    kind: Literal["natural_id"] = "natural_id"
    partition_by: str = Field(min_length=1)
    """Column of the data set whose values it goes by."""
    min_size: NonNegativeInt = 1
    """Images that every client must train on, or the partition is refused: `validation` and `limit` take some of them.
    With 0 a client may be empty."""

    def split(self, labels: "Tensor", clients: int, key: Key, column: Column | None = None) -> "list[Tensor]":
        """Deal the rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint and complete.

        Raises `DataError` where there are not as many clients as values, or one would hold fewer than `min_size`.
        """
        import numpy as np

        assert column is not None
        if len(column.known) != clients:
            raise DataError(
                f"federation.clients: {clients}, but column '{column.name}' has {len(column.known)} values, each a "
                f"client of its own; set federation.clients to {len(column.known)}, or use grouped_natural_id"
            )
        return _large_enough(_by_value(column, np.arange(clients), clients), self.min_size, column.name)


class GroupedNaturalId(Config):
    """Each client holds the images of `group_size` values of a column, as a hospital has the patients that it treats.

    There must be as many clients as groups.
    """

    kind: Literal["grouped_natural_id"] = "grouped_natural_id"
    partition_by: str = Field(min_length=1)
    """Column of the data set whose values it goes by."""
    group_size: PositiveInt
    """Values of the column that make a group."""
    mode: Literal["allow-smaller", "allow-bigger", "drop-reminder", "strict"] = "allow-smaller"
    """What becomes of values that cannot be grouped evenly: the last group is smaller, some groups are bigger, what is
    left goes to nobody (`drop-reminder`), or the partition is refused (`strict`)."""
    sort_unique_ids: bool = False
    """Whether groups are made of neighbours in sorted order; else they are drawn."""
    min_size: NonNegativeInt = 1
    """Images that every client must train on, or the partition is refused: `validation` and `limit` take some of them.
    With 0 a client may be empty."""

    def split(self, labels: "Tensor", clients: int, key: Key, column: Column | None = None) -> "list[Tensor]":
        """Deal rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint.

        The same key gives the same rows. Raises `DataError` where there are not as many clients as groups, or one would
        hold fewer than `min_size`.
        """
        import numpy as np
        import torch
        from datasets import Dataset
        from flwr_datasets.partitioner import GroupedNaturalIdPartitioner

        assert column is not None
        count = len(column.known)
        partitioner = GroupedNaturalIdPartitioner("id", self.group_size, self.mode, self.sort_unique_ids)
        # What it groups is each value once: it looks at nothing else of the rows.
        order = torch.randperm(count, generator=key.at("groups").generator())
        partitioner.dataset = Dataset.from_dict({"id": order.tolist()})
        try:
            groups = partitioner.num_partitions
        except ValueError:
            raise DataError(
                f"data.partition.group_size: the {count} values of column '{column.name}' make no groups of "
                f"{self.group_size} with mode: {self.mode}; use another group_size, or mode: allow-smaller"
            ) from None
        if groups != clients:
            raise DataError(
                f"federation.clients: {clients}, but the {count} values of column '{column.name}' make {groups} groups "
                f"of {self.group_size}; set federation.clients to {groups}, or use another group_size"
            )
        owner = np.full(count, -1)
        for value, group in partitioner.natural_id_to_partition_id.items():
            owner[value] = group
        return _large_enough(_by_value(column, owner, clients), self.min_size, column.name)


class Continuous(Config):
    """The images are sorted by a column of numbers, an age or a date, and cut into equal shares."""

    kind: Literal["continuous"] = "continuous"
    partition_by: str = Field(min_length=1)
    """Column of the data set whose values it goes by."""
    strictness: float = Field(ge=0, le=1)
    """How much the numbers of the column decide, and how little chance does, in [0, 1]: 0 is as `iid`, with 1 no two
    clients overlap."""

    def split(self, labels: "Tensor", clients: int, key: Key, column: Column | None = None) -> "list[Tensor]":
        """Deal the rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint and complete.

        The same key gives the same rows. Raises `DataError` where the column holds no numbers, or only one.
        """
        import numpy as np
        import torch
        from flwr_datasets.partitioner import ContinuousPartitioner

        assert column is not None
        require(clients, len(labels))
        if column.values.dtype.kind not in "iuf" or not np.isfinite(column.values).all():
            raise DataError(
                f"data.partition.partition_by: column '{column.name}' does not hold numbers alone; use another column, "
                "or natural_id"
            )
        partitioner = ContinuousPartitioner(
            clients, "label", float(self.strictness), shuffle=False, seed=key.at("noise").integer()
        )
        values = torch.from_numpy(column.values.astype(np.float64))
        try:
            return complete(deal(partitioner, values, clients, in_order(len(labels), key)), len(labels))
        except ValueError:
            raise DataError(
                f"data.partition.partition_by: column '{column.name}' holds nearly the same number everywhere; use "
                "another column, or iid"
            ) from None


def _by_value(column: Column, owner: "np.ndarray", clients: int) -> "list[Tensor]":
    """Return the rows of each client, where `owner` says whose each known value is; -1 is nobody's."""
    import numpy as np
    import torch

    client = owner[np.searchsorted(column.known, column.values)]
    order = np.argsort(client, kind="stable")
    bounds = np.searchsorted(client[order], np.arange(clients + 1))
    return [torch.from_numpy(order[bounds[i] : bounds[i + 1]].astype(np.int64)) for i in range(clients)]


def _large_enough(parts: "list[Tensor]", min_size: int, name: str) -> "list[Tensor]":
    small = [client for client, rows in enumerate(parts) if len(rows) < min_size]
    if small:
        raise DataError(
            f"data.partition.min_size: by column '{name}', {len(small)} of {len(parts)} clients have fewer than "
            f"{images(min_size)} to train on, client {small[0]} is the first; use a larger data.limit, or "
            f"{'min_size: 0 to let them be empty' if min_size == 1 else 'a smaller min_size'}"
        )
    return parts
