"""A client's own images: a folder for each class, or whatever a scenario's `data.path` may name, on its machine."""

from collections.abc import Sequence
from pathlib import Path

import torch

from splitfed.data.images import Images
from splitfed.data.settings import DataConfig
from splitfed.data.sources.base import Stored
from splitfed.data.sources.checking import refusal
from splitfed.data.sources.folders import read_split, splits_of
from splitfed.data.sources.labels import Labels, matched
from splitfed.data.sources.opening import names_in, open_labelled, place_of
from splitfed.data.sources.tables import tables_in
from splitfed.errors import DataError

_NONE = "{}: no images found; a folder for each class should hold them"


def own_images(path: str, config: DataConfig, image_size: int, classes: Sequence[str]) -> Images:
    """Open all images at `path`, those of the training split if there are several, for a scenario of these classes.

    A folder of images is read as a scenario's is; anything else has the columns that the scenario names. Labels are
    matched to `classes` by name, of which some may be missing here; labels without names fit classes that have none
    either. Size, augmentation, cache, `white` and `on_bad` are the scenario's; its `limit`, `validation` and slices of
    splits are for its own data set. Images are decoded when they are first used. Raises `DataError`.
    """
    place = place_of(path)
    if not place.exists():
        raise DataError(f"{path}: there is no such file or folder; it should hold this client's images")
    try:
        source, labels = _class_folders(place, config, classes) or _tables(place, config)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
    if not len(source):
        raise DataError(_NONE.format(path))
    missing = int((labels.numbers < 0).sum())
    if missing and config.on_bad == "refuse":
        raise DataError(f"{path}: {missing:,} of {len(source):,} images have no label; remove them")
    source.labels = torch.from_numpy(matched(labels, classes, str(place)))
    rows = (source.labels >= 0).nonzero().flatten()
    if config.on_bad == "skip":
        bad = Images(source, rows, image_size).undecodable()
        rows = torch.tensor([row for row in rows.tolist() if row not in bad], dtype=torch.int64)
        if not len(rows):
            raise refusal(bad.values())
    images = Images(source, rows, image_size)
    if config.cache and images.nbytes <= config.cache:
        images.keep()
    return images


def _class_folders(place: Path, config: DataConfig, classes: Sequence[str]) -> tuple[Stored, Labels] | None:
    """Find the images of a folder of images, or nothing where it is none."""
    if not place.is_dir():
        return None
    name = names_in(config.train_split)[0]
    folder = splits_of(place, [name], classes).get(name, place)
    split = read_split(folder, str(place), empty_allowed=True)
    if not len(split):
        return None
    column = config.label_column if config.label_column in split.columns else "label"
    labels = split.labels(column)
    zeros = torch.zeros(len(split), dtype=torch.int64)
    return Stored(split.images(), torch.arange(len(split)), zeros, config.white), labels


def _tables(place: Path, config: DataConfig) -> tuple[Stored, Labels]:
    if place.is_dir() and not tables_in(place):
        raise DataError(_NONE.format(place))
    here = config.model_copy(update={"path": str(place), "name": None, "fingerprint": None})
    return open_labelled(here.model_copy(update={"train_split": names_in(config.train_split)[0], "on_bad": "skip"}))
