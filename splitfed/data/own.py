"""A client's own images: a folder for each class, or whatever a scenario's `data.path` may name, on its machine."""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from splitfed.data.images import Images
from splitfed.data.loading import open_training
from splitfed.data.settings import DataConfig
from splitfed.data.sources import Source, first_line, to_rgb
from splitfed.errors import DataError

_NONE = "{}: no images found; a folder for each class should hold them"
# In what else `datasets` finds images in a folder.
_TABLES = {".parquet", ".arrow", ".json", ".jsonl", ".csv", ".tsv", ".zip", ".tar", ".tgz", ".gz"}


class Pictures:
    """Image files, read and decoded when asked for. `labels` is int64 `[N]`."""

    def __init__(self, paths: Sequence[str], labels: Tensor) -> None:
        self.labels = labels
        self.column: np.ndarray | None = None
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def image(self, row: int) -> Image.Image:
        """Return the RGB image of a row; `DataError` where it cannot be decoded."""
        path = self._paths[row]
        try:
            with Image.open(path) as image:
                return to_rgb(image)
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
            raise DataError(
                f"{path}: is no image that can be decoded ({first_line(error)}); repair or remove it"
            ) from None


def own_images(path: str, config: DataConfig, image_size: int, classes: Sequence[str]) -> Images:
    """Open all images at `path`, those of the training split if there are several, for a scenario of these classes.

    An image folder has a folder for each class; anything else has the columns that the scenario names. Labels are
    matched to `classes` by name, of which some may be missing here; labels without names are their numbers. Size,
    augmentation and cache are the scenario's; its `limit`, `validation` and slices of splits are for its own data set.
    Images are decoded when they are first used. Raises `DataError`.
    """
    split = config.train_split.partition("+")[0].partition("[")[0].strip()
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(f"{path}: there is no such file or folder; it should hold this client's images")
    source: Source
    try:
        source = _class_folders(place, split, classes) or _stored(place, split, config, classes)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
    if not len(source):
        raise DataError(_NONE.format(path))
    images = Images(source, torch.arange(len(source)), image_size)
    if config.cache and images.nbytes <= config.cache:
        images.keep()
    return images


def _class_folders(place: Path, split: str, classes: Sequence[str]) -> Pictures | None:
    """Find the images of an image folder, or nothing where it is none."""
    if not place.is_dir():
        return None
    if split not in classes and (place / split).is_dir():
        place = place / split
    Image.init()
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = {
        folder: _files(folder, suffixes) for folder in sorted(place.iterdir()) if _seen(folder) and folder.is_dir()
    }
    strays = [file for file in sorted(place.iterdir()) if _seen(file) and file.suffix.lower() in suffixes]
    if strays and not any(place.glob("metadata.*")):
        raise DataError(f"{strays[0]}: lies in no class's folder; move it to the folder of its class, or remove it")
    paths, labels = [], []
    for folder, files in found.items():
        if files:
            number = _number(folder.name, classes, str(folder))
            paths += files
            labels += [number] * len(files)
    return Pictures(paths, torch.tensor(labels)) if paths else None


def _seen(path: Path) -> bool:
    return not path.name.startswith((".", "__"))  # what systems leave behind, as `datasets` has it


def _files(folder: Path, suffixes: set[str]) -> list[str]:
    """Return the images in a folder and those below, in an order that does not depend on the disk."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if _seen(Path(name)))
        paths = (Path(parent, name) for name in sorted(names))
        found += [str(path) for path in paths if _seen(path) and path.suffix.lower() in suffixes]
    return found


def _stored(place: Path, split: str, config: DataConfig, classes: Sequence[str]) -> Source:
    """Open what `datasets` reads, and number its labels as the scenario does."""
    if place.is_dir() and not any(path.suffix.lower() in _TABLES for path in place.rglob("*")):
        raise DataError(_NONE.format(place))
    source, names = open_training(config.model_copy(update={"path": str(place), "name": None, "train_split": split}))
    used, places = source.labels.unique(return_inverse=True)
    if names is not None:
        known = dict(enumerate(names))
    elif all(name.isdecimal() for name in classes):
        # The scenario's labels have no names either: its classes are the numbers that occur in its data set.
        known = {label: str(label) for label in used.tolist()}
    else:
        known = dict(enumerate(classes))
    for label in used.tolist():
        if label not in known:
            raise DataError(
                f"{place}: has label {label} in column '{config.label_column}', where labels are from 0 to "
                f"{len(known) - 1}; correct or remove these images"
            )
    numbers = [_number(known[label], classes, str(place)) for label in used.tolist()]
    source.labels = torch.tensor(numbers, dtype=torch.int64)[places]
    return source


def _number(name: str, classes: Sequence[str], where: str) -> int:
    """Return the number of the scenario's class of this name."""
    if name in classes:
        return list(classes).index(name)
    close = get_close_matches(name, classes, n=1)
    hint = f"did you mean '{close[0]}'?" if close else "rename it, or remove its images"
    raise DataError(f"{where}: class '{name}' is not among the scenario's classes ({listed(classes)}); {hint}")


def listed(classes: Sequence[str], most: int = 8) -> str:
    """Return the names in quotes, the first ones where there are many."""
    shown = ", ".join(f"'{name}'" for name in classes[:most])
    return shown if len(classes) <= most else f"{shown} and {len(classes) - most} more"
