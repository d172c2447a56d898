import io
import random
import threading
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from places import SHARED
from pydantic import ValidationError

from splitfed.data.dataset import load
from splitfed.data.partitions.union import Dirichlet
from splitfed.data.settings import DataConfig
from splitfed.data.stratify import spread
from splitfed.errors import DataError
from splitfed.seeds import Key

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the project")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(value: int = 0, size: tuple[int, int] = (10, 8), mode: str = "RGB") -> dict:
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def write(folder: Path, split: str, labels: list, feature=None, images: list | None = None) -> Path:
    features = {"image": datasets.Image(), "label": feature or datasets.Value("int64")}
    rows = {"image": images or [png(i % 256) for i in range(len(labels))], "label": labels}
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture
def small(tmp_path) -> Path:
    write(tmp_path / "small", "train", [i % 4 for i in range(40)])
    return write(tmp_path / "small", "test", [i % 4 for i in range(12)])


def digits(**more) -> DataConfig:
    return DataConfig(path="digits", **more)


def test_digits():
    data = load(digits(), 8, 10, Key(0))
    assert (len(data.train), len(data.validation), len(data.test)) == (1294, 144, 359)
    assert data.classes == [str(i) for i in range(10)]
    assert torch.equal(torch.cat(data.partitions).sort().values, torch.arange(1294))
    pixels = data.train.pixels(torch.arange(1294))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (1294, 3, 8, 8)
    assert (int(pixels.min()), int(pixels.max())) == (0, 255)
    assert torch.equal(pixels[:, 0], pixels[:, 2])


def test_digits_parts_share_no_image_and_the_test_part_never_changes():
    data, other = load(digits(), 8, 10, Key(0)), load(digits(), 8, 10, Key(1))
    assert torch.equal(data.test.pixels(torch.arange(359)), other.test.pixels(torch.arange(359)))
    assert not torch.equal(data.validation.pixels(torch.arange(144)), other.validation.pixels(torch.arange(144)))
    from sklearn.datasets import load_digits

    parts = [data.train, data.validation, data.test]
    found = np.concatenate([part.pixels(torch.arange(len(part)))[:, 0].reshape(-1, 64).numpy() for part in parts])
    real = np.round(load_digits().images.reshape(-1, 64) * (255 / 16)).astype(np.uint8)
    assert sorted(map(bytes, found)) == sorted(map(bytes, real))


def test_all_parts_are_stratified():
    data = load(digits(), 8, 10, Key(0))
    for part, images in (("train", 129.4), ("validation", 14.4), ("test", 35.9)):
        counts = getattr(data, part).labels.bincount()
        assert (counts - images).abs().max() < 0.06 * images + 1.5, part


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(0, 2**31), st.data())
def test_every_stretch_of_a_spread_order_holds_the_classes_in_their_shares(labels, seed, data):
    labels = torch.tensor(labels)
    order = spread(labels, Key(seed))
    assert torch.equal(order.sort().values, torch.arange(len(labels)))
    assert torch.equal(order, spread(labels, Key(seed)))
    cut = data.draw(st.integers(0, len(labels)))
    expected = labels.bincount() * cut / len(labels)
    found = labels[order[:cut]].bincount(minlength=len(expected))
    # The cut falls at a place that varies by less than one image of each class, so the counts do too, together.
    assert (found - expected).abs().max() <= 1 + len(expected) / 2


@pytest.mark.parametrize(
    ("limit", "share", "train", "validation"),
    [(None, 0.1, 45_000, 5_000), (5_000, 0.1, 5_000, 556), (44_999, 0.1, 44_999, 5_000), (60_000, 0.1, 45_000, 5_000),
     (1, 0.1, 1, 1), (1_000, 0.5, 1_000, 1_000)],
)  # fmt: skip
def test_limit_counts_the_images_trained_on(limit, share, train, validation):
    counts = DataConfig(path="digits", limit=limit, validation=share, test_limit=700).counts(50_000, 10_000)
    assert (counts.train, counts.validation, counts.test) == (train, validation, 700)


def test_limits_are_kept_and_drawn_by_key():
    config = digits(limit=200, test_limit=50, validation=0.2)
    data = load(config, 8, 4, Key(0))
    assert (len(data.train), len(data.validation), len(data.test)) == (200, 50, 50)
    assert data.train.labels.bincount().min() >= 17
    other = load(config, 8, 4, Key(1))
    assert not torch.equal(data.train.pixels(torch.arange(200)), other.train.pixels(torch.arange(200)))


def test_one_process_loads_once_whatever_the_thread(monkeypatch):
    import splitfed.data.dataset

    calls = []
    real = splitfed.data.dataset.open_sources
    monkeypatch.setattr(splitfed.data.dataset, "open_sources", lambda config: calls.append(1) or real(config))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(load(digits(limit=321), 8, 3, Key(9)))) for _ in range(4)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert all(data is found[0] for data in found)
    assert load(digits(limit=322), 8, 3, Key(9)) is not found[0]


def test_a_local_folder_and_its_slices(small):
    data = load(DataConfig(path=str(small), partition=Dirichlet(alpha=1)), 8, 3, Key(0))
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 12)
    assert data.classes == ["0", "1", "2", "3"]
    config = DataConfig(path=str(small), train_split="train[:75%]", test_split="train[75%:]")
    data = load(config, 8, 3, Key(0))
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 10)


def test_loading_touches_no_global_randomness(small):
    def state():
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    before = state()
    for path in ("digits", str(small)):
        data = load(DataConfig(path=path, partition=Dirichlet(alpha=1)), 8, 2, Key(77))
        data.test.pixels(torch.arange(len(data.test)))
    assert state() == before


def test_a_single_file(small):
    config = DataConfig(
        path=str(small / "train.parquet"), train_split="train[:30]", test_split="train[30:]", validation=0.5
    )
    data = load(config, 8, 3, Key(0))
    assert (len(data.train), len(data.test)) == (15, 10)


@pytest.mark.parametrize(
    ("feature", "labels", "classes"),
    [
        (datasets.ClassLabel(names=["ant", "bee", "cat"]), [0, 1, 0, 1], ["ant", "bee", "cat"]),
        (datasets.Value("string"), ["dog", "cat", "dog", "ant"], ["ant", "cat", "dog"]),
        (datasets.Value("uint8"), [7, 3, 7, 100], ["3", "7", "100"]),
    ],
)
def test_labels_with_names_strings_and_numbers(tmp_path, feature, labels, classes):
    folder = tmp_path / "labels"
    write(folder, "train", labels * 10, feature)
    write(folder, "test", labels, feature)
    data = load(DataConfig(path=str(folder)), 8, 2, Key(0))
    assert data.classes == classes
    names = [str(label) if isinstance(feature, datasets.Value) else classes[label] for label in labels]
    assert [classes[label] for label in data.test.labels.tolist()] == names
    assert data.test.labels.dtype == torch.int64


def refusal(**config) -> str:
    with pytest.raises(DataError) as caught:
        load(DataConfig(**config), 8, 2, Key(0))
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_wrong_columns_are_named_with_those_there_are(small):
    path = str(small)
    assert (
        refusal(path=path, image_column="img") == f"data.image_column: no column 'img' in {path}; it has image, label"
    )
    found = refusal(path=path, label_column="fine_label")
    assert found == f"data.label_column: no column 'fine_label' in {path}; it has image, label"
    found = refusal(path=path, image_column="label")
    assert found == f"data.image_column: column 'label' of {path}, split 'train' holds no images; it has image, label"
    found = refusal(path=path, label_column="image")
    assert found.startswith(
        f"data.label_column: column 'image' of {path}, split 'train' holds Image; labels are integers or strings"
    )


def test_labels_that_cannot_be_used(tmp_path):
    folder = write(tmp_path / "float", "train", [0.5] * 10, datasets.Value("float32"))
    write(folder, "test", [0.5], datasets.Value("float32"))
    assert "holds float; labels are integers or strings" in refusal(path=str(folder))
    folder = write(tmp_path / "empty", "train", [0] * 10)
    write(folder, "test", [None])
    found = refusal(path=str(folder))
    assert found.startswith(f"data.label_column: 1 of 1 images in {folder}, split 'test' have no label (empty or ")
    named = datasets.ClassLabel(names=["a", "b"])
    folder = write(tmp_path / "hidden", "train", [0, 1] * 10, named)
    write(folder, "test", [-1], named)
    assert "1 of 1 images in" in refusal(path=str(folder))
    write(folder, "test", [2], datasets.Value("int64"))
    assert "labels that are numbers, '2', and the classes have names, 'a', 'b'" in refusal(path=str(folder))


def test_wrong_splits_and_names(small):
    path = str(small)
    found = refusal(path=path, train_split="training")
    assert found == f"data.train_split: {path} has no split 'training'; it has test, train"
    assert refusal(path=path, test_split="validation").startswith("data.test_split: ")
    assert refusal(path=path, train_split="train[:80%").startswith("data.train_split: ")
    assert "name another split, or slices such as" in refusal(path=path, test_split="train")
    assert refusal(path=path, name="fine").startswith(f"data.name: 'fine' is no folder in {path}")


def test_a_path_that_leads_nowhere(tmp_path, monkeypatch):
    missing = str(tmp_path / "missing")
    found = refusal(path=missing)
    assert found.startswith(f"data.path: nothing to load at '{missing}', no such folder or file")
    assert found.endswith("; give a folder or file of images, a name on the Hub, or 'digits'")

    def unreachable(*arguments, **options):
        raise ConnectionError("Couldn't reach 'uoft-cs/cifar100' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert refusal(path="uoft-cs/cifar100") == (
        "data.path: no folder or file 'uoft-cs/cifar100', and the Hub cannot be reached (Couldn't reach "
        "'uoft-cs/cifar100' on the Hub); give the path of a copy on this machine, or 'digits'"
    )


def test_what_is_expected_is_checked():
    load(digits(expect={"classes": 10, "train": 1438, "test": 359}), 8, 2, Key(0))
    assert refusal(path="digits", expect={"classes": 10, "train": 1400, "test": 359}) == (
        "data.expect: digits holds 10 classes, 1438 train, 359 test, not 10 classes, 1400 train, 359 test; "
        "correct data.expect, or data.path"
    )


def test_nothing_left_to_train_on():
    assert refusal(path="digits", validation=0.9999).startswith("data.validation: 0.9999 of 1438 training images")


def test_configuration():
    assert digits(cache="10 MB").cache == 10_000_000
    assert digits(cache=None).cache is None
    assert digits(partition="iid") == digits()
    assert hash(digits()) == hash(digits())
    for wrong in ({"validation": 0.0}, {"validation": 1.0}, {"limit": 0}, {"workers": -1}, {"augment": "mixup"},
                  {"cache": 0}, {"paths": "x"}, {"expect": {"classes": 2}}):  # fmt: skip
        with pytest.raises(ValidationError):
            digits(**wrong)


@needs_shared
def test_the_layout_of_cifar100():
    config = DataConfig(
        path=str(SHARED / "cifar100"), image_column="img", label_column="fine_label", limit=5000,
        expect={"classes": 100, "train": 50_000, "test": 10_000},
    )  # fmt: skip
    data = load(config, 32, 5, Key(0))
    assert (len(data.train), len(data.validation), len(data.test)) == (5000, 556, 10_000)
    assert data.classes[:2] == ["apple", "aquarium_fish"]
    assert data.train.labels.bincount().tolist() == pytest.approx([50] * 100, abs=1)
    assert data.train.pixels(torch.arange(3)).shape == (3, 3, 32, 32)
    assert refusal(path=config.path) == f"data.image_column: no column 'image' in {config.path}; it has img, fine_label"


@needs_shared
def test_photos_of_different_sizes():
    data = load(DataConfig(path=str(SHARED / "hymenoptera")), 96, 4, Key(0))
    assert data.classes == ["ants", "bees"]
    pixels = data.validation.pixels(torch.arange(len(data.validation)))
    assert pixels.shape == (24, 3, 96, 96)
    assert pixels.float().flatten(1).std(1).min() > 10  # each a real photo


@pytest.fixture
def written(tmp_path) -> Path:
    """Images of three writers, and how old each was."""
    folder = tmp_path / "written"
    folder.mkdir()
    for split, count in (("train", 60), ("test", 6)):
        rows = {
            "image": [png(i) for i in range(count)], "label": [i % 2 for i in range(count)],
            "writer": [("ann", "bob", "eve")[i % 3] for i in range(count)], "age": [float(i) for i in range(count)],
            "place": [i % 3 for i in range(count)], "note": [None] * count, "box": [[1, 2]] * count,
        }  # fmt: skip
        features = {
            "image": datasets.Image(), "label": datasets.Value("int64"), "writer": datasets.Value("string"),
            "age": datasets.Value("float32"), "place": datasets.ClassLabel(names=["Rome", "Oslo", "Bonn"]),
            "note": datasets.Value("string"), "box": datasets.Sequence(datasets.Value("int64")),
        }  # fmt: skip
        datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(folder / f"{split}.parquet")
    return folder


def test_clients_by_a_column(written):
    by_writer = DataConfig(path=str(written), partition={"kind": "natural_id", "partition_by": "writer"})
    data = load(by_writer, 8, 3, Key(0))
    assert data.owners == ["ann", "bob", "eve"]
    for client, rows in enumerate(data.partitions):
        shades = data.train.pixels(rows)[:, 0, 0, 0]  # the shade of an image is its row, and tells its writer
        assert len(rows) > 10
        assert (shades % 3 == client).all()
    by_place = DataConfig(path=str(written), partition={"kind": "natural_id", "partition_by": "place"})
    assert load(by_place, 8, 3, Key(0)).owners == ["Bonn", "Oslo", "Rome"]
    by_age = DataConfig(path=str(written), partition={"kind": "continuous", "partition_by": "age", "strictness": 1})
    ages = [data.train.pixels(rows)[:, 0, 0, 0] for data in [load(by_age, 8, 3, Key(0))] for rows in data.partitions]
    assert ages[0].max() < ages[1].min()
    assert ages[1].max() < ages[2].min()
    held_out = by_writer.model_copy(update={"test_split": 0.5})
    assert sum(map(len, load(held_out, 8, 3, Key(0)).partitions)) == 27


def test_columns_that_tell_no_clients_apart(written):
    def found(column: str) -> str:
        return refusal(path=str(written), partition={"kind": "natural_id", "partition_by": column})

    columns = "it has image, label, writer, age, place, note, box"
    assert found("author") == f"data.partition.partition_by: no column 'author' in {written}; {columns}"
    assert found("note").startswith(
        f"data.partition.partition_by: column 'note' of {written}, split 'train' holds empty values; it must"
    )
    assert "holds List; it must hold a number or a string for each image" in found("box")
    assert "column 'image'" in found("image")
    assert found("writer").startswith(
        "federation.clients: 2, but column 'writer' has 3 values, each a client of its own"
    )


def test_a_share_of_the_training_split_for_testing(small):
    assert "a share of the training images can be held out instead" in refusal(path=str(small), test_split="validation")
    for wrong in (0.0, 1.0, 1):
        with pytest.raises(ValidationError):
            DataConfig(path=str(small), test_split=wrong)


def test_a_folder_for_each_class_with_a_table_of_more_columns(tmp_path):
    rows = ["file_name,label,hospital"]
    for i in range(24):
        kind, hospital = ("healthy", "ill")[i % 2], ("Rome", "Oslo")[i // 2 % 2]
        (tmp_path / "scans" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (i, i, i)).save(tmp_path / "scans" / kind / f"{i}.png")
        rows.append(f"{kind}/{i}.png,{kind},{hospital}")
    (tmp_path / "scans" / "metadata.csv").write_text("\n".join(rows))
    config = DataConfig(path=str(tmp_path / "scans"), test_split=0.25,
                        partition={"kind": "natural_id", "partition_by": "hospital"})  # fmt: skip
    data = load(config, 9, 2, Key(0))
    assert (data.classes, data.owners) == (["healthy", "ill"], ["Oslo", "Rome"])
    for client, rows in enumerate(data.partitions):
        shades = data.train.pixels(rows)[:, 0, 0, 0]
        assert (shades // 2 % 2 == 1 - client).all()
        assert torch.equal(shades % 2, data.train.labels[rows])
