"""What a source of labelled images is: rows of what lies on disk, or pixels in memory."""

import os
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from splitfed.data.sources.decode import decode
from splitfed.data.stratify import spread
from splitfed.errors import DataError
from splitfed.seeds import Key


class Source(Protocol):
    """Labelled images, decoded one at a time. `labels` is int64 `[N]`, from 0 on, and -1 for none; `column` `[N]` is
    what the partition goes by, if it goes by anything else."""

    labels: Tensor
    column: np.ndarray | None

    def __len__(self) -> int: ...

    def of(self, rows: Tensor) -> "Source":
        """Return these rows alone."""
        ...

    def image(self, row: int) -> Image.Image:
        """Return the RGB image of a row; `DataError` where it cannot be decoded."""
        ...

    def content(self, row: int) -> bytes:
        """Return the image of a row as it is stored; `OSError` where it cannot be read."""
        ...

    def stored_bytes(self) -> int:
        """Return what all these images weigh as they are stored, in bytes; no image is read for it."""
        ...


class Encoded(Protocol):
    """Encoded images by row, and how a person finds each of them."""

    def __len__(self) -> int: ...

    def content(self, row: int) -> bytes:
        """Return the bytes of an image; `OSError` where they cannot be read."""
        ...

    def where(self, row: int) -> str:
        """Return the file, or the row of a table."""
        ...

    def stored_bytes(self, rows: np.ndarray) -> int:
        """Return what the images of these rows weigh together, in bytes; one that is not there weighs nothing."""
        ...


class Stored:
    """Images on disk, read and decoded when asked for. `white` is the value of white in grey images of more than 8
    bits; `rows` (int64 `[N]`) are those of `images` that are meant."""

    def __init__(self, images: Encoded, rows: Tensor, labels: Tensor, white: float | None = None) -> None:
        self.labels = labels
        self.column: np.ndarray | None = None
        self._images, self._rows, self._white = images, rows, white

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, rows: Tensor) -> "Stored":
        """Return these rows alone."""
        part = Stored(self._images, self._rows[rows], self.labels[rows], self._white)
        part.column = None if self.column is None else self.column[rows.numpy()]
        return part

    def image(self, row: int) -> Image.Image:
        """Return the RGB image of a row; `DataError` where it cannot be decoded."""
        place = int(self._rows[row])
        try:
            return decode(self._images.content(place), self._white)
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
            raise Undecodable(self._images.where(place), first_line(error)) from None

    def content(self, row: int) -> bytes:
        """Return the image of a row as it is stored; `OSError` where it cannot be read."""
        return self._images.content(int(self._rows[row]))

    def stored_bytes(self) -> int:
        """Return the bytes of the files, or of what lies in the cells of tables."""
        return self._images.stored_bytes(self._rows.numpy())


class InMemory:
    """Images that are there already, uint8 `[N, H, W, 3]`; `channels` are those that tell something, 1 where the three
    are the same grey."""

    def __init__(self, pixels: np.ndarray, labels: Tensor, channels: int = 3) -> None:
        self.labels = labels
        self.column: np.ndarray | None = None
        self._pixels, self._channels = pixels, channels

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, rows: Tensor) -> "InMemory":
        """Return these rows alone."""
        return InMemory(self._pixels[rows.numpy()], self.labels[rows], self._channels)

    def image(self, row: int) -> Image.Image:
        """Return the RGB image of a row."""
        return Image.fromarray(self._pixels[row])

    def content(self, row: int) -> bytes:
        """Return the pixels of a row."""
        return self._pixels[row].tobytes()

    def stored_bytes(self) -> int:
        """Return the bytes of the pixels, one for each channel that tells something."""
        count, height, width, _ = self._pixels.shape
        return count * height * width * self._channels


class Undecodable(DataError):
    """An image that cannot be decoded: `where` it is and why."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(
            f"{where}: is no image that can be decoded ({why}); repair or remove it, or leave all such out with "
            "data.on_bad: skip"
        )
        self.where, self.why = where, why

    def __reduce__(self) -> tuple[type["Undecodable"], tuple[str, str]]:
        return type(self), (self.where, self.why)  # it crosses from loader processes


def file_bytes(path: str | os.PathLike[str]) -> int:
    """Return how large a file is, in bytes: 0 where there is none, which is told where it is decoded."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return 0


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, without its full stop."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def open_digits() -> tuple[InMemory, InMemory, list[str]]:
    """Return the training images (1,438), the test images (359) and the class names.

    The set comes undivided. Which fifth is for testing is fixed, whatever a run's seed, and stratified by class.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # the values are 0 to 16
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    order = spread(labels, Key(0).at("digits"))
    count = len(order) // 5
    whole = InMemory(pixels, labels, channels=1)
    return whole.of(order[count:].sort().values), whole.of(order[:count].sort().values), [str(i) for i in range(10)]
