"""What lies at a path on this machine: a table, a folder of tables or a folder of images, and its splits by name."""

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from splitfed.data.sources import hub
from splitfed.data.sources.folders import (
    SPLIT_NAMES,
    FolderSplit,
    entries,
    images_below,
    named,
    other_splits,
    read_split,
    splits_of,
)
from splitfed.data.sources.tables import SUFFIXES, TableSplit, group, is_table, matching, open_tables, tables_in
from splitfed.errors import DataError

Split = FolderSplit | TableSplit
# What the only split is called, where nothing at a place is called like one.
WHOLE = "train"


@dataclass(frozen=True)
class Local:
    """The splits at a path, each opened when it is called, and the folders beside them that are not used."""

    splits: dict[str, Callable[[], Split]]
    unused: list[str] = field(default_factory=list)


def look(
    path: str, place: Path, name: str | None, wanted: Sequence[str], tables_first: bool, labelled: bool = True
) -> Local | None:
    """Find out what lies at a place, for the splits that are `wanted`; nothing where nothing is there.

    `path` is how the user writes it, `name` the configuration of a clone of a data set of the Hub. Where both tables
    and images lie in a folder, `tables_first` tells which are meant. Images that need not be `labelled` may lie in no
    folder of a class. Raises DataError.
    """
    if not place.exists():
        if place.is_symlink():
            raise DataError(f"data.path: {path} is a link to {place.readlink()}, which is not there")
        found = matching(str(place))
        return Local({WHOLE: partial(open_tables, path, found, {})}) if found else None
    if place.is_file():
        if is_table(place):
            return Local({WHOLE: partial(open_tables, path, [place], {})})
        raise DataError(
            f"data.path: {path} is a file, and no table that can be read ({', '.join(sorted(SUFFIXES))}); unpack an "
            "archive, and name the folder of images"
        )
    if not place.is_dir():
        raise DataError(f"data.path: {path} is neither a folder nor a file")
    if any((place / found).is_file() for found in ("dataset_dict.json", "state.json")):
        return _saved(path, place)
    card = hub.read_card(place)
    if card.files:
        return _cloned(path, place, name, card)
    if name is not None:
        if not (place / name).is_dir():
            raise DataError(f"data.name: '{name}' is no folder in {path}, and no README.md there names configurations")
        return look(path, place / name, None, wanted, tables_first, labelled)
    tables = tables_in(place)
    if tables and (tables_first or _are_data(path, place, tables, wanted)):
        return _tables(path, place, tables, wanted, card.names_of(None))
    return _images(path, place, wanted, labelled)


def _are_data(path: str, place: Path, tables: Sequence[Path], wanted: Sequence[str]) -> bool:
    """Tell whether the tables of a folder are its data, or lie beside images that are."""
    for folder in list(splits_of(place, wanted).values()) or [place]:
        if any(entry.stem.lower() == "metadata" for entry in entries(folder)):
            return False
        with_images = [entry for entry in entries(folder) if entry.is_dir() and any(images_below(entry))]
        if len(with_images) > 1:
            return False
        if with_images:
            raise DataError(
                f"data.path: {path} holds images in one folder, {with_images[0].name}, and tables, such as "
                f"{tables[0].name}; name the table's file, or give each class a folder"
            )
    return True


def _tables(path: str, place: Path, tables: list[Path], wanted: Sequence[str], names: dict[str, list[str]]) -> Local:
    groups = group(place, tables)
    found = {name: named([Path(key) for key in groups], name) for name in wanted}
    called = {key.name: name for name, key in found.items() if key is not None}
    if not called and set(wanted) == {WHOLE} and not any(name.lower() in SPLIT_NAMES for name in groups):
        return Local({WHOLE: partial(open_tables, path, tables, names)})
    splits = {called.get(key, key): files for key, files in groups.items()}
    return Local(_opened(path, splits, names))


def _opened(path: str, splits: dict[str, list[Path]], names: dict[str, list[str]]) -> dict[str, Callable[[], Split]]:
    return {split: partial(open_tables, f"{path}, split '{split}'", files, names) for split, files in splits.items()}


def _images(path: str, place: Path, wanted: Sequence[str], labelled: bool) -> Local:
    found = splits_of(place, wanted)
    if not found:
        whole = read_split(place, path, loose_allowed=not labelled)
        if not len(whole):
            raise DataError(
                f"data.path: nothing to load at '{path}' (no images in folders of classes, and no tables); give a "
                "folder or file of images, a name on the Hub, or 'digits'"
            )
        return Local({WHOLE: lambda: whole})
    others = {name: place / name for name in other_splits(place, found)}
    splits: dict[str, Callable[[], Split]] = {
        name: partial(read_split, folder, f"{path}, split '{name}'", loose_allowed=not labelled)
        for name, folder in (found | others).items()
    }
    return Local(splits, list(others))


def _cloned(path: str, place: Path, name: str | None, card: hub.Card) -> Local:
    """Open the tables that a card names, under a configuration."""
    if name is None and len(card.files) > 1 and "default" not in card.files:
        raise DataError(f"data.name: {path} has several configurations, {', '.join(card.files)}; name one")
    chosen = name if name is not None else "default" if "default" in card.files else next(iter(card.files))
    if chosen not in card.files:
        raise DataError(f"data.name: {path} has no configuration '{chosen}'; it has {', '.join(card.files)}")
    splits: dict[str, list[Path]] = {}
    for split, patterns in card.files[chosen].items():
        files = {place / file for one in patterns for file in glob.glob(one, root_dir=place, recursive=True)}
        splits[split] = sorted(filter(is_table, files))
        if not splits[split]:
            raise DataError(f"data.path: {path} has no table for the split '{split}' that its README.md names")
    return Local(_opened(path, splits, card.names_of(chosen)))


def _saved(path: str, place: Path) -> Local:
    """Open what `Dataset.save_to_disk` has written."""
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(place))
    except Exception as error:  # whatever `datasets` makes of damaged files
        raise DataError(f"data.path: {path}: this saved data set cannot be read ({error}); repair it") from None
    parts = {str(name): part for name, part in saved.items()} if isinstance(saved, DatasetDict) else {WHOLE: saved}
    return Local({
        name: partial(TableSplit, f"{path}, split '{name}'", [(str(place / name), part)], {})
        for name, part in parts.items()
    })  # fmt: skip
