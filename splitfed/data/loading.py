"""Opening what a scenario names, through `datasets.load_dataset`: every mistake is told by the key to change."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from splitfed.data.sources import Stored, first_line
from splitfed.data.stratify import spread
from splitfed.errors import DataError
from splitfed.model.hub import patient_only_online
from splitfed.seeds import Key

if TYPE_CHECKING:
    from datasets import Dataset

    from splitfed.data.settings import DataConfig


def open_stored(config: "DataConfig") -> tuple[Stored, Stored, list[str]]:
    """Open the training and the test split that a scenario names; return them and the class names.

    Raises `DataError` for all that is wrong with the path, the splits and the columns.
    """
    from datasets import ClassLabel

    if config.train_split == config.test_split:
        raise DataError(
            f"data.test_split: '{config.test_split}' is what is trained on; name another split, or slices such as "
            f"'{config.train_split}[:80%]' and '{config.train_split}[80%:]', or a share such as 0.2"
        )
    shared = isinstance(config.test_split, float)
    keys = ("train_split",) if shared else ("train_split", "test_split")
    splits = [_load_split(config, key) for key in keys]
    for key in ("image_column", "label_column"):
        _column(config, key, splits[0])
    values = [_labels(config, split) for split in splits]
    feature = splits[0].features[config.label_column]
    if isinstance(feature, ClassLabel):
        classes = list(feature.names)
        numbers = values
    else:
        unique = np.unique(np.concatenate(values))
        classes = [str(name) for name in unique]
        numbers = [np.searchsorted(unique, value) for value in values]
    for number, key in zip(numbers, keys, strict=True):
        if len(number) and (number.min() < 0 or number.max() >= len(classes)):
            raise DataError(
                f"data.label_column: '{config.label_column}' of {config.path}, split '{getattr(config, key)}', holds "
                f"labels outside its {len(classes)} classes, as unlabelled images have; use another split in data.{key}"
            )
    name = getattr(config.partition, "partition_by", None)
    sources = [
        Stored(_images(config, split), config.image_column, torch.from_numpy(number.astype(np.int64)),
               f"{config.path}, split '{getattr(config, key)}',")
        for split, number, key in zip(splits, numbers, keys, strict=True)
    ]  # fmt: skip
    if name is not None:
        sources[0].column = _values(config, name, splits[0])
    train, test = _divided(sources[0], config.test_split) if isinstance(config.test_split, float) else sources
    return train, test, classes


def _divided(source: Stored, share: float) -> tuple[Stored, Stored]:
    """Take a share of a split for testing: stratified by class, and the same whatever a run's seed."""
    order = spread(source.labels, Key(0).at("test_split"))
    count = max(1, round(share * len(order)))
    return source.of(order[count:].sort().values), source.of(order[:count].sort().values)


def open_training(config: "DataConfig") -> tuple[Stored, list[str] | None]:
    """Open the training split alone, or the only split that there is; return it and the names that its labels number
    (None: integers without names).

    Raises `DataError` for all that is wrong with the path and the columns.
    """
    from datasets import ClassLabel

    splits = _load(config, None, "train_split")
    if len(splits) > 1 and config.train_split not in splits:
        raise DataError(f"data.train_split: {config.path} has no '{config.train_split}'; it has {', '.join(splits)}")
    split = splits[config.train_split if config.train_split in splits else next(iter(splits))]
    images, labels = _images(config, split), _labels(config, split)
    names = None
    if isinstance(feature := split.features[config.label_column], ClassLabel):
        names = list(feature.names)
    elif labels.dtype.kind == "U":
        unique, labels = np.unique(labels, return_inverse=True)
        names = unique.tolist()
    return Stored(images, config.image_column, torch.from_numpy(labels.astype(np.int64)), config.path), names


def open_unlabelled(config: "DataConfig") -> Stored:
    """Open the images of the training split alone; their labels are all 0. Raises `DataError`."""
    split = _load_split(config, "train_split")
    labels = torch.zeros(len(split), dtype=torch.int64)
    return Stored(_images(config, split), config.image_column, labels, f"{config.path}, split '{config.train_split}',")


# What `datasets` calls the reader of a single file.
_READERS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json"}


def _load_split(config: "DataConfig", key: str) -> "Dataset":
    return _load(config, getattr(config, key), key)


def _load(config: "DataConfig", split: str | None, key: str) -> Any:
    """Load one split, or with None all of them by name; a mistake in the split is one in `key`."""
    import datasets

    path = Path(config.path).expanduser()
    reader = _READERS.get(path.suffix) if path.is_file() or "*" in config.path else None
    try:
        with _bars_on_terminals_only():
            if reader is not None:
                return datasets.load_dataset(reader, config.name, data_files=str(path), split=split)
            if path.exists():
                return datasets.load_dataset(str(path), config.name, split=split)
            with patient_only_online():
                return datasets.load_dataset(config.path, config.name, split=split)
    except FileNotFoundError as error:
        raise DataError(
            f"data.path: nothing to load at '{config.path}' ({first_line(error)}); give a folder or file of images, a "
            "name on the Hub, or 'digits'"
        ) from None
    except ConnectionError as error:
        raise DataError(
            f"data.path: no folder or file '{config.path}', and the Hub cannot be reached ({first_line(error)}); give "
            "the path of a copy on this machine, or 'digits'"
        ) from None
    except Exception as error:
        reason = first_line(error)
        guilty = "path"
        if reason.startswith(("Unknown split", "Unrecognized instruction", "Requested slice", "Instruction")):
            guilty = key
            if key == "test_split":
                reason += "; a share of the training images can be held out instead, such as 0.2"
        elif reason.startswith(("Config name", "BuilderConfig")):
            guilty = "name"
            reason = " ".join(str(error).split())[:300]
        which = f", split '{split}'," if split else ""
        raise DataError(f"data.{guilty}: {config.path}{which} cannot be loaded: {reason}") from None


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Keep the progress bars of `datasets` out of pipes and logs."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _column(config: "DataConfig", key: str, dataset: "Dataset") -> Any:
    name = getattr(config, key)
    if name not in dataset.features:
        raise DataError(f"data.{key}: no column '{name}' in {config.path}; it has {', '.join(dataset.features)}")
    return dataset.features[name]


def _images(config: "DataConfig", dataset: "Dataset") -> "Dataset":
    from datasets import Image as ImageFeature
    from datasets import Value

    feature = _column(config, "image_column", dataset)
    stored = isinstance(feature, dict) and "bytes" in feature and "path" in feature
    plain = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary", "string", "large_string")
    if not (stored or plain or isinstance(feature, ImageFeature)):
        raise DataError(
            f"data.image_column: column '{config.image_column}' of {config.path} holds no images; "
            f"it has {', '.join(dataset.features)}"
        )
    column = dataset.select_columns([config.image_column])
    return column.cast_column(config.image_column, ImageFeature(decode=False))


def _labels(config: "DataConfig", dataset: "Dataset") -> np.ndarray:
    from datasets import ClassLabel, Value

    feature = _column(config, "label_column", dataset)
    number = isinstance(feature, Value) and feature.dtype.startswith(("int", "uint"))
    text = isinstance(feature, Value) and feature.dtype in ("string", "large_string")
    values = dataset.select_columns([config.label_column]).with_format("arrow")[:][config.label_column]
    if not (number or text or isinstance(feature, ClassLabel)) or values.null_count:
        kind = (
            "empty values"
            if values.null_count
            else feature.dtype
            if isinstance(feature, Value)
            else type(feature).__name__
        )
        raise DataError(
            f"data.label_column: column '{config.label_column}' of {config.path} holds {kind}; labels are integers or "
            "strings, one for each image"
        )
    return np.array(values.to_pylist(), dtype=str) if text else values.to_numpy()


def _values(config: "DataConfig", name: str, dataset: "Dataset") -> np.ndarray:
    """Return the column that clients are told apart by: numbers or strings, names where the labels of it have some."""
    from datasets import ClassLabel, Value

    if name not in dataset.features:
        raise DataError(
            f"data.partition.partition_by: no column '{name}' in {config.path}; it has {', '.join(dataset.features)}"
        )
    feature = dataset.features[name]
    values = dataset.select_columns([name]).with_format("arrow")[:][name]
    if not isinstance(feature, Value | ClassLabel) or values.null_count:
        kind = "empty values" if values.null_count else type(feature).__name__
        raise DataError(
            f"data.partition.partition_by: column '{name}' of {config.path} holds {kind}; it must hold a number or a "
            f"string for each image; it has {', '.join(dataset.features)}"
        )
    if isinstance(feature, ClassLabel):
        return np.array(feature.names)[values.to_numpy()]
    return (
        values.to_numpy() if feature.dtype.startswith(("int", "uint", "float")) else np.array(values.to_pylist(), str)
    )
