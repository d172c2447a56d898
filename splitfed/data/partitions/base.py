"""Runs a partitioner of flwr-datasets over the rows of a data set, and checks what it deals."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from splitfed.errors import DataError
from splitfed.seeds import Key

if TYPE_CHECKING:
    import numpy as np
    from flwr_datasets.partitioner import Partitioner
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Column:
    """What a column of the data set says of the rows that are dealt, `values` `[N]`, and `known`, sorted: all values
    that it has in the training split, of which validation and limit may have taken some."""

    name: str
    values: "np.ndarray"
    known: "np.ndarray"


def images(count: int) -> str:
    """Return `1 image`, `2 images`."""
    return "1 image" if count == 1 else f"{count} images"


def require(clients: int, rows: int, each: int = 1) -> None:
    """Raise `DataError` where there are too few images to give `each` to every client; one at least."""
    each = max(1, each)
    if rows < clients * each:
        raise DataError(
            f"federation.clients: {clients} clients with at least {images(each)} each need {clients * each} training "
            f"images, there are {rows}; use fewer clients{' or a smaller data.partition.min_size' if each > 1 else ''}"
        )


def in_order(rows: int, key: Key) -> "Tensor":
    """Return the keyed order in which rows are dealt: the data set's own must not decide who holds what."""
    import torch

    return torch.randperm(rows, generator=key.at("rows").generator())


def deal(partitioner: "Partitioner", values: "Tensor", parts: int, order: "Tensor") -> "list[Tensor]":
    """Run a partitioner by `values` `[N]`, which it knows as the column `label`, over the rows in this order; return
    the sorted rows of each part. A partitioner sorts by labels only if they are sorted in this order already."""
    import torch
    from datasets import Dataset

    class Positions(Dataset):
        """Selects positions alone; a data set and its fingerprint for every client would take milliseconds each."""

        def select(self, indices: Iterable[int], *options: Any, **more: Any) -> "Tensor":
            return torch.tensor([int(index) for index in indices], dtype=torch.int64)

        def sort(self, *options: Any, **more: Any) -> "Positions":
            return self

    partitioner.dataset = Positions.from_dict({"label": values[order].numpy()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one long warning for each repeated draw; the error that matters is ours
        return [order[partitioner.load_partition(part)].sort().values for part in range(parts)]


def complete(rows: "list[Tensor]", total: int) -> "list[Tensor]":
    """Check that every row went to exactly one client; `ValueError` otherwise (a degenerate draw of tiny shares)."""
    import torch

    if not torch.equal(torch.cat(rows).sort().values, torch.arange(total)):
        raise ValueError("the partitioner lost or doubled images")
    return rows
