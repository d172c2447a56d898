"""Images that somebody names: files and folders of them, each decoded as the data of a scenario are, or refused by
itself."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from splitfed.data.images import fit
from splitfed.data.sources.base import first_line
from splitfed.data.sources.decode import decode, to_rgb
from splitfed.data.sources.folders import images_below
from splitfed.errors import DataError

Named = str | Path | Image.Image


@dataclass(frozen=True, slots=True)
class Picture:
    """An image by its name, as the model's pixels, uint8 `[3, S, S]`; or why it is none (`problem`)."""

    name: str
    pixels: Tensor | None
    problem: str | None = None


def find(places: Sequence[str | Path]) -> list[Path]:
    """Return the files that are named, and all images in and below the folders that are, by name. Raises DataError for
    a place where nothing is, and for a folder without images."""
    found: list[Path] = []
    for place in map(Path, places):
        if not place.is_dir():
            if not os.path.lexists(place):
                raise DataError(f"{place}: there is no such file or folder of images")
            found.append(place)
        elif inside := sorted(images_below(place)):
            found += inside
        else:
            raise DataError(f"{place}: holds no images")
    return found


def read(images: Sequence[Named], size: int, white: float | None, ahead: int) -> Iterator[Picture]:
    """Decode images, in order, to squares of `size` pixels: files, or what Pillow has opened; some `ahead` of who asks.
    `white` is that of deep grey images (`data.white`)."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:  # decoders work outside of Python's lock
        for start in range(0, len(images), ahead):
            part = range(start, min(start + ahead, len(images)))
            yield from threads.map(lambda place: _read(images[place], place, size, white), part)


def _read(image: Named, place: int, size: int, white: float | None) -> Picture:
    name = str(image) if isinstance(image, str | Path) else str(getattr(image, "filename", "") or f"image {place + 1}")
    try:
        upright = to_rgb(image, white) if isinstance(image, Image.Image) else decode(Path(image).read_bytes(), white)
        return Picture(name, torch.from_numpy(np.array(fit(upright, size))).permute(2, 0, 1))
    except UnidentifiedImageError:  # it would name an object in memory
        return Picture(name, None, "it is no image of a kind that can be decoded")
    except OSError as error:
        return Picture(name, None, error.strerror or first_line(error))
    except Exception as error:  # decoders raise SyntaxError, ValueError, struct.error and more
        return Picture(name, None, first_line(error))
