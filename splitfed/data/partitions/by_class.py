"""Partitions in which clients hold few classes each: by classes, or by shards of sorted images."""

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator

from splitfed.config import Broken, Config
from splitfed.data.partitions.base import Column, complete, deal, images, in_order, require
from splitfed.errors import DataError
from splitfed.seeds import Key

if TYPE_CHECKING:
    from torch import Tensor


class Pathological(Config):
    """Every client holds images of `classes_per_client` classes only, as in FedAvg's non-IID split (arXiv 1602.05629).

    The classes are dealt like cards, deck after shuffled deck, so that all are held by as many clients as any other,
    give or take one; the images of a class are shared evenly by the clients that hold it.
    """

    kind: Literal["pathological"] = "pathological"
    classes_per_client: PositiveInt = 2
    """Classes that a client holds images of."""

    def split(self, labels: "Tensor", clients: int, key: Key, column: Column | None = None) -> "list[Tensor]":
        """Deal the rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint and complete.

        The same key gives the same rows. Raises `DataError` where there are too few classes, where some class would be
        held by nobody, or where a class has fewer images than clients that hold it.
        """
        import torch
        from flwr_datasets.partitioner import PathologicalPartitioner

        require(clients, len(labels))
        classes, ranks = labels.unique(return_inverse=True)
        each, count = self.classes_per_client, len(classes)
        if each > count:
            raise DataError(
                f"data.partition.classes_per_client: {each} is more than the {count} classes of the training data; "
                f"use at most {count}"
            )
        if clients * each < count:
            raise DataError(
                f"data.partition.classes_per_client: {clients} clients with {each} classes each leave images of "
                f"{count - clients * each} of the {count} classes to nobody; use at least {-(-count // clients)}"
            )
        cards, last = _deal_classes(clients, each, count, key.at("classes"))
        # The partitioner hands class j % count to its part j, and each part is one card of one client. Numbering the
        # classes in the order of the last, incomplete deck makes its cards those of the classes that come once more.
        position = torch.empty(count, dtype=torch.int64)
        position[last] = torch.arange(count)
        partitioner = PathologicalPartitioner(clients * each, "label", 1, "deterministic", shuffle=False)
        try:
            parts = deal(partitioner, position[ranks], clients * each, in_order(len(labels), key))
        except ValueError:
            fewest = int(labels.bincount()[classes].min())
            raise DataError(
                f"data.partition.classes_per_client: {clients} clients with {each} classes each need more images of a "
                f"class than there are (the rarest has {fewest}); use fewer clients or classes_per_client"
            ) from None
        used = [0] * count
        hands: list[list[Tensor]] = [[] for _ in range(clients)]
        for place, card in enumerate(cards):
            hands[place // each].append(parts[int(position[card]) + used[card] * count])
            used[card] += 1
        return complete([torch.cat(hand).sort().values for hand in hands], len(labels))


class Shard(Config):
    """The images are sorted by class and cut into equal shards, of which every client draws some (arXiv 1602.05629).

    What is left after the last whole shard, or of shards that nobody draws, goes to no client, unless a key says so.
    """

    kind: Literal["shard"] = "shard"
    num_shards_per_partition: PositiveInt | None = 2
    """Shards that each client draws; with null all whole shards are shared out."""
    shard_size: PositiveInt | None = None
    """Images of a shard; null is as many as there are for all shards that are drawn."""
    keep_incomplete_shard: bool = False
    """Whether what is left after the last whole shard is shared out too, where all shards are."""

    @model_validator(mode="after")
    def _one_is_known(self) -> "Shard":
        if self.shard_size is None and self.num_shards_per_partition is None:
            raise Broken(("shard_size", "num_shards_per_partition is null too: set one of them"))
        return self

    def split(self, labels: "Tensor", clients: int, key: Key, column: Column | None = None) -> "list[Tensor]":
        """Deal rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint, not always all of them.

        The same key gives the same rows. Raises `DataError` where there are fewer shards than clients need.
        """
        from flwr_datasets.partitioner import ShardPartitioner

        require(clients, len(labels))
        order = in_order(len(labels), key)
        order = order[labels[order].argsort(stable=True)]
        partitioner = ShardPartitioner(
            clients, "label", self.num_shards_per_partition, self.shard_size, self.keep_incomplete_shard, shuffle=False,
            seed=key.at("shards").integer(),
        )  # fmt: skip
        try:
            return deal(partitioner, labels, clients, order)
        except (ValueError, ZeroDivisionError):
            each = self.num_shards_per_partition or 1
            of = "" if self.shard_size is None else f" of {images(self.shard_size)}"
            raise DataError(
                f"data.partition.{'shard_size' if self.shard_size else 'num_shards_per_partition'}: {clients} clients "
                f"need {clients * each} shards{of}, more than {len(labels)} images make; use fewer clients, or fewer "
                "or smaller shards"
            ) from None


def _deal_classes(clients: int, each: int, count: int, key: Key) -> tuple[list[int], list[int]]:
    """Deal classes like cards, no class twice to one client; return all cards in order, and the last deck."""
    import torch

    cards: list[int] = []
    deck: list[int] = []
    for number in range(-(-clients * each // count)):
        deck = torch.randperm(count, generator=key.at(number).generator()).tolist()
        started = len(cards) % each
        has = set(cards[len(cards) - started :])
        # Where a client's hand runs over two decks, what it has already is put at the back of the new one.
        deck.sort(key=has.__contains__)
        cards += deck
    return cards[: clients * each], deck
