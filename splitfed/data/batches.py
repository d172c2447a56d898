"""Mini-batches of a client's images: which, in what order, altered how; the same whoever loads them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from splitfed.data.augment import Variants, anew
from splitfed.data.images import Images
from splitfed.data.settings import Augment
from splitfed.errors import DataError
from splitfed.seeds import Key


class Batch(NamedTuple):
    """Normalised images, float32 `[B, 3, S, S]`, their labels, which of the rows they are (their places among all that
    were given), and which variant each of them shows; all int64 `[B]`. Without variants these are 0."""

    images: Tensor
    labels: Tensor
    rows: Tensor
    variants: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with images and labels on a device."""
        return self._replace(images=self.images.to(device), labels=self.labels.to(device))


def count_batches(rows: int, batch_size: int, steps: int | None, epochs: int | None) -> int:
    """Return how many batches `batches` gives for so many rows: `steps`, or those of `epochs` passes."""
    if (steps is None) == (epochs is None):
        raise ValueError("give either steps or epochs")
    return steps if steps is not None else (epochs or 0) * -(-rows // batch_size)


def batch_sizes(rows: int, batch_size: int, steps: int) -> list[int]:
    """Return how many rows are in each of the first `steps` batches that `batches` gives for so many rows."""
    each = max(1, -(-rows // batch_size))
    last = (rows - 1) % batch_size + 1  # in the last of each pass
    return [last if step % each == each - 1 else batch_size for step in range(steps)]


def batches(
    images: Images,
    rows: Tensor,
    batch_size: int,
    key: Key,
    *,
    augment: Augment = "none",
    variants: Variants | None = None,
    variant: Tensor | None = None,
    only: Tensor | None = None,
    start: int = 0,
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
    same for any number of `workers`; these are processes that prepare batches ahead.

    With `variants` an image shows one of its fixed variants instead, drawn by pass and row; with `variant`, int64
    `[rows]`, each row shows that one in all passes. `only`, int64, are places among the rows: the passes go through
    these alone.

    Raises `DataError` for an image that cannot be decoded.
    """
    chosen = torch.arange(len(rows)) if only is None else only
    count = count_batches(len(chosen), batch_size, steps, epochs)
    if count and not len(chosen):
        raise ValueError("no rows to take batches from")
    plan = _Plan(images, rows, chosen, batch_size, key, augment, variants, variant, shuffle, count)
    normalise = normaliser(mean, std)
    for found in _load(plan, start, workers, key):
        if isinstance(found, DataError):
            raise found
        pixels, *others = found
        yield Batch(normalise(pixels), *others)


def normaliser(mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """Return what turns pixels, uint8 `[..., 3, S, S]`, into what a model takes, float32, by the mean and deviation of
    the three channels, of values from 0 to 1."""
    scale = (255 * torch.tensor(std)).reciprocal().view(3, 1, 1)
    shift = (torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1)
    return lambda pixels: pixels.to(torch.float32).mul_(scale).sub_(shift)


# Pixels, uint8 `[B, 3, S, S]`; labels, places among the rows and variants, int64 `[B]`.
_Loaded = tuple[Tensor, Tensor, Tensor, Tensor]


class _Pass(NamedTuple):
    """A pass over the data: the places in their order, and the variant that each of all rows shows."""

    epoch: int
    order: Tensor
    variants: Tensor


@dataclass
class _Plan(Dataset):
    """Batch number i of a run through the data, before pixels are normalised; whoever asks for it gets the same."""

    images: Images
    rows: Tensor
    chosen: Tensor
    batch_size: int
    key: Key
    augment: Augment
    variants: Variants | None
    variant: Tensor | None
    shuffle: bool
    count: int
    _now: _Pass | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> _Loaded | DataError:
        epoch, place = divmod(number, -(-len(self.chosen) // self.batch_size))
        start, now = place * self.batch_size, self._pass(epoch)
        places = now.order[start : start + self.batch_size]
        rows, shown = self.rows[places], now.variants[places]
        try:
            pixels = self.images.pixels(rows)
        except DataError as error:
            return error  # raised by who asked: a loader process would wrap it in its traceback
        if self.variants:
            pixels = self.variants.of(pixels, rows, shown)
        else:
            pixels = anew(self.augment, pixels, start, self.key.at("augment", epoch))
        return pixels, self.images.labels[rows], places, shown

    def _pass(self, epoch: int) -> _Pass:
        if self._now is None or self._now.epoch != epoch:
            self._now = _Pass(epoch, self._order(epoch), self._shown(epoch))
        return self._now

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return self.chosen
        return self.chosen[torch.randperm(len(self.chosen), generator=self.key.at("order", epoch).generator())]

    def _shown(self, epoch: int) -> Tensor:
        if self.variants is None:
            return torch.zeros(len(self.rows), dtype=torch.int64)
        if self.variant is not None:
            return self.variant
        return self.variants.draw(self.key.at("variants", epoch), len(self.rows))


def _load(plan: _Plan, start: int, workers: int, key: Key) -> Iterator[_Loaded | DataError]:
    if not workers:
        return (plan[number] for number in range(start, len(plan)))
    # Its own generator: without one, the loader would draw the seed of its processes from torch's global one.
    numbers = range(start, len(plan))
    return iter(
        DataLoader(plan, batch_size=None, sampler=numbers, num_workers=workers, generator=key.at("workers").generator())
    )
