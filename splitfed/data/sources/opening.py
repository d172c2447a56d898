"""Opening what a scenario's `data.path` names: a path that exists is taken as it is, whatever it is called; anything
else is a name on the Hub. Every mistake is told by the key to change."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from splitfed.data.sources import hub
from splitfed.data.sources.base import Encoded, Source, Stored, open_digits
from splitfed.data.sources.folders import FolderSplit
from splitfed.data.sources.labels import Labels, joined, matched
from splitfed.data.sources.local import Local, Split, look
from splitfed.data.sources.tables import TableSplit
from splitfed.data.stratify import spread
from splitfed.errors import DataError
from splitfed.seeds import Key

if TYPE_CHECKING:
    from splitfed.data.settings import DataConfig


@dataclass(frozen=True)
class Opened:
    """A data set: training and test images, the class names, and what else a user should know of it, in words."""

    train: Source
    test: Source
    classes: list[str]
    notes: list[str] = field(default_factory=list)


def open_sources(config: "DataConfig") -> Opened:
    """Open the training and the test split that a scenario names.

    Classes are those of the training split, and labels of the test split are matched to them by name. With
    `on_bad: skip` labels are -1 where an image has none. Raises `DataError` for all that is wrong with the path, the
    splits and the columns.
    """
    if config.path == "digits":
        here = Path("digits").exists()
        return Opened(*open_digits(), ["the folder digits is not read: its name here is ./digits"] if here else [])
    if config.train_split == config.test_split:
        raise DataError(
            f"data.test_split: '{config.test_split}' is what is trained on; name another split, or slices such as "
            f"'{config.train_split}[:80%]' and '{config.train_split}[80%:]', or a share such as 0.2"
        )
    shared = isinstance(config.test_split, float)
    with readable(config.path):
        (first, *rest), notes = _choose(config, ["train_split"] if shared else ["train_split", "test_split"])
        _column(config, "image_column", first)
        labels = _labels(config, first)
        train = _stored(config, first, labels.tensor())
        if isinstance(config.test_split, float):
            return Opened(*_divided(train, config.test_split), labels.names, notes)
        numbers = matched(_labels(config, rest[0]), labels.names, f"data.label_column: {rest[0].where}")
        return Opened(train, _stored(config, rest[0], torch.from_numpy(numbers)), labels.names, notes)


def open_labelled(config: "DataConfig") -> tuple[Stored, Labels]:
    """Open the training split alone, or the only split that there is, with the labels that it has; those of the source
    are all 0. Raises `DataError` for all that is wrong with the path and the columns."""
    with readable(config.path):
        (chosen,), _ = _choose(config, ["train_split"], or_the_only_one=True)
        source = _stored(config, chosen, torch.zeros(len(chosen), dtype=torch.int64))
        return source, _labels(config, chosen)


def open_unlabelled(config: "DataConfig") -> Stored:
    """Open the images of the training split alone; their labels are all 0. Raises `DataError`."""
    with readable(config.path):
        (chosen,), _ = _choose(config, ["train_split"], labelled=False)
        return _stored(config, chosen, torch.zeros(len(chosen), dtype=torch.int64))


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Tell in one line of DataError where a folder or file cannot be read."""
    try:
        yield
    except OSError as error:
        raise DataError(f"data.path: {error.filename or path}: cannot be read ({error.strerror or error})") from None


def place_of(path: str) -> Path:
    """Return the path that a user has written: as it is, if it exists, or `~` written out. Raises DataError where there
    is no such user."""
    if Path(path).exists():
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(f"data.path: {path}: there is no user of this name; write the path of the folder") from None


@dataclass(frozen=True)
class Chosen:
    """Rows of one or several splits, as `train[:80%]` or `train+validation` names them; `where` names them all."""

    where: str
    parts: list[tuple[Split, np.ndarray]]

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.parts)

    @property
    def columns(self) -> list[str]:
        """The names of the columns that all its splits have."""
        first, *rest = [split.columns for split, _ in self.parts]
        return [name for name in first if all(name in other for other in rest)]

    @property
    def folders(self) -> list[FolderSplit]:
        """Those of its splits that are folders of images."""
        return [split for split, _ in self.parts if isinstance(split, FolderSplit)]

    def labels(self, column: str) -> Labels:
        """Return the labels in a column."""
        found = [split.labels(column).of(rows) for split, rows in self.parts]
        return joined(found, f"data.label_column: column '{column}' of {self.where}")

    def images(self, column: str) -> "_Chain":
        """Return the encoded images in a column."""
        opened = {id(split): split.images(column) for split, _ in self.parts}  # slices may share a split
        return _Chain([(opened[id(split)], rows) for split, rows in self.parts])

    def values(self, column: str) -> np.ndarray:
        """Return a column that clients are told apart by."""
        return np.concatenate([split.values(column)[rows] for split, rows in self.parts])


class _Chain:
    """Rows of several sets of images, one set after the other."""

    def __init__(self, parts: Sequence[tuple[Encoded, np.ndarray]]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(rows) for _, rows in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, row: int) -> tuple[Encoded, int]:
        part = int(np.searchsorted(self._ends, row, side="right"))
        images, rows = self._parts[part]
        return images, int(rows[row - int(self._ends[part] - len(rows))])

    def content(self, row: int) -> bytes:
        """Return the bytes of an image."""
        images, place = self._find(row)
        return images.content(place)

    def where(self, row: int) -> str:
        """Return where an image is."""
        images, place = self._find(row)
        return images.where(place)

    def stored_bytes(self, rows: np.ndarray) -> int:
        """Return what the images of these rows weigh, in bytes; one that two slices name weighs once."""
        part = np.searchsorted(self._ends, rows, side="right")
        found: dict[int, tuple[Encoded, list[np.ndarray]]] = {}
        for number, (images, chosen) in enumerate(self._parts):
            places = chosen[rows[part == number] - (self._ends[number] - len(chosen))]
            found.setdefault(id(images), (images, []))[1].append(places)
        return sum(images.stored_bytes(np.unique(np.concatenate(places))) for images, places in found.values())


def _choose(
    config: "DataConfig", keys: Sequence[str], or_the_only_one: bool = False, labelled: bool = True
) -> tuple[list[Chosen], list[str]]:
    """Return the rows that each key's split names, and what to tell of the place."""
    specs = {key: str(getattr(config, key)) for key in keys}
    place = place_of(config.path)
    wanted = list(dict.fromkeys(name for spec in specs.values() for name in names_in(spec)))
    columns_set = bool(config.model_fields_set & {"image_column", "label_column"})
    here = look(config.path, place, config.name, wanted, columns_set, labelled)
    if here is not None:
        if or_the_only_one and len(here.splits) == 1:
            specs = {key: next(iter(here.splits)) for key in keys}
        found = {key: _rows(config, here, key, spec) for key, spec in specs.items()}
        passed = sum((split.passed_over for chosen in found.values() for split in chosen.folders), Counter[str]())
        notes = [f"not used: {', '.join(here.unused)}"] if here.unused else []
        if passed:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(passed.items()))
            notes.append(f"passed over, as they are no images: {kinds}")
        return [found[key] for key in keys], notes
    if not hub.is_name(config.path):
        raise DataError(
            f"data.path: nothing to load at '{config.path}', no such folder or file; give a folder or file of images, "
            "a name on the Hub, or 'digits'"
        )
    whole = []
    for key, spec in specs.items():
        where = f"{config.path}, split '{spec}'"
        split = TableSplit(where, [(config.path, hub.load(config, key))], {})
        whole.append(Chosen(where, [(split, np.arange(len(split)))]))
    return whole, []


def names_in(spec: str) -> list[str]:
    """Return the splits that `train[:80%]+validation` names."""
    return [part.partition("[")[0].strip() for part in spec.split("+")]


def _rows(config: "DataConfig", here: Local, key: str, spec: str) -> Chosen:
    from datasets import ReadInstruction

    for name in names_in(spec):
        if name not in here.splits:
            more = (
                "; a share of the training images can be held out instead, such as 0.2" if key == "test_split" else ""
            )
            raise DataError(f"data.{key}: {config.path} has no split '{name}'; it has {', '.join(here.splits)}{more}")
    splits = {name: here.splits[name]() for name in names_in(spec)}
    try:
        lengths = {name: len(split) for name, split in splits.items()}
        found = ReadInstruction.from_spec(spec).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise DataError(f"data.{key}: '{spec}' is no split or slice of {config.path}: {reason}") from None
    parts = [(splits[part.splitname], np.arange(part.from_, part.to)) for part in found]
    return Chosen(f"{config.path}, split '{spec}'", parts)


def _column(config: "DataConfig", key: str, chosen: Chosen) -> str:
    name: str = getattr(config, key)
    if name not in chosen.columns:
        raise DataError(f"data.{key}: no column '{name}' in {config.path}; it has {', '.join(chosen.columns)}")
    return name


def _labels(config: "DataConfig", chosen: Chosen) -> Labels:
    labels = chosen.labels(_column(config, "label_column", chosen))
    missing = int((labels.numbers < 0).sum())
    if missing and config.on_bad == "refuse":
        raise DataError(
            f"data.label_column: {missing:,} of {len(labels.numbers):,} images in {chosen.where} have no label (empty "
            f"or negative) in column '{config.label_column}'; use another split, or leave them out with data.on_bad: "
            "skip"
        )
    return labels


def _stored(config: "DataConfig", chosen: Chosen, labels: Tensor) -> Stored:
    images = chosen.images(_column(config, "image_column", chosen))
    source = Stored(images, torch.arange(len(chosen)), labels, config.white)
    by = getattr(config.partition, "partition_by", None)
    if by is not None:
        if by not in chosen.columns:
            raise DataError(
                f"data.partition.partition_by: no column '{by}' in {config.path}; it has {', '.join(chosen.columns)}"
            )
        source.column = chosen.values(by)
    return source


def _divided(source: Stored, share: float) -> tuple[Stored, Stored]:
    """Take a share of a split for testing: stratified by class, and the same whatever a run's seed."""
    order = spread(source.labels, Key(0).at("test_split"))
    count = max(1, round(share * len(order)))
    return source.of(order[count:].sort().values), source.of(order[:count].sort().values)
