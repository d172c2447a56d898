"""Data sets of the Hugging Face Hub, and what a clone of one says of itself."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from splitfed.data.settings import looks_like_name
from splitfed.data.sources.base import first_line
from splitfed.errors import DataError
from splitfed.model.hub import patient_only_online

if TYPE_CHECKING:
    from datasets import Dataset

    from splitfed.data.settings import DataConfig

_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_name(path: str) -> bool:
    """Tell whether something can be the name of a data set on the Hub, rather than a path that is not there."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as readers  # the names of readers, no public list

    return looks_like_name(path) and path not in readers


def load(config: "DataConfig", key: str) -> "Dataset":
    """Load the split that a key of the config names from the Hub, or as it was loaded from there before. Raises
    DataError; a mistake in the split is one in `key`."""
    import datasets

    split = getattr(config, key)
    try:
        with _bars_on_terminals_only(), patient_only_online():
            found = datasets.load_dataset(config.path, config.name, split=split)
    except FileNotFoundError as error:
        raise DataError(
            f"data.path: nothing to load at '{config.path}' ({first_line(error)}); give a folder or file of images, a "
            "name on the Hub, or 'digits'"
        ) from None
    except ConnectionError as error:
        raise _not_reached(config, first_line(error)) from None
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
        raise DataError(f"data.{guilty}: {config.path}, split '{split}', cannot be loaded: {reason}") from None
    # What `datasets` has made of a folder lies in its cache under the folder's name, as if it were the Hub's.
    if not all(_COMMIT.fullmatch(Path(file["filename"]).parent.name) for file in found.cache_files):
        raise _not_reached(config, "and what is in the cache under this name was a folder on this machine")
    return found


def _not_reached(config: "DataConfig", reason: str) -> DataError:
    return DataError(
        f"data.path: no folder or file '{config.path}', and the Hub cannot be reached ({reason}); give the path of a "
        "copy on this machine, or 'digits'"
    )


@dataclass(frozen=True)
class Card:
    """What the README.md of a data set says: the patterns of the files of each split by configuration, and the names of
    numbered labels by configuration and column."""

    files: dict[str, dict[str, list[str]]]
    names: dict[str, dict[str, list[str]]]

    def names_of(self, configuration: str | None) -> dict[str, list[str]]:
        """Return the names of labels by column, of a configuration or of the only one."""
        if configuration in self.names:
            return self.names[configuration]
        return next(iter(self.names.values())) if len(self.names) == 1 else {}


def read_card(folder: Path) -> Card:
    """Return what the card of a folder says, which is nothing where it has none that can be read."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        about: Any = yaml.safe_load(found.group(1)) if found else {}
    except (OSError, ValueError, yaml.YAMLError):
        return Card({}, {})
    about = about if isinstance(about, dict) else {}
    files = {
        _called(one): patterns
        for one in _entries(about.get("configs"))
        if (patterns := _patterns(one.get("data_files")))
    }
    return Card(files, {_called(one): _names(one) for one in _entries(about.get("dataset_info"))})


def _called(entry: dict[str, Any]) -> str:
    return str(entry.get("config_name", "default"))


def _entries(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, dict)]


def _patterns(value: Any) -> dict[str, list[str]]:
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        return {"train": [value] if isinstance(value, str) else value}
    found: dict[str, list[str]] = {}
    for entry in _entries(value):
        paths = entry.get("path")
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, str) and isinstance(entry.get("split"), str):
                found.setdefault(entry["split"], []).append(path)
    return found


def _names(entry: dict[str, Any]) -> dict[str, list[str]]:
    found = {}
    for feature in _entries(entry.get("features")):
        kind = feature.get("dtype")
        names = kind.get("class_label", {}).get("names") if isinstance(kind, dict) else None
        if isinstance(names, dict):
            names = [str(names[key]) for key in sorted(names, key=int)]
        if isinstance(names, list):
            found[str(feature.get("name"))] = [str(name) for name in names]
    return found


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
