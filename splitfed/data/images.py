"""Images as the model takes them: decoded, resized, cropped, and kept in memory where there is room."""

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from splitfed.data.corruptions import see
from splitfed.data.partitions.evenly import View
from splitfed.data.sources.base import InMemory, Source, Undecodable
from splitfed.data.sources.checking import undecodable
from splitfed.seeds import Key


class Images:
    """Some rows of a source, as squares of `image_size` pixels.

    The short side is resized to `image_size` (bicubic, with antialiasing) and the middle is cut out, so that what lies
    in the middle of a photo keeps its proportions. `labels` is int64 `[N]`.
    """

    def __init__(self, source: Source, rows: Tensor, image_size: int) -> None:
        self.labels = source.labels[rows]
        self.image_size = image_size
        self._source = source
        self._rows = rows
        self._store: Tensor | None = None
        self._kept: Tensor | None = None
        self._views: _Views | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def source(self) -> Source:
        """These images as they are stored."""
        return self._source.of(self._rows)

    def stored_bytes(self, rows: Tensor) -> int:
        """Return what the images of these rows weigh as they are stored, in bytes, each row once; none is decoded."""
        return self._source.of(self._rows[rows.unique()]).stored_bytes()

    @property
    def nbytes(self) -> int:
        """What all these images take in memory, in bytes."""
        return len(self) * 3 * self.image_size**2

    @property
    def kept(self) -> bool:
        """Whether images stay in memory from their first use on."""
        return self._store is not None

    def seen(self, rows: Sequence[Tensor], views: Sequence[View], key: Key) -> None:
        """Show the rows of each client as that client sees them, before any image is used. What is random in an image
        depends on the key and its row of the source alone."""
        holders = torch.full((len(self),), -1)
        for client, own in enumerate(rows):
            holders[own] = client
        self._views = holders, list(views), key

    def keep(self) -> None:
        """Keep each image in memory from its first use on.

        The memory is shared with processes that are forked later, so that what a loader process decodes is decoded for
        all; pages that no image has reached take no memory.
        """
        if not len(self):
            return
        store = torch.frombuffer(mmap.mmap(-1, self.nbytes), dtype=torch.uint8)
        self._store = store.view(len(self), 3, self.image_size, self.image_size)
        self._kept = torch.frombuffer(mmap.mmap(-1, len(self)), dtype=torch.bool)

    def pixels(self, rows: Tensor) -> Tensor:
        """Return the images of these rows, uint8 `[B, 3, S, S]`; `DataError` for one that cannot be decoded."""
        if self._store is None or self._kept is None:
            return self._decode(rows)
        missing = rows[~self._kept.index_select(0, rows)]
        if len(missing):
            # Two threads may both fill a row, with equal pixels. The mark follows the pixels: nobody reads too early.
            self._store[missing] = self._decode(missing)
            self._kept[missing] = True
        return self._store.index_select(0, rows)  # many times faster than by brackets

    def undecodable(self) -> dict[int, Undecodable]:
        """Decode every image, into memory where they are kept, and return what is wrong with those that cannot be, by
        row of the source."""
        if isinstance(self._source, InMemory):
            return {}
        rows = self._rows.tolist()
        found = undecodable(len(self), lambda row: self.pixels(torch.tensor([row])))
        return {rows[row]: error for row, error in found.items()}

    def _decode(self, rows: Tensor) -> Tensor:
        out = torch.empty(len(rows), 3, self.image_size, self.image_size, dtype=torch.uint8)
        for place, (row, own) in enumerate(zip(self._rows[rows].tolist(), rows.tolist(), strict=True)):
            square = np.array(fit(self._source.image(row), self.image_size))
            out[place] = torch.from_numpy(self._view(square, row, own)).permute(2, 0, 1)
        return out

    def _view(self, square: np.ndarray, row: int, own: int) -> np.ndarray:
        if self._views is None:
            return square
        holders, views, key = self._views
        holder = int(holders[own])
        return square if holder < 0 else see(square, views[holder], key.at(row).numpy())

    def __getstate__(self) -> dict[str, Any]:
        # A process that is spawned, not forked, cannot share the memory: it decodes what it needs.
        return self.__dict__ | {"_store": None, "_kept": None}


# Which client holds each row (-1: none), how each client sees its own, and what randomness is drawn from.
_Views = tuple[Tensor, list[View], Key]


def fit(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to `size` and cut the middle square out."""
    width, height = image.size
    if (width, height) == (size, size):
        return image
    # As resizing it all and cutting after, but for the work on what would be cut off.
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
