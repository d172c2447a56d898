"""What a folder of images means: which folders are splits, which are classes, and which files are images.

One reading for a scenario's data set, for a client's own images, and wherever else a folder is named. A folder of the
name of a split, of those that the caller names, is that split if it holds folders; every folder in a split, or in the
place itself where there are no splits, is a class, whatever it is called; all images in it and below it belong to it.
Links are followed. Names that begin with a dot or two underscores are passed over, and so are files that are no images,
which are counted. Whatever else fits in nowhere is refused by its name.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from splitfed.data.sources.base import file_bytes
from splitfed.data.sources.labels import Labels, plain, read_labels
from splitfed.data.sources.metadata import plain_values, read_metadata
from splitfed.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

# What splits are called: a folder of these names beside a split that is in use is another split, not a class.
SPLIT_NAMES = {
    "train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation", "unlabeled",
    "unlabelled",
}  # fmt: skip
# Kinds that Pillow knows by name alone and cannot decode.
_STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}


class Pictures:
    """Image files by row."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def content(self, row: int) -> bytes:
        """Return the bytes of a file; `OSError` where it cannot be read."""
        return Path(self._paths[row]).read_bytes()

    def where(self, row: int) -> str:
        """Return the path of the file."""
        return self._paths[row]

    def stored_bytes(self, rows: np.ndarray) -> int:
        """Return the bytes of these files."""
        return sum(file_bytes(self._paths[row]) for row in rows)


@dataclass(frozen=True)
class FolderSplit:
    """One split of a folder of images: its files, the class folder of each (None: it lies in none), and the columns of
    its table of metadata, if it has one."""

    where: str
    paths: list[str]
    classes: list[str]
    owners: list[int] | None
    table: "pa.Table | None"
    passed_over: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def columns(self) -> list[str]:
        """The names of the columns that it has."""
        more = [] if self.table is None else [name for name in self.table.column_names if name != "image"]
        return ["image", *(["label"] if self.owners is not None and "label" not in more else []), *more]

    def images(self, column: str = "image") -> Pictures:
        """Return the image files. Raises DataError for a column that holds other things."""
        if column != "image":
            raise DataError(
                f"data.image_column: column '{column}' of {self.where} holds no images; they are in 'image'"
            )
        return Pictures(self.paths)

    def labels(self, column: str = "label") -> Labels:
        """Return the labels in a column; `label` is the class folder where no table has such a column. Raises
        DataError."""
        where = f"data.label_column: column '{column}' of {self.where}"
        if column == "image":
            raise DataError(f"{where} holds images; labels are integers or strings, one for each image")
        if self.table is not None and column in self.table.column_names:
            return read_labels(self.table[column], None, where)
        return Labels(self.classes, np.array(self.owners or [], dtype=np.int64), False)

    def values(self, column: str) -> np.ndarray:
        """Return a column that clients are told apart by: numbers or strings. Raises DataError."""
        where = f"data.partition.partition_by: column '{column}' of {self.where}"
        if self.table is None or column not in self.table.column_names:
            if column == "image" or self.owners is None:
                raise DataError(f"{where} holds images; it must hold a number or a string for each image")
            return np.array([self.classes[number] for number in self.owners])
        found = self.table[column]
        if found.null_count:
            raise DataError(f"{where} holds empty values; it must hold a number or a string for each image")
        return plain_values(found)


def splits_of(place: Path, wanted: Sequence[str], classes: Sequence[str] = ()) -> dict[str, Path]:
    """Return the folders of the splits that are `wanted`; nothing where the place has no splits.

    `classes` are known names of classes: a folder of such a name, beside another of such a name, is a class. Raises
    DataError for a folder beside splits that is none itself.
    """
    folders = [path for path in entries(place) if path.is_dir()]
    found: dict[str, Path] = {}
    for name in dict.fromkeys(wanted):
        path = named(folders, name)
        if path is not None and any(entry.is_dir() or entry.stem == "metadata" for entry in entries(path)):
            found[name] = path
    rest = [path for path in folders if path not in found.values()]
    if len([path for path in folders if plain(path.name) in set(map(plain, classes))]) > 1:
        return {}
    if not found:
        usual = [path.name for path in rest if path.name.lower() in SPLIT_NAMES]
        if rest and len(usual) == len(rest) and all(any(e.is_dir() for e in entries(path)) for path in rest):
            raise DataError(
                f"data.train_split: {place} has {_and(usual)}, which look like splits, and none of them is "
                f"{_and([repr(name) for name in wanted], 'or')}; name them in data.train_split and data.test_split"
            )
        return {}
    kinds = {plain(entry.name) for path in found.values() for entry in entries(path) if entry.is_dir()}
    for path in rest:
        inside = {plain(entry.name) for entry in entries(path) if entry.is_dir()}
        if path.name.lower() not in SPLIT_NAMES and not inside & kinds and any(images_below(path)):
            raise DataError(
                f"data.path: {path} lies beside the {'split' if len(found) == 1 else 'splits'} {_and(list(found))} and "
                "is neither a split that data.train_split or data.test_split names nor one of its classes; move it away"
            )
    return found


def other_splits(place: Path, found: dict[str, Path]) -> list[str]:
    """Return the names of the folders beside splits that are not in use."""
    return [path.name for path in entries(place) if path.is_dir() and path not in found.values()] if found else []


def read_split(folder: Path, where: str, empty_allowed: bool = False, loose_allowed: bool = False) -> FolderSplit:
    """Read the class folders of a split, sorted by path. Raises DataError for images that lie in no class's folder and
    that no table of metadata names, unless they are `loose_allowed`, and for a class folder without images, unless
    `empty_allowed`."""
    here = entries(folder)
    kinds, loose = [path for path in here if path.is_dir()], [path for path in here if not path.is_dir()]
    strays = [str(path) for path in loose if is_image(path)]
    tables = [path for path in loose if path.stem.lower() == "metadata"]
    inside = {path: list(below(path)) for path in kinds}
    found = {path: sorted(str(file) for file in files if is_image(file)) for path, files in inside.items()}
    rest = [path for files in (loose, *inside.values()) for path in files if not is_image(path) and path not in tables]
    passed = Counter(map(_kind, rest))
    by_class = [(name, plain(path.name)) for path, files in found.items() for name in files]
    files = sorted([*strays, *(name for name, _ in by_class)])
    table = read_metadata(tables, folder, files) if tables else None
    if strays and table is None and not loose_allowed:
        raise DataError(f"{strays[0]}: lies in no class's folder; move it to the folder of its class, or remove it")
    empty = [path for path, files in found.items() if not files]
    if empty and not empty_allowed and table is None:
        raise DataError(f"{empty[0]}: is the folder of a class and holds no images{_instead(empty[0])}; remove it, or "
                        "put images into it")  # fmt: skip
    classes = sorted({name for _, name in by_class} | set() if empty_allowed else {plain(path.name) for path in kinds})
    order = {name: number for number, name in enumerate(classes)}
    owner = dict(by_class)
    owners = [order.get(owner.get(name, ""), -1) for name in files]
    all_inside = bool(files) and all(number >= 0 for number in owners)
    return FolderSplit(where, files, classes, owners if all_inside else None, table, passed)


def is_image(path: Path) -> bool:
    """Tell whether a file's name says that it is an image that can be decoded."""
    return path.suffix.lower() in _suffixes()


def named(paths: Sequence[Path], name: str) -> Path | None:
    """Return the path of this name; where there is none, the one that differs in capitals or Unicode form alone."""
    for same in (str, plain, lambda text: plain(text).casefold()):
        alike = [path for path in paths if same(path.name) == same(name)]
        if alike:
            return alike[0] if len(alike) == 1 else None
    return None


@cache
def _suffixes() -> frozenset[str]:
    Image.init()
    kinds = set(Image.OPEN) - _STUBS
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds)


def entries(folder: Path) -> list[Path]:
    """Return what lies in a folder, by name, without what systems leave behind."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")))


def below(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Give the files in a folder and below it; a link to a folder above itself is not followed again."""
    state = folder.stat()
    here = (state.st_dev, state.st_ino)
    if here in above:
        return
    for path in entries(folder):
        if path.is_dir():
            yield from below(path, above | {here})
        else:
            yield path


def images_below(folder: Path) -> Iterator[Path]:
    """Give the images in a folder and below it; also links to nothing, which cannot be decoded."""
    return filter(is_image, below(folder))


def _kind(path: Path) -> str:
    return path.suffix.lower() or "without a suffix"


def _instead(folder: Path) -> str:
    passed = Counter(map(_kind, below(folder)))
    return f", but {passed.total()} files that are none ({', '.join(sorted(passed))})" if passed else ""


def _and(words: Sequence[str], last: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
