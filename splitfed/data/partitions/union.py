"""How the training images are dealt to the clients, by the partitioners of flwr-datasets.

What is common to all kinds: the same key gives the same shares, the order of the data set does not matter, and a client
without any images is refused unless `min_size: 0` allows it. Such a client is there, but is never drawn to train.
"""

from typing import Annotated

from pydantic import Field

from splitfed.config import kind_shorthand
from splitfed.data.partitions.by_class import Pathological, Shard
from splitfed.data.partitions.by_column import Continuous, GroupedNaturalId, NaturalId
from splitfed.data.partitions.by_draw import Dirichlet, InnerDirichlet
from splitfed.data.partitions.by_size import Exponential, Linear, Size, Square
from splitfed.data.partitions.evenly import Iid, Shifted

PartitionConfig = Annotated[
    Iid
    | Shifted
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
