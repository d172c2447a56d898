"""The images of a scenario: which data set, how it is divided, and what each client and the server get of it."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from splitfed.data.images import Images
from splitfed.data.loading import open_stored
from splitfed.data.partitions.base import Column
from splitfed.data.settings import DataConfig
from splitfed.data.sources import Source, open_digits
from splitfed.data.stratify import spread
from splitfed.errors import DataError
from splitfed.seeds import Key


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
