"""Partitions in which every client holds as many images of all classes alike: as they are, or seen in a way of its
own."""

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field, field_validator

from splitfed.config import Config, as_tuple
from splitfed.data.partitions.base import Column, complete, deal, in_order, require
from splitfed.seeds import Key

if TYPE_CHECKING:
    from torch import Tensor

Corruption = Literal["noise", "blur", "brightness", "contrast", "jpeg", "rotation", "hue"]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
SEVERITIES = 5
# Those that can go two ways: darker or brighter, this way round or that.
_DIRECTED = ("brightness", "contrast", "rotation", "hue")


class View(NamedTuple):
    """How a client sees its images: through what, how much, and which way, where there are two."""

    transform: Literal[Corruption, "none"] = "none"
    severity: int = 0
    direction: Literal[1, -1] = 1

    def __str__(self) -> str:
        if not self.severity or self.transform == "none":
            return "none"
        if self.transform not in _DIRECTED:
            return f"{self.transform} {self.severity}"
        more = self.direction > 0 if self.transform != "contrast" else self.direction < 0
        return f"{self.transform} {'+' if more else '-'}{self.severity}"


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


class Shifted(Iid):
    """As `iid`, but each client sees all its images through a transform of its own, as with another camera.

    Transforms are dealt like cards, deck after deck, so that each is had by as many clients as any other, give or take
    one. A client trains and evaluates on what it sees; validation and test images, which are nobody's, stay as they
    are, and so do images that a client of a deployment brings itself. With severity 0 it is `iid`, bit for bit.
    """

    kind: Literal["shifted"] = "shifted"  # type: ignore[assignment]
    transforms: Annotated[tuple[Literal[Corruption, "none"], ...], BeforeValidator(as_tuple)] = Field(
        CORRUPTIONS, min_length=1
    )
    """What clients see through, `none` being nothing. Which way it goes is drawn for each client: darker or brighter,
    with less contrast or more, turned to the left or the right, hues of either side; grey images have no `hue`. What is
    random in an image, its `noise`, is drawn once."""
    severity: int = Field(3, ge=0, le=SEVERITIES)
    """How much it changes, from 1 to 5; 0 is nothing."""

    @field_validator("transforms")
    @classmethod
    def _each_once(cls, transforms: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [name for name in dict.fromkeys(transforms) if transforms.count(name) > 1]:
            raise ValueError(f"{twice[0]} is named twice: name each once, as each is dealt to as many clients")
        return transforms

    def views(self, clients: int, key: Key) -> list[View]:
        """Return how each client sees its images; the same key gives the same views."""
        decks = -(-clients // len(self.transforms))
        dealt = [card for deck in range(decks) for card in key.at("deck", deck).numpy().permutation(self.transforms)]
        ways = [key.at("direction", client).integer() % 2 for client in range(clients)]
        return [
            View(str(transform), self.severity, 1 if way else -1)  # type: ignore[arg-type]
            for transform, way in zip(dealt, ways, strict=False)
        ]
