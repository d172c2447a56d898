"""The table `metadata` of a folder of images, as CSV, JSON lines or Parquet: one row for each image, by its path."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from splitfed.data.sources.labels import plain
from splitfed.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_NAME = "file_name"


def read_metadata(tables: list[Path], folder: Path, files: list[str]) -> "pa.Table":
    """Return the rows of the table of a folder, one for each of `files` and in their order.

    Raises DataError for a table that cannot be read, and unless it names every image, each once, and no others.
    """
    import pyarrow as pa

    if len(tables) > 1:
        raise DataError(f"{folder}: has {len(tables)} tables of metadata, {_names(tables)}; leave one")
    (path,) = tables
    try:
        table = read_rows(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
        raise DataError(
            f"{path}: cannot be read as a table ({str(error).splitlines()[0]}); repair or remove it"
        ) from None
    if _NAME not in table.column_names:
        raise DataError(f"{path}: has no column '{_NAME}'; it has {', '.join(table.column_names)}")
    given = [plain(os.path.normpath(str(name).replace("\\", "/"))) for name in table[_NAME].to_pylist()]
    present = [plain(os.path.relpath(name, folder)) for name in files]
    twice = [name for name, count in Counter(given).items() if count > 1]
    if twice:
        raise DataError(f"{path}: names {twice[0]} more than once; leave one row for each image")
    rows = {name: row for row, name in enumerate(given)}
    for has, lacks, what in ((rows, set(present), "names {}, which is not there"), (present, rows, "does not name {}")):
        wrong = [name for name in has if name not in lacks]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise DataError(
                f"{path}: {what.format(wrong[0])}{more}, with {len(given)} rows for {len(present)} images; every image "
                "has one row: add or remove rows, or images"
            )
    return table.drop_columns([_NAME]).take(pa.array([rows[name] for name in present], pa.int64()))


def read_rows(path: Path) -> "pa.Table":
    """Read a table of CSV, TSV, JSON lines or Parquet, by its suffix. Raises OSError and ValueError, pyarrow's among
    them, and for another suffix ValueError."""
    import pyarrow as pa
    from pyarrow import csv, parquet
    from pyarrow.json import read_json

    suffix = path.suffix.lower()
    with open(path, "rb") as file:
        if suffix == ".parquet":
            return parquet.read_table(file)
        if suffix == ".json" and file.read(4096).lstrip()[:1] == b"[":  # one list, where pyarrow reads lines
            file.seek(0)
            return pa.Table.from_pylist(json.load(file))
        file.seek(0)
        if suffix in (".json", ".jsonl"):
            return read_json(file)
        if suffix in (".csv", ".tsv"):
            separator = "\t" if suffix == ".tsv" else ","
            # Nothing but an empty cell is missing: a class may be called NA.
            return csv.read_csv(
                file, parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
                convert_options=csv.ConvertOptions(null_values=[""], strings_can_be_null=True,
                                                   true_values=[], false_values=[]),
            )  # fmt: skip
    raise ValueError(f"{suffix or 'no suffix'} is no kind of table that is known")


def plain_values(values: "pa.ChunkedArray") -> np.ndarray:
    """Return numbers as they are, anything else as strings."""
    import pyarrow as pa

    number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    return values.to_numpy() if number else np.array(values.to_pylist(), dtype=str)


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)
