"""What images weigh as they are stored, by sizes of files and by lengths that were written by hand."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from sklearn.datasets import load_digits

from splitfed.data.dataset import load
from splitfed.data.own import own_images
from splitfed.data.settings import DataConfig
from splitfed.data.sources.tables import Cells
from splitfed.seeds import Key


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def noise(number: int, side: int, kind: str = "png") -> bytes:
    """Return an image that no other weighs as much as: noise does not get smaller."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (side, side + number, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def folder(place: Path, count: int = 20) -> list[Path]:
    """Write images of two classes, of all sizes, and some for testing."""
    paths = []
    for number in range(count):
        kind = ("png", "jpeg")[number % 2]
        path = place / "train" / "ab"[number // 2 % 2] / f"{number:02d}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(number, 8, kind))
        paths.append(path)
    for name in "ab":
        (place / "test" / name).mkdir(parents=True)
        (place / "test" / name / "0.png").write_bytes(noise(0, 8))
    return paths


def cell_table(path: Path, cells: list[bytes]) -> Path:
    """Write a table of images with nothing but Arrow."""
    path.parent.mkdir(exist_ok=True)
    labels = pa.array([number % 2 for number in range(len(cells))], pa.int64())
    parquet.write_table(pa.table({"image": pa.array(cells, pa.binary()), "label": labels}), path)
    return path


def dealt(config: DataConfig, clients: int = 3) -> tuple[int, set[bytes]]:
    """Return what the images weigh, and the content of those that are dealt."""
    data = load(config, 8, clients, Key(0))
    source = data.train.source
    return data.images_bytes, {source.content(int(row)) for rows in data.partitions for row in rows}


@pytest.mark.parametrize("more", [{}, {"limit": 7}, {"train_split": "train[:60%]"}, {"white": 255.0}])
def test_files_weigh_what_the_system_says(more: dict, tmp_path) -> None:
    sizes = {path.read_bytes(): path.stat().st_size for path in folder(tmp_path / "photos")}
    found, contents = dealt(DataConfig(path=str(tmp_path / "photos"), **more))
    assert 3 <= len(contents) < len(sizes)  # those for validation are not among them
    assert found == sum(sizes[content] for content in contents)


def test_an_image_weighs_once_however_often_it_is_named(tmp_path) -> None:
    folder(tmp_path / "photos")
    found, contents = dealt(DataConfig(path=str(tmp_path / "photos"), train_split="train+train", validation=0.05))
    assert found == sum(map(len, contents))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), None])
def test_cells_weigh_what_was_written(kind: pa.DataType | None, tmp_path) -> None:
    cells = [noise(number, 8) for number in range(30)]
    image = pa.array(cells, kind) if kind else pa.array([{"bytes": cell, "path": f"{len(cell)}.png"} for cell in cells])
    table = pa.table({"image": image, "label": pa.array([number % 3 for number in range(30)])})
    parquet.write_table(table, tmp_path / "train.parquet", compression="zstd")
    parquet.write_table(table.slice(0, 6), tmp_path / "test.parquet")
    found, contents = dealt(DataConfig(path=str(tmp_path), limit=11))
    assert len(contents) == 11
    assert found == sum(map(len, contents))


def test_cells_that_name_files_weigh_what_the_files_do(tmp_path) -> None:
    paths = folder(tmp_path / "photos")
    lines = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in paths]
    (tmp_path / "all.csv").write_text("\n".join(["image,label", *lines]) + "\n")
    config = DataConfig(path=str(tmp_path / "all.csv"), test_split=0.2, limit=9)
    found, contents = dealt(config)
    assert len(contents) == 9
    assert found == sum(path.stat().st_size for path in paths if path.read_bytes() in contents)


def test_several_tables_are_weighed_as_one_and_by_any_choice_of_rows(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("splitfed.data.sources.tables.LENGTHS", 4)
    one, two = [noise(number, 8) for number in range(10)], [noise(number, 9) for number in range(7)]
    dataset = datasets.Dataset.from_dict({"image": [{"bytes": cell, "path": None} for cell in one]})
    # Chosen out of order: its rows are not those of the file any more.
    turned = dataset.select([9, 0, 5])
    other = datasets.Dataset.from_dict({"image": [*({"bytes": cell, "path": None} for cell in two), None]})
    cells = Cells([("one", dataset), ("turned", turned), ("two", other)], "image")
    sizes = [*map(len, one), *(len(one[row]) for row in (9, 0, 5)), *map(len, two), 0]
    for rows in ([0], [20], [3, 12, 10, 19], range(21)):
        assert cells.stored_bytes(np.array(rows)) == sum(sizes[row] for row in rows)


def test_what_cannot_be_decoded_is_left_out_of_the_weight(tmp_path) -> None:
    paths = folder(tmp_path / "photos")
    paths[3].write_bytes(b"no image" * 1000)
    found, contents = dealt(DataConfig(path=str(tmp_path / "photos"), on_bad="skip", validation=0.05))
    assert len(contents) == 18
    assert found == sum(map(len, contents))


def test_a_partition_that_deals_fewer_weighs_fewer(tmp_path) -> None:
    folder(tmp_path / "photos")
    shard = {"kind": "shard", "num_shards_per_partition": 1, "shard_size": 2}
    config = DataConfig.model_validate({"path": str(tmp_path / "photos"), "partition": shard})
    found, contents = dealt(config)
    assert len(contents) == 6
    assert found == sum(map(len, contents))


def test_digits_weigh_a_byte_a_pixel() -> None:
    grey = load_digits().images
    assert grey.shape[1:] == (8, 8)
    data = load(DataConfig(path="digits", limit=500), 8, 10, Key(0))
    assert data.images_bytes == 500 * 64


def test_a_clients_own_images_are_weighed_too(tmp_path) -> None:
    paths = folder(tmp_path / "photos")
    images = own_images(str(tmp_path / "photos" / "train"), DataConfig(path="digits"), 8, ["a", "b"])
    assert images.stored_bytes(torch.arange(len(images))) == sum(path.stat().st_size for path in paths)


def test_no_image_is_read_to_weigh_it(tmp_path, monkeypatch) -> None:
    folder(tmp_path / "photos")
    cell_table(tmp_path / "cells" / "train.parquet", [noise(number, 8) for number in range(20)])
    cell_table(tmp_path / "cells" / "test.parquet", [noise(number, 8) for number in range(4)])
    for place in ("photos", "cells"):
        data = load(DataConfig(path=str(tmp_path / place)), 8, 3, Key(0))

        def refuse(*_):
            raise AssertionError("an image was read")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", refuse)
            patch.setattr(Cells, "content", refuse)
            assert data.images_bytes > 0


def test_digits_are_the_data_set_that_they_were() -> None:
    """They weigh one channel; hashed are three, and a run that began before goes on."""
    mark = load(DataConfig(path="digits"), 8, 3, Key(0)).fingerprint
    assert mark.images == "259dc79b473d78b1437cb886cc7e06fa"
