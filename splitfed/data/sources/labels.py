"""Labels by name: what lies in a column, which classes it stands for, and how those of two places are matched."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from splitfed.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

MISSING = -1


@dataclass(frozen=True)
class Labels:
    """The labels of some images: `numbers` (int64 `[N]`) are places in `names`, or `MISSING` for an image without one.
    `numeric` names are whole numbers, which nothing else gives a meaning to."""

    names: list[str]
    numbers: np.ndarray
    numeric: bool

    def of(self, rows: np.ndarray) -> "Labels":
        """Return those of some rows."""
        return Labels(self.names, self.numbers[rows], self.numeric)

    @property
    def used(self) -> list[str]:
        """The names that occur."""
        return [self.names[number] for number in np.unique(self.numbers[self.numbers >= 0])]

    def tensor(self) -> Tensor:
        """Return the numbers as a tensor, int64 `[N]`."""
        return torch.from_numpy(self.numbers)


def plain(name: str) -> str:
    """Return a name in the one Unicode form (NFC) in which names are compared: Linux and macOS write letters such as
    an umlaut in two ways."""
    return unicodedata.normalize("NFC", name)


def read_labels(values: "pa.Array | pa.ChunkedArray", names: Sequence[str] | None, where: str) -> Labels:
    """Read a column of labels: whole numbers, numbered `names`, or strings.

    Null, a negative number and an empty string stand for an image without a label. Raises DataError, which begins with
    `where`, for any other type and for numbers beyond the names.
    """
    import pyarrow as pa

    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_null(values.type):
        return Labels(list(map(plain, names or [])), np.full(len(values), MISSING), names is None)
    if _is_text(values.type):
        found = np.array([plain(value or "") for value in values.to_pylist()], dtype=object)
        return _named(found)
    if not pa.types.is_integer(values.type):
        raise DataError(f"{where} holds {values.type}; labels are integers or strings, one for each image")
    numbers = np.array(values.fill_null(MISSING if pa.types.is_signed_integer(values.type) else 0))
    missing = np.array(values.is_null()) | (numbers < 0)
    if names is None:
        kinds, places = np.unique(numbers[~missing], return_inverse=True)
        out = np.full(len(numbers), MISSING, dtype=np.int64)
        out[~missing] = places
        return Labels([str(kind) for kind in kinds], out, True)
    if len(numbers) and int(numbers[~missing].max(initial=0)) >= len(names):
        raise DataError(
            f"{where} has the label {int(numbers[~missing].max())}, where labels are from 0 to {len(names) - 1}; "
            "correct or remove these images"
        )
    given = [plain(name) for name in names]
    unique = list(dict.fromkeys(given))
    places = np.array([*(unique.index(name) for name in given), MISSING], dtype=np.int64)  # the last for -1
    return Labels(unique, places[np.where(missing, MISSING, numbers.astype(np.int64))], False)


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _named(found: np.ndarray) -> Labels:
    blank = np.array([not name.strip() for name in found], dtype=bool)
    names = sorted(set(found[~blank]))
    places = {name: number for number, name in enumerate(names)}
    return Labels(names, np.array([places.get(name, MISSING) for name in found], dtype=np.int64), False)


def joined(parts: Sequence[Labels], where: str) -> Labels:
    """Return the labels of several files as those of one. Raises DataError where some have names and some numbers."""
    if len(parts) == 1:
        return parts[0]
    if len({part.numeric for part in parts if part.names}) > 1:
        raise DataError(f"{where} holds names in some files and numbers in others; write them alike")
    numeric = any(part.numeric for part in parts)
    first = parts[0].names
    same = all(set(part.names) == set(first) for part in parts)
    union = {name for part in parts for name in part.names}
    names = first if same else sorted(union, key=int if numeric else None)
    numbers = [np.array([*(names.index(name) for name in part.names), MISSING])[part.numbers] for part in parts]
    return Labels(names, np.concatenate(numbers).astype(np.int64), numeric)


def matched(labels: Labels, classes: Sequence[str], where: str) -> np.ndarray:
    """Return the labels as numbers of `classes`, matched by name. Raises DataError for a name that is not among them,
    with both lists."""
    known = {plain(name): number for number, name in enumerate(classes)}
    if labels.numeric and not all(name.isdecimal() for name in known):
        raise DataError(
            f"{where} has labels that are numbers, {listed(labels.used)}, and the classes have names, "
            f"{listed(list(known))}, so that nothing tells which is which; write names into the column"
        )
    for name in labels.used:
        if name not in known:
            close = get_close_matches(name, list(known), n=1)
            hint = f"did you mean '{close[0]}'?" if close else "rename it, or remove its images"
            raise DataError(
                f"{where}: class '{name}' is not among the classes ({listed(list(known))}); "
                f"here are {listed(labels.used)}; {hint}"
            )
    places = np.array([*(known.get(name, MISSING) for name in labels.names), MISSING], dtype=np.int64)
    return places[labels.numbers]


def listed(classes: Sequence[str], most: int = 8) -> str:
    """Return the names in quotes, the first ones where there are many."""
    shown = ", ".join(f"'{name}'" for name in classes[:most])
    return shown if len(classes) <= most else f"{shown} and {len(classes) - most} more"
