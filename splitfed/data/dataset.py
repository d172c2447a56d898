"""The images of a scenario: which data set, how it is divided, and what each client and the server get of it."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from splitfed.config import Bytes, Config
from splitfed.data.batches import Augment, Batch, batches, count_batches
from splitfed.data.images import Images
from splitfed.data.loading import open_stored
from splitfed.data.partitions.base import Column
from splitfed.data.partitions.union import Iid, PartitionConfig
from splitfed.data.sources import Source, open_digits
from splitfed.data.stratify import spread
from splitfed.errors import DataError
from splitfed.seeds import Key

__all__ = ["Batch", "Counts", "DataConfig", "Expected", "FederatedData", "Images", "batches", "count_batches", "load"]


class Expected(Config):
    """What a data set is known to hold, before any limit; an estimate works from it where nothing is loaded."""

    classes: PositiveInt
    train: PositiveInt
    test: PositiveInt


@dataclass(frozen=True, slots=True)
class Counts:
    """How many images a scenario uses of each kind."""

    train: int
    validation: int
    test: int


class DataConfig(Config):
    """The data set and its use.

    `path` is what `datasets.load_dataset` takes, a name on the Hugging Face Hub (`name` picks its configuration), a
    folder or a file, or `digits`: the 1,797 real 8x8 images that scikit-learn brings, a fifth of them for testing; they
    need none of the keys up to `test_split`. A folder of one for each class has the columns `image` and `label`. Splits
    may be slices, such as `train[:80%]`; where there is no test split, `test_split` may be a share of the training
    split, such as 0.2: drawn by class, and the same whatever the seed. Labels are integers, with or without names, or
    strings, which are numbered in sorted order.

    `validation` is a share of the training images in use: `limit` of them are trained on, and with `limit: 5000` and
    `validation: 0.1` another 556 are held out. `limit` and `test_limit` are upper bounds. All of these choices are
    drawn from the seed and keep the shares of the classes.

    `workers` is the number of loader processes of each client that trains. `cache` is how much memory the resized
    images may take, all in all (`1 GiB`, a number of bytes, or null to decode them again each time).
    """

    path: str = Field(min_length=1)
    name: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    train_split: str = "train"
    test_split: str | Annotated[float, Field(gt=0, lt=1)] = "test"
    validation: float = Field(0.1, gt=0, lt=1)
    limit: PositiveInt | None = None
    test_limit: PositiveInt | None = None
    workers: NonNegativeInt = 0
    augment: Augment = "none"
    partition: PartitionConfig = Iid()
    cache: Bytes | None = 1 << 30
    expect: Expected | None = None

    def counts(self, train: int, test: int) -> Counts:
        """Return what is used of a data set with so many images; `DataError` where none would be left to train on."""
        validation = max(1, round(self.validation * train))
        used = train - validation
        if used < 1 or test < 1:
            raise DataError(
                f"data.validation: {self.validation:g} of {train} training images, with {test} test images, leaves "
                "nothing to train or to test on; use a larger data set or a smaller share"
            )
        if self.limit is not None and self.limit < used:
            used = self.limit
            validation = min(validation, max(1, round(used * self.validation / (1 - self.validation))))
        return Counts(used, validation, test if self.test_limit is None else min(test, self.test_limit))


@dataclass(frozen=True, slots=True)
class FederatedData:
    """What a run works on: three sets of images, the rows of `train` that each client holds, and the class names; where
    each client holds what belongs to one value of a column (`natural_id`), these values."""

    train: Images
    validation: Images
    test: Images
    partitions: list[Tensor]
    classes: list[str]
    owners: list[str] | None = None


def load(config: DataConfig, image_size: int, clients: int, key: Key) -> FederatedData:
    """Load, divide and deal the data: the same arguments give the same images to the same clients.

    Images are decoded when they are first used, to `[3, image_size, image_size]`. The last two results are kept, so
    that all who ask in one process share one copy; safe to call from threads. Raises `DataError`.
    """
    wanted = (config, image_size, clients, key)
    with _lock:
        if wanted not in _loaded:
            _loaded[wanted] = _load(*wanted)
            while len(_loaded) > 2:
                _loaded.popitem(last=False)
        _loaded.move_to_end(wanted)
        return _loaded[wanted]


_lock = threading.Lock()
_loaded: OrderedDict[tuple[DataConfig, int, int, Key], FederatedData] = OrderedDict()


def _load(config: DataConfig, image_size: int, clients: int, key: Key) -> FederatedData:
    train, test, classes = open_digits() if config.path == "digits" else open_stored(config)
    _check_expected(config, train, test, classes)
    counts = config.counts(len(train), len(test))
    order = spread(train.labels, key.at("validation"))
    stop = counts.validation + counts.train
    rows = order[counts.validation : stop].sort().values
    in_training = Images(train, rows, image_size)
    held_out = Images(train, order[: counts.validation].sort().values, image_size)
    in_test = Images(test, spread(test.labels, key.at("test"))[: counts.test].sort().values, image_size)
    left = config.cache or 0
    for images in (in_training, held_out, in_test):
        if images.nbytes <= left:
            left -= images.nbytes
            images.keep()
    column = _column(config, train, rows)
    partitions = config.partition.split(in_training.labels, clients, key.at("partition"), column)
    owners = [str(value) for value in column.known] if column and config.partition.kind == "natural_id" else None
    return FederatedData(in_training, held_out, in_test, partitions, classes, owners)


def _column(config: DataConfig, train: Source, rows: Tensor) -> Column | None:
    """Return the column that the partition goes by, of these rows of the training split."""
    name = getattr(config.partition, "partition_by", None)
    if name is None:
        return None
    if train.column is None:
        raise DataError(
            f"data.partition.partition_by: {config.path} has no columns, so none '{name}'; use a data set that has, or "
            "another data.partition"
        )
    return Column(name, train.column[rows.numpy()], np.unique(train.column))


def _check_expected(config: DataConfig, train: Source, test: Source, classes: list[str]) -> None:
    if config.expect is None:
        return
    found = {"classes": len(classes), "train": len(train), "test": len(test)}
    wrong = [f"{found[name]} {name}" for name, value in config.expect if found[name] != value]
    if wrong:
        raise DataError(
            f"data.expect: {config.path} holds {', '.join(f'{value} {name}' for name, value in found.items())}, not "
            f"{', '.join(f'{value} {name}' for name, value in config.expect)}; correct data.expect, or data.path"
        )
