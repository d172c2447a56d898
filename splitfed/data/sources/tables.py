"""Tables on this machine: files of rows that hold images, or name image files, and which files make up which split.

Paths are taken as they are: nothing in them is a pattern, unless no file of that name exists. A table becomes Arrow on
disk, once, in the cache of `datasets`, so that any row is read without the others.
"""

import glob
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splitfed.data.sources.base import file_bytes
from splitfed.data.sources.folders import below
from splitfed.data.sources.labels import Labels, joined, read_labels
from splitfed.data.sources.metadata import plain_values, read_rows
from splitfed.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from pyarrow import parquet

SUFFIXES = {".parquet", ".arrow", ".json", ".jsonl", ".csv", ".tsv"}
# `train-00000-of-00004`, `train_3`, `train.0`: a part of `train`.
_SHARD = re.compile(r"[-_.]\d+(-of-\d+)?$")
LENGTHS = 1000  # whose lengths are read at once


class Cells:
    """Encoded images in the cells of tables: bytes, or the path of a file, which is relative to its table's folder."""

    def __init__(self, parts: Sequence[tuple[str, "Dataset"]], column: str) -> None:
        self._parts, self._column = list(parts), column
        self._ends = np.cumsum([len(dataset) for _, dataset in parts])
        self._lengths: dict[int, tuple[np.ndarray, pa.ChunkedArray]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def content(self, row: int) -> bytes:
        """Return the bytes of an image; `OSError` where its file cannot be read, `ValueError` for an empty cell."""
        name, dataset, place = self._find(row)
        found = dataset[place][self._column]
        if found is None or (found["bytes"] is None and found["path"] is None):
            raise ValueError("the cell is empty")
        if found["bytes"] is not None:
            return found["bytes"]
        return (Path(name).parent / found["path"]).read_bytes()

    def where(self, row: int) -> str:
        """Return the file that a row names; else the row, from 0 on, and its table."""
        name, dataset, place = self._find(row)
        found = dataset[place][self._column] or {}
        if found.get("path") and found.get("bytes") is None:
            return str(Path(name).parent / found["path"])
        called = f" ({found['path']})" if found.get("path") else ""
        return f"row {place} of {name}{called}"

    def _find(self, row: int) -> tuple[str, "Dataset", int]:
        part = int(np.searchsorted(self._ends, row, side="right"))
        name, dataset = self._parts[part]
        return name, dataset, row - int(self._ends[part] - len(dataset))

    def stored_bytes(self, rows: np.ndarray) -> int:
        """Return what the images of these rows weigh, in bytes: of cells that hold images the lengths alone are read,
        files that cells name are not opened."""
        import pyarrow as pa

        part, total = np.searchsorted(self._ends, rows, side="right"), 0
        for number, (name, dataset) in enumerate(self._parts):
            places = rows[part == number] - (self._ends[number] - len(dataset))
            if not len(places):
                continue
            if number not in self._lengths:
                self._lengths[number] = _lengths(dataset, self._column)
            lengths, paths = self._lengths[number]
            found = lengths[places]
            total += int(found[found >= 0].sum())
            named = paths.take(pa.array(places[found < 0])).to_pylist()
            total += sum(file_bytes(Path(name).parent / path) for path in named if path)
        return total


def _lengths(dataset: "Dataset", column: str) -> "tuple[np.ndarray, pa.ChunkedArray]":
    """Return how many bytes each cell of encoded images holds, -1 for none, and the paths that cells name. What the
    cells hold stays on disk: lengths stand beside it."""
    import pyarrow as pa
    from pyarrow import compute

    lengths, paths, rows = [np.zeros(0, np.int64)], [pa.array([], pa.string())], dataset.with_format("arrow")
    for start in range(0, len(dataset), LENGTHS):
        cells = rows[start : start + LENGTHS][column]
        held = compute.binary_length(compute.struct_field(cells, "bytes"))
        lengths.append(compute.fill_null(held, -1).to_numpy().astype(np.int64))
        paths += compute.struct_field(cells, "path").cast(pa.string()).chunks
    return np.concatenate(lengths), pa.chunked_array(paths)


@dataclass(frozen=True)
class TableSplit:
    """One split as tables, each by what it is called; `names` are those of labels that the tables number and do not
    name, by column."""

    where: str
    parts: list[tuple[str, "Dataset"]]
    names: dict[str, list[str]]

    def __len__(self) -> int:
        return sum(len(dataset) for _, dataset in self.parts)

    @property
    def columns(self) -> list[str]:
        """The names of the columns that all its tables have."""
        first, *rest = [list(dataset.features) for _, dataset in self.parts]
        return [name for name in first if all(name in other for other in rest)]

    def images(self, column: str) -> Cells:
        """Return the encoded images in a column. Raises DataError where it holds none."""
        from datasets import Image

        for _, dataset in self.parts:
            if not _holds_images(dataset.features[column]):
                raise DataError(
                    f"data.image_column: column '{column}' of {self.where} holds no images; it has "
                    f"{', '.join(self.columns)}"
                )
        cast = [
            (name, dataset.select_columns([column]).cast_column(column, Image(decode=False)))
            for name, dataset in self.parts
        ]
        return Cells(cast, column)

    def labels(self, column: str) -> Labels:
        """Return the labels in a column, by the names that the tables give them. Raises DataError."""
        where = f"data.label_column: column '{column}' of {self.where}"
        return joined([self._labels(dataset, column, where) for _, dataset in self.parts], where)

    def _labels(self, dataset: "Dataset", column: str, where: str) -> Labels:
        from datasets import ClassLabel, Value

        feature = dataset.features[column]
        if not isinstance(feature, ClassLabel | Value):
            raise DataError(
                f"{where} holds {type(feature).__name__}; labels are integers or strings, one for each image"
            )
        names = feature.names if isinstance(feature, ClassLabel) else self.names.get(column)
        return read_labels(column_of(dataset, column), names, where)

    def values(self, column: str) -> np.ndarray:
        """Return a column that clients are told apart by: numbers or strings, names where its labels have some. Raises
        DataError."""
        found = [self._values(dataset, column) for _, dataset in self.parts]
        return np.concatenate(found)

    def _values(self, dataset: "Dataset", column: str) -> np.ndarray:
        from datasets import ClassLabel, Value

        feature = dataset.features[column]
        values = column_of(dataset, column)
        if not isinstance(feature, Value | ClassLabel) or values.null_count:
            kind = "empty values" if values.null_count else type(feature).__name__
            raise DataError(
                f"data.partition.partition_by: column '{column}' of {self.where} holds {kind}; it must hold a number "
                f"or a string for each image; it has {', '.join(self.columns)}"
            )
        if isinstance(feature, ClassLabel):
            return np.array(feature.names)[values.to_numpy()]
        return plain_values(values)


def column_of(dataset: "Dataset", name: str) -> "pa.ChunkedArray":
    """Return a column as Arrow has it."""
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def is_table(path: Path) -> bool:
    """Tell whether a file's name says that it is a table that can be read."""
    return path.suffix.lower() in SUFFIXES


def matching(pattern: str) -> list[Path]:
    """Return the tables that a pattern such as `data/*.parquet` stands for, by name."""
    return sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if is_table(path) and path.is_file())


def tables_in(folder: Path) -> list[Path]:
    """Return the tables in a folder and below it, by path; those of metadata belong to images."""
    return sorted(path for path in below(folder) if is_table(path) and path.stem.lower() != "metadata")


def group(folder: Path, tables: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the splits of a folder of tables by name: `train.parquet`, `train-00000-of-00002.parquet` and all that
    lies in a folder `train` are of `train`."""
    found: dict[str, list[Path]] = {}
    parts = [path.relative_to(folder).parts for path in tables]
    while parts and all(len(part) > 1 for part in parts) and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]  # `data/train.parquet`
    for path, part in zip(tables, parts, strict=True):
        name = part[0] if len(part) > 1 else _SHARD.sub("", path.stem)
        found.setdefault(name, []).append(path)
    return found


def open_tables(where: str, paths: Sequence[Path], names: dict[str, list[str]]) -> TableSplit:
    """Open some tables as one split. Raises DataError for one that cannot be read."""
    return TableSplit(where, [(str(path), open_table(path)) for path in paths], names)


def open_table(path: Path) -> "Dataset":
    """Open a table. Raises DataError where it cannot be read."""
    import pyarrow as pa
    from datasets import Dataset

    try:
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            return Dataset.from_file(str(_as_arrow(path)))
        if suffix == ".arrow":
            return Dataset(_map(path))
        return Dataset(read_rows(path))
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise DataError(f"data.path: {path} cannot be read as a table ({reason}); repair or remove it") from None


def _map(path: Path) -> "pa.Table":
    import pyarrow as pa

    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:  # Arrow has two kinds of files
        source.seek(0)
        return pa.ipc.open_file(source).read_all()


def _as_arrow(path: Path) -> Path:
    """Return a Parquet file as Arrow on disk, made where it is not there yet. Another file, or a newer one, is another
    key."""
    import pyarrow as pa
    from datasets import config
    from pyarrow import parquet

    state = path.stat()
    key = repr((str(path.resolve()), state.st_size, state.st_mtime_ns, 1))
    out = (
        Path(config.HF_DATASETS_CACHE)
        / "splitfed"
        / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.arrow"
    )
    if out.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    # Of a name of its own: several processes may open a table for the first time at once.
    handle, scratch = tempfile.mkstemp(dir=out.parent, prefix=".", suffix=".new")
    try:
        with open(path, "rb") as file, open(handle, "wb") as sink:
            source = parquet.ParquetFile(file)
            schema = _decoded(source.schema_arrow)
            with pa.ipc.new_stream(sink, schema) as writer:
                for batch in _batches(source, schema):
                    writer.write_batch(batch)
        os.replace(scratch, out)
    except BaseException:
        os.unlink(scratch)
        raise
    return out


def _batches(source: "parquet.ParquetFile", schema: "pa.Schema") -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    for batch in source.iter_batches(batch_size=256):
        columns = [
            column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in batch.columns
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _decoded(schema: "pa.Schema") -> "pa.Schema":
    """Return a schema with plain values in the place of dictionaries, which `datasets` does not take."""
    import pyarrow as pa

    for place, field in enumerate(schema):
        if pa.types.is_dictionary(field.type):
            schema = schema.set(place, field.with_type(field.type.value_type))
    return schema


def _holds_images(feature: Any) -> bool:
    from datasets import Image, Value

    stored = isinstance(feature, dict) and "bytes" in feature and "path" in feature
    plain = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary", "string", "large_string")
    return stored or plain or isinstance(feature, Image)
