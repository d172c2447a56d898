"""Mini-batches of a client's images: which, in what order, altered how; the same whoever loads them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from splitfed.data.augment import augmenter
from splitfed.data.images import Images
from splitfed.data.settings import Augment
from splitfed.errors import DataError
from splitfed.seeds import Key


class Batch(NamedTuple):
    """Normalised images, float32 `[B, 3, S, S]`, and their labels, int64 `[B]`."""

    images: Tensor
    labels: Tensor


def count_batches(rows: int, batch_size: int, steps: int | None, epochs: int | None) -> int:
    """Return how many batches `batches` gives for so many rows: `steps`, or those of `epochs` passes."""
    if (steps is None) == (epochs is None):
        raise ValueError("give either steps or epochs")
    return steps if steps is not None else (epochs or 0) * -(-rows // batch_size)


def batches(
    images: Images,
    rows: Tensor,
    batch_size: int,
    key: Key,
    *,
    augment: Augment = "none",
    workers: int = 0,
    steps: int | None = None,
    epochs: int | None = None,
    mean: Sequence[float],
    std: Sequence[float],
    shuffle: bool = True,
) -> Iterator[Batch]:
    """Give mini-batches of these rows of `images`, in `epochs` passes or in exactly `steps` batches.

    Each pass goes through all rows once, its last batch being short where they do not divide; `steps` cuts the passes
    off after so many batches, however many passes that takes. `mean` and `std` are those of the three channels, of
    values from 0 to 1. Order and augmentation depend on the key, the pass and the place in it alone, so they are the
    same for any number of `workers`; these are processes that prepare batches ahead. Raises `DataError` for an image
    that cannot be decoded.
    """
    count = count_batches(len(rows), batch_size, steps, epochs)
    if count and not len(rows):
        raise ValueError("no rows to take batches from")
    plan = _Plan(images, rows, batch_size, key, augment, shuffle, count)
    scale = (255 * torch.tensor(std)).reciprocal().view(3, 1, 1)
    shift = (torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1)
    for found in _load(plan, workers, key):
        if isinstance(found, DataError):
            raise found
        pixels, labels = found
        yield Batch(pixels.to(torch.float32).mul_(scale).sub_(shift), labels)


@dataclass
class _Plan(Dataset):
    """Batch number i of a run through the data, as uint8 pixels and labels; whoever asks for it gets the same."""

    images: Images
    rows: Tensor
    batch_size: int
    key: Key
    augment: Augment
    shuffle: bool
    count: int
    _order: tuple[int, Tensor] = field(default=(-1, torch.empty(0)))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor] | DataError:
        epoch, place = divmod(number, -(-len(self.rows) // self.batch_size))
        start = place * self.batch_size
        rows = self.rows[self._pass(epoch)[start : start + self.batch_size]]
        try:
            pixels = self.images.pixels(rows)
        except DataError as error:
            return error  # raised by who asked: a loader process would wrap it in its traceback
        return augmenter(self.augment)(pixels, start, self.key.at("augment", epoch)), self.images.labels[rows]

    def _pass(self, epoch: int) -> Tensor:
        if self._order[0] != epoch:
            self._order = (epoch, self._draw(epoch))
        return self._order[1]

    def _draw(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self.rows))
        return torch.randperm(len(self.rows), generator=self.key.at("order", epoch).generator())


def _load(plan: _Plan, workers: int, key: Key) -> Iterator[tuple[Tensor, Tensor] | DataError]:
    if not workers:
        return (plan[number] for number in range(len(plan)))
    # Its own generator: without one, the loader would draw the seed of its processes from torch's global one.
    return iter(DataLoader(plan, batch_size=None, num_workers=workers, generator=key.at("workers").generator()))
