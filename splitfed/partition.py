"""How the training images are dealt to the clients, by the partitioners of flwr-datasets."""

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from splitfed.config import Config, kind_shorthand
from splitfed.errors import DataError
from splitfed.seeds import Key

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


class Iid(Config):
    """Every client holds the same number of images, give or take one, drawn from all of them alike."""

    kind: Literal["iid"] = "iid"

    def split(self, labels: Tensor, clients: int, key: Key) -> list[Tensor]:
        """Deal the rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint and complete.

        The same key gives the same rows. Raises `DataError` where there are fewer images than clients.
        """
        from flwr_datasets.partitioner import IidPartitioner

        _require(clients, len(labels))
        return _complete(_deal(IidPartitioner(clients), labels, clients, key), len(labels))


class Dirichlet(Config):
    """The shares of each class over the clients are drawn from a Dirichlet distribution (arXiv 1905.12022).

    The smaller `alpha`, the fewer classes a client mostly sees; a large one comes near `iid`. Draws that leave a client
    with fewer than `min_size` images are repeated, ten times at most. `self_balancing` gives no further class to a
    client that already holds more than its even share of the images.
    """

    kind: Literal["dirichlet"] = "dirichlet"
    alpha: PositiveFloat = 0.5
    min_size: PositiveInt = 1
    self_balancing: bool = False

    def split(self, labels: Tensor, clients: int, key: Key) -> list[Tensor]:
        """Deal the rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint and complete.

        The same key gives the same rows. Raises `DataError` where `min_size` cannot be, or was not, reached.
        """
        from flwr_datasets.partitioner import DirichletPartitioner

        _require(clients, len(labels), self.min_size)
        partitioner = DirichletPartitioner(
            clients, "label", float(self.alpha), self.min_size, self.self_balancing, shuffle=False,
            seed=key.at("shares").integer(),
        )  # fmt: skip
        try:
            return _complete(_deal(partitioner, labels, clients, key), len(labels))
        except ValueError:
            raise DataError(
                f"data.partition.alpha: with {self.alpha:g}, no draw gave each of {clients} clients at least "
                f"{_images(self.min_size)} of {len(labels)}; use a larger alpha, fewer clients or a smaller min_size"
            ) from None


class Pathological(Config):
    """Every client holds images of `classes_per_client` classes only, as in FedAvg's non-IID split (arXiv 1602.05629).

    The classes are dealt like cards, deck after shuffled deck, so that all are held by as many clients as any other,
    give or take one; the images of a class are shared evenly by the clients that hold it.
    """

    kind: Literal["pathological"] = "pathological"
    classes_per_client: PositiveInt = 2

    def split(self, labels: Tensor, clients: int, key: Key) -> list[Tensor]:
        """Deal the rows of `labels` (int64 `[N]`) to the clients: sorted rows of each, disjoint and complete.

        The same key gives the same rows. Raises `DataError` where there are too few classes, where some class would be
        held by nobody, or where a class has fewer images than clients that hold it.
        """
        from flwr_datasets.partitioner import PathologicalPartitioner

        _require(clients, len(labels))
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
            parts = _deal(partitioner, position[ranks], clients * each, key)
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
        return _complete([torch.cat(hand).sort().values for hand in hands], len(labels))


PartitionConfig = Annotated[Iid | Dirichlet | Pathological, Field(discriminator="kind"), kind_shorthand]


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _require(clients: int, rows: int, each: int = 1) -> None:
    if rows < clients * each:
        raise DataError(
            f"federation.clients: {clients} clients with at least {_images(each)} each need {clients * each} training "
            f"images, there are {rows}; use fewer clients{' or a smaller data.partition.min_size' if each > 1 else ''}"
        )


def _deal(partitioner: "Partitioner", labels: Tensor, parts: int, key: Key) -> list[Tensor]:
    """Run a partitioner over the rows in keyed order: the data set's own order must not decide who holds what."""
    from datasets import Dataset

    class Positions(Dataset):
        """Selects positions alone; a data set and its fingerprint for every client would take milliseconds each."""

        def select(self, indices: Iterable[int], *options: Any, **more: Any) -> Tensor:
            return torch.tensor([int(index) for index in indices], dtype=torch.int64)

    order = torch.randperm(len(labels), generator=key.at("rows").generator())
    partitioner.dataset = Positions.from_dict({"label": labels[order].numpy()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one long warning for each repeated draw; the error that matters is ours
        return [order[partitioner.load_partition(part)].sort().values for part in range(parts)]


def _complete(rows: list[Tensor], total: int) -> list[Tensor]:
    """Check that every row went to exactly one client; `ValueError` otherwise (a degenerate draw of tiny shares)."""
    if not torch.equal(torch.cat(rows).sort().values, torch.arange(total)):
        raise ValueError("the partitioner lost or doubled images")
    return rows


def _deal_classes(clients: int, each: int, count: int, key: Key) -> tuple[list[int], list[int]]:
    """Deal classes like cards, no class twice to one client; return all cards in order, and the last deck."""
    cards: list[int] = []
    deck: list[int] = []
    for number in range(-(-clients * each // count)):
        deck = torch.randperm(count, generator=key.at(number).generator()).tolist()
        started = len(cards) % each
        held = set(cards[len(cards) - started :])
        # Where a client's hand runs over two decks, what it holds already is put at the back of the new one.
        deck.sort(key=held.__contains__)
        cards += deck
    return cards[: clients * each], deck
