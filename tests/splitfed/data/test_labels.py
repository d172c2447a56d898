"""Labels of every type are either classes or missing, and those of two places are matched by name."""

import io
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from datasets import ClassLabel, Value
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from splitfed.data.dataset import FederatedData, forget, load
from splitfed.data.own import own_images
from splitfed.data.settings import DataConfig
from splitfed.data.sources.labels import Labels, joined, matched, plain, read_labels
from splitfed.errors import DataError
from splitfed.seeds import Key


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(shade: int = 0) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade,) * 3).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def raw(path: Path, labels: pa.Array) -> None:
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pa.table({"image": [png(row) for row in range(len(labels))], "label": labels}), path)


def featured(path: Path, labels: list, feature) -> None:
    path.parent.mkdir(exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    rows = {"image": [png(row) for row in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def opened(place: Path, **settings) -> FederatedData:
    forget()
    return load(DataConfig(path=str(place), validation=0.1, **settings), 8, 2, Key(0))


def refusal(place: Path, **settings) -> str:
    with pytest.raises(DataError) as caught:
        opened(place, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (pa.array([3, 70, 1000]), ["3", "70", "1000"]),
        (pa.array([0, 255, 7], pa.uint8()), ["0", "7", "255"]),
        (pa.array([1, 2**63 + 5, 2], pa.uint64()), ["1", "2", str(2**63 + 5)]),
        (pa.array(["cat", " dog", "Ünïcode"]), [" dog", "cat", "Ünïcode"]),
        (pa.array(["cat", "NA", "null"], pa.large_string()), ["NA", "cat", "null"]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["a", "b"]),
    ],
    ids=["far apart", "uint8", "uint64", "texts", "texts that look empty", "dictionary"],
)
def test_labels_that_are_classes(labels, classes, tmp_path):
    labels = pa.concat_arrays([labels] * 8)
    raw(tmp_path / "d" / "train.parquet", labels)
    raw(tmp_path / "d" / "test.parquet", labels[:6])
    data = opened(tmp_path / "d")
    assert data.classes == classes
    names = [str(name) for name in labels[:6].to_pylist()]
    assert [data.classes[number] for number in data.test.labels.tolist()] == names


@pytest.mark.parametrize(
    "labels",
    [pa.array([0, -1, 1]), pa.array([0, None, 1]), pa.array([0, -100, 1]), pa.array(["a", "", "b"]),
     pa.array(["a", " \t", "b"]), pa.array(["a", None, "b"]), pa.array([0, None, 1], pa.uint8())],
)  # fmt: skip
def test_labels_that_are_missing(labels, tmp_path):
    labels = pa.concat_arrays([labels] * 8)
    raw(tmp_path / "d" / "train.parquet", labels)
    raw(tmp_path / "d" / "test.parquet", labels)
    found = refusal(tmp_path / "d")
    assert found.startswith(f"data.label_column: 8 of 24 images in {tmp_path}/d, split 'train' have no label (empty or")
    data = opened(tmp_path / "d", on_bad="skip")
    assert (len(data.train) + len(data.validation), len(data.test), len(data.classes), data.bad) == (16, 16, 2, 16)
    assert min(data.train.labels.min(), data.test.labels.min()) == 0
    used = data.test.pixels(data.test.labels.new_tensor(range(16)))[:, 0, 0, 0] % 3  # the shade is the row
    assert sorted(set(used.tolist())) == [0, 2]


def test_a_test_split_without_any_label_is_refused_also_where_bad_images_are_left_out(tmp_path):
    featured(tmp_path / "d" / "train.parquet", [0, 1] * 8, ClassLabel(names=["a", "b"]))
    featured(tmp_path / "d" / "test.parquet", [-1] * 4, ClassLabel(names=["a", "b"]))
    assert "4 of 4 images in" in refusal(tmp_path / "d")
    assert "with 0 test images" in refusal(tmp_path / "d", on_bad="skip")


@pytest.mark.parametrize(
    ("labels", "kind"),
    [(pa.array([0.0, 1.0]), "double"), (pa.array([False, True]), "bool"), (pa.array([b"a", b"b"]), "binary"),
     (pa.array([[0], [1]]), "List")],
)  # fmt: skip
def test_types_that_are_no_labels(labels, kind, tmp_path):
    for part in ("train", "test"):
        raw(tmp_path / "d" / f"{part}.parquet", pa.concat_arrays([labels] * 8))
    assert f"holds {kind}; labels are integers or strings" in refusal(tmp_path / "d")


def test_names_in_another_order_in_the_test_split_are_matched(tmp_path):
    featured(tmp_path / "d" / "train.parquet", [0, 1, 2] * 8, ClassLabel(names=["red", "green", "blue"]))
    featured(tmp_path / "d" / "test.parquet", [0, 1, 2], ClassLabel(names=["blue", "red", "green"]))
    data = opened(tmp_path / "d")
    assert (data.classes, sorted(data.test.labels.tolist())) == (["red", "green", "blue"], [0, 1, 2])
    shades = data.test.pixels(data.test.labels.new_tensor([0, 1, 2]))[:, 0, 0, 0].tolist()
    assert {shade: data.classes[n] for shade, n in zip(shades, data.test.labels.tolist(), strict=True)} == {
        0: "blue", 1: "red", 2: "green",
    }  # fmt: skip


def test_names_in_another_order_in_the_files_of_one_split_are_matched(tmp_path):
    names = ["red", "green", "blue"]
    for shard, order in enumerate((names, names[::-1])):
        featured(tmp_path / "d" / f"train-{shard}.parquet", [0] * 8, ClassLabel(names=order))
    data = opened(tmp_path / "d", test_split=0.5)
    assert (data.classes, data.test.labels.bincount(minlength=3).tolist()) == (names, [4, 0, 4])


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (ClassLabel(names=["a", "b"]), ClassLabel(names=["A", "B"]), "class 'A' is not among the classes ('a', 'b')"),
        (ClassLabel(names=["a", "b"]), Value("int64"), "labels that are numbers, '0', '1', and the classes have names"),
        (Value("int64"), ClassLabel(names=["a", "b"]), "class 'a' is not among the classes ('0', '1')"),
    ],
)
def test_labels_that_cannot_be_matched_are_refused_with_both_lists(train, test, words, tmp_path):
    featured(tmp_path / "d" / "train.parquet", [0, 1] * 8, train)
    featured(tmp_path / "d" / "test.parquet", [0, 1], test)
    found = refusal(tmp_path / "d")
    assert found.startswith(f"data.label_column: {tmp_path}/d, split 'test'")
    assert words in found


def test_numbers_that_training_has_not_are_refused(tmp_path):
    featured(tmp_path / "d" / "train.parquet", [0, 1] * 8, Value("int64"))
    featured(tmp_path / "d" / "test.parquet", [1, 2], Value("int64"))
    assert "class '2' is not among the classes ('0', '1'); here are '1', '2'" in refusal(tmp_path / "d")


def test_a_clients_names_are_matched_whatever_their_order(tmp_path):
    featured(tmp_path / "d" / "train.parquet", [0, 1, 2], ClassLabel(names=["b", "c", "a"]))
    config = DataConfig(path="digits")
    assert own_images(str(tmp_path / "d"), config, 8, ["a", "b", "c"]).labels.tolist() == [1, 2, 0]


texts = st.text(st.characters(codec="utf-8"), max_size=6)


@given(st.lists(st.one_of(st.none(), texts), max_size=30))
def test_a_text_is_its_own_class_or_missing(values):
    found = read_labels(pa.array(values, pa.string()), None, "here")
    for value, number in zip(values, found.numbers.tolist(), strict=True):
        assert (number < 0) == (value is None or not value.strip())
        assert number < 0 or found.names[number] == plain(value)
    assert len(set(found.names)) == len(found.names)


@given(st.data())
def test_what_is_joined_or_matched_keeps_its_name(data):
    names = data.draw(st.lists(texts.filter(str.strip).map(plain), min_size=1, max_size=6, unique=True))
    parts = []
    for _ in range(data.draw(st.integers(1, 3))):
        order = data.draw(st.permutations(names))
        rows = data.draw(st.lists(st.integers(-1, len(names) - 1), max_size=5))
        parts.append((order, rows))
    labels = [
        read_labels(pa.array([None if row < 0 else row for row in rows], pa.int64()), order, "x")
        for order, rows in parts
    ]
    expected = [order[row] if row >= 0 else None for order, rows in parts for row in rows]
    whole = joined(labels, "x")
    assert [whole.names[n] if n >= 0 else None for n in whole.numbers.tolist()] == expected
    classes = data.draw(st.permutations(names))
    numbers = matched(Labels(whole.names, whole.numbers, False), classes, "x").tolist()
    assert [classes[n] if n >= 0 else None for n in numbers] == expected
