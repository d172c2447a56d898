"""How the training images are dealt to the clients, by the partitioners of flwr-datasets.

What is common to all kinds: the same key gives the same shares, the order of the data set does not matter, and a client
without any images is refused unless `min_size: 0` allows it. Such a client is there, but is never drawn to train.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from splitfed.config import Config, kind_shorthand
from splitfed.data.partitions.base import Column, complete, deal, in_order, require
from splitfed.data.partitions.by_class import Pathological, Shard
from splitfed.data.partitions.by_column import Continuous, GroupedNaturalId, NaturalId
from splitfed.data.partitions.by_draw import Dirichlet, InnerDirichlet
from splitfed.data.partitions.by_size import Exponential, Linear, Size, Square
from splitfed.seeds import Key

if TYPE_CHECKING:
    from torch import Tensor


class Iid(Config):
    """Every client holds the same number of images, give or take one, drawn from all of them alike."""

    kind: Literal["iid"] = "iid"

    def split(self, labels: "Tensor", clients: int, key: Key, column: Column | None = None) -> "list[Tensor]":
        """Deal the rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint and complete.

        The same key gives the same rows. Raises `DataError` where there are fewer images than clients.
        """
        from flwr_datasets.partitioner import IidPartitioner

        require(clients, len(labels))
        return complete(deal(IidPartitioner(clients), labels, clients, in_order(len(labels), key)), len(labels))


PartitionConfig = Annotated[
    Iid
    | Dirichlet
    | Pathological
    | Shard
    | Linear
    | Square
    | Exponential
    | Size
    | InnerDirichlet
    | NaturalId
    | GroupedNaturalId
    | Continuous,
    Field(discriminator="kind"),
    kind_shorthand,
]
