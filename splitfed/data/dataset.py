"""The images of a scenario: which data set, how it is divided, and what each client and the server get of it."""

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from splitfed.data.images import Images
from splitfed.data.partitions.base import Column
from splitfed.data.partitions.evenly import Shifted, View
from splitfed.data.settings import DataConfig, Fingerprint
from splitfed.data.sources import fingerprint
from splitfed.data.sources.base import Source
from splitfed.data.sources.checking import refusal, undecodable
from splitfed.data.sources.opening import Opened, open_sources
from splitfed.data.stratify import spread
from splitfed.errors import DataError
from splitfed.seeds import Key


@dataclass(frozen=True, slots=True)
class FederatedData:
    """What a run works on: three sets of images, the rows of `train` that each client holds, and the class names; where
    each client holds what belongs to one value of a column (`natural_id`), these values; where each sees its images in
    a way of its own (`shifted`), these `views`. `bad` images are left out, as `on_bad: skip` says; `notes` are what
    else a user should know of the data, in words."""

    train: Images
    validation: Images
    test: Images
    partitions: list[Tensor]
    classes: list[str]
    owners: list[str] | None
    fingerprint: Fingerprint
    notes: list[str] = field(default_factory=list)
    views: list[View] | None = None

    @property
    def bad(self) -> int:
        """How many images are left out, as they cannot be decoded or have no label."""
        return self.fingerprint.bad

    @property
    def images_bytes(self) -> int:
        """What the images weigh that clients train on or hold out, as they are stored, in bytes. It is read anew each
        time: where images are files, all of them are looked up."""
        return self.train.stored_bytes(torch.cat(self.partitions))

    def check(self, training: bool = True) -> None:
        """Decode all images that a run uses, those to train on only if `training` and where they stay in memory: else
        it would cost a pass over them. Raises `DataError` with all that cannot be decoded."""
        looked_at = [*([self.train] if training and self.train.kept else []), self.validation, self.test]
        if wrong := [error for images in looked_at for error in images.undecodable().values()]:
            raise refusal(wrong)


def load(config: DataConfig, image_size: int, clients: int, key: Key) -> FederatedData:
    """Load, divide and deal the data: the same arguments give the same images to the same clients.

    Images are decoded when they are first used, to `[3, image_size, image_size]`. The last two results are kept, so
    that all who ask in one process share one copy, until `forget`; safe to call from threads. Raises `DataError`, also
    for data that are not those of the config's fingerprint.
    """
    # Paths may be relative, and the fingerprint says only what must be there.
    wanted = (os.getcwd(), config.model_copy(update={"fingerprint": None}), image_size, clients, key)
    with _lock:
        if wanted not in _loaded:
            _loaded[wanted] = _load(config, image_size, clients, key)
            while len(_loaded) > 2:
                _loaded.popitem(last=False)
        _loaded.move_to_end(wanted)
        data = _loaded[wanted]
    _check_same(config, data.fingerprint)
    return data


def check_all(config: DataConfig) -> None:
    """Decode every image of a data set, also those that a run would not use. Raises `DataError` with all that cannot
    be decoded, unless they are to be left out."""
    opened = open_sources(config)
    wrong = [
        error for source in (opened.train, opened.test) for error in undecodable(len(source), source.image).values()
    ]
    if wrong and config.on_bad == "refuse":
        raise refusal(wrong)


def forget() -> None:
    """Read the data anew when they are next asked for: files may have changed since."""
    with _lock:
        _loaded.clear()


_lock = threading.Lock()
_loaded: OrderedDict[tuple[str, DataConfig, int, int, Key], FederatedData] = OrderedDict()


def _load(config: DataConfig, image_size: int, clients: int, key: Key) -> FederatedData:
    opened = open_sources(config)
    _check_expected(config, opened)
    mark = fingerprint.take(opened.train, opened.test, opened.classes)
    _check_same(config, mark)  # before rows that another data set had wrong are left out of this one
    mark = _with_bad_rows(config, opened, mark)
    train, test = _without(opened.train, mark.bad_train), _without(opened.test, mark.bad_test)
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
    views = config.partition.views(clients, key.at("partition")) if isinstance(config.partition, Shifted) else None
    if views:
        in_training.seen(partitions, views, key.at("views"))
    bad = [f"{mark.bad:,} images are left out: they cannot be decoded, or have no label"] if mark.bad else []
    notes = [*bad, *opened.notes, *_limits(config, counts.train, counts.test)]
    return FederatedData(in_training, held_out, in_test, partitions, opened.classes, owners, mark, notes, views)


def _with_bad_rows(config: DataConfig, opened: Opened, mark: Fingerprint) -> Fingerprint:
    """Note the rows that `on_bad: skip` leaves out: as a run has them already, or all images are looked at."""
    if config.on_bad == "refuse":
        return mark
    known = config.fingerprint
    if known is not None:
        return mark.model_copy(update={"bad_train": known.bad_train, "bad_test": known.bad_test})
    bad = [tuple(_bad_rows(source)) for source in (opened.train, opened.test)]
    return mark.model_copy(update={"bad_train": bad[0], "bad_test": bad[1]})


def _bad_rows(source: Source) -> list[int]:
    unlabelled = (source.labels < 0).nonzero().flatten().tolist()
    return sorted({*unlabelled, *undecodable(len(source), source.image)})


def _without(source: Source, rows: tuple[int, ...]) -> Source:
    if not rows:
        return source
    kept = torch.ones(len(source), dtype=torch.bool)
    kept[list(rows)] = False
    return source.of(kept.nonzero().flatten())


def _limits(config: DataConfig, train: int, test: int) -> list[str]:
    """Tell of limits beyond what there is."""
    asked = ((config.limit, train, "limit", "to train on"), (config.test_limit, test, "test_limit", "to test on"))
    return [
        f"data.{name}: {limit:,} are asked for, {there:,} images {what} are there"
        for limit, there, name, what in asked
        if limit is not None and limit > there
    ]


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


def _check_same(config: DataConfig, found: Fingerprint) -> None:
    if config.fingerprint is not None and (difference := fingerprint.differences(found, config.fingerprint)):
        raise DataError(
            f"data.path: {config.path} holds other data than the run began with: {difference}; name the place of the "
            "run's own data with --data, or start a new run"
        )


def _check_expected(config: DataConfig, opened: Opened) -> None:
    if config.expect is None:
        return
    found = {"classes": len(opened.classes), "train": len(opened.train), "test": len(opened.test)}
    wrong = [f"{found[name]} {name}" for name, value in config.expect if found[name] != value]
    if wrong:
        raise DataError(
            f"data.expect: {config.path} holds {', '.join(f'{value} {name}' for name, value in found.items())}, not "
            f"{', '.join(f'{value} {name}' for name, value in config.expect)}; correct data.expect, or data.path"
        )
