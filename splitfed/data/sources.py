"""Where images come from: rows of a data set on disk, or pixels in memory."""

import io
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from splitfed.data.stratify import spread
from splitfed.errors import DataError
from splitfed.seeds import Key

if TYPE_CHECKING:
    from datasets import Dataset


class Source(Protocol):
    """Labelled images, decoded one at a time. `labels` is int64 `[N]`, from 0 on; `column` `[N]` is what the partition
    goes by, if it goes by anything else."""

    labels: Tensor
    column: np.ndarray | None

    def __len__(self) -> int: ...

    def image(self, row: int) -> Image.Image:
        """Return the RGB image of a row; `DataError` where it cannot be decoded."""
        ...


class Stored:
    """Images of a data set on disk, read and decoded when asked for; `where` names it in errors."""

    def __init__(self, dataset: "Dataset", column: str, labels: Tensor, where: str) -> None:
        self.labels = labels
        self.column: np.ndarray | None = None
        self._dataset = dataset
        self._column = column
        self._where = where

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, rows: Tensor) -> "Stored":
        """Return these rows alone."""
        part = Stored(self._dataset.select(rows.numpy()), self._column, self.labels[rows], self._where)
        part.column = None if self.column is None else self.column[rows.numpy()]
        return part

    def image(self, row: int) -> Image.Image:
        """Return the RGB image of a row; `DataError` where it cannot be decoded."""
        try:
            found = self._dataset[row][self._column]
            with Image.open(found["path"] if found["bytes"] is None else io.BytesIO(found["bytes"])) as image:
                return to_rgb(image)
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
            raise DataError(
                f"data.image_column: row {row} of {self._where} holds no image that can be decoded in column "
                f"'{self._column}' ({first_line(error)}); repair or remove it"
            ) from None


class InMemory:
    """Images that are there already, uint8 `[N, H, W, 3]`."""

    def __init__(self, pixels: np.ndarray, labels: Tensor) -> None:
        self.labels = labels
        self.column: np.ndarray | None = None
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, row: int) -> Image.Image:
        """Return the RGB image of a row."""
        return Image.fromarray(self._pixels[row])


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image upright and as RGB, whatever it was: grey of 8 or 16 bits, a palette, with transparency."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip, not scale
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P":  # straight to RGB, Pillow warns about some palettes
        image = image.convert("RGBA")
    return image.convert("RGB")


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
    test, train = order[:count].sort().values, order[count:].sort().values
    return InMemory(pixels[train], labels[train]), InMemory(pixels[test], labels[test]), [str(i) for i in range(10)]
