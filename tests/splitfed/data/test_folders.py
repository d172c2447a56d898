"""What a folder of images means: the same for a scenario and for a client, whatever its folders are called."""

import os
import unicodedata
from collections import Counter
from pathlib import Path

import datasets
import pytest
from PIL import Image

from splitfed.data.dataset import FederatedData, forget, load
from splitfed.data.own import own_images
from splitfed.data.settings import DataConfig
from splitfed.errors import DataError
from splitfed.seeds import Key


@pytest.fixture(autouse=True)
def nothing_of_the_users(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def fill(folder: Path, count: int = 10, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        kind = "png" if suffix.lower() == ".png" else None
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}{suffix}", kind)


def split(place: Path, *classes: str, count: int = 10) -> Path:
    for name, many in (("train", count), ("test", count // 2)):
        for kind in classes:
            fill(place / name / kind, many)
    return place


def opened(path: str | Path, **settings) -> FederatedData:
    forget()
    return load(DataConfig(path=str(path), validation=0.25, **settings), 8, 2, Key(0))


def counts(data: FederatedData) -> tuple[int, int]:
    return len(data.train) + len(data.validation), len(data.test)


def refusal(path: str | Path, **settings) -> str:
    with pytest.raises(DataError) as caught:
        opened(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kinds", [("car", "train"), ("flask", "test-tube"), ("test", "train"), ("val", "eval_x")])
def test_classes_called_like_splits(kinds, tmp_path):
    data = opened(split(tmp_path / "d", *kinds))
    assert (data.classes, counts(data)) == (sorted(kinds), (20, 10))


def test_without_folders_of_splits_every_folder_is_a_class_and_file_names_say_nothing(tmp_path):
    for kind in ("ants", "train"):
        fill(tmp_path / "d" / kind)
        for name in ("a-train-1", "test", "validation_3"):
            Image.new("RGB", (8, 8)).save(tmp_path / "d" / kind / f"{name}.png")
    data = opened("d", test_split=0.5)
    assert (data.classes, counts(data)) == (["ants", "train"], (13, 13))


@pytest.mark.parametrize(
    "name", ["run[1]", "a*b", "what?", "hf::data", "imagefolder", "parquet", "{x}", "~d", "#1 %20"]
)
@pytest.mark.parametrize("kind", ["folder", "table"])
def test_a_path_that_exists_is_taken_as_it_is(name, kind, tmp_path):
    place = tmp_path / name
    if kind == "folder":
        split(place, "ants", "bees")
        split(tmp_path / "run1", "others")
    else:
        place.mkdir()
        for part, count in (("train", 20), ("test", 10)):
            rows = {"image": [Image.new("RGB", (8, 8))] * count, "label": ["ants", "bees"] * (count // 2)}
            features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
            with open(place / f"{part}.parquet", "wb") as file:
                datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    data = opened(name)
    assert (data.classes, counts(data)) == (["ants", "bees"], (20, 10))


def test_links_are_followed_and_loops_are_not(tmp_path):
    real = split(tmp_path / "real", "ants", "bees")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train").symlink_to(real / "train")
    (tmp_path / "d" / "test").mkdir()
    for kind in ("ants", "bees"):
        (tmp_path / "d" / "test" / kind).symlink_to(real / "test" / kind)
    (real / "train" / "ants" / "again").symlink_to(real / "train")
    assert counts(opened("d")) == (30, 10)  # bees once more, below ants; not ants below themselves
    (real / "train" / "ants" / "again").unlink()
    assert counts(opened("d")) == (20, 10)
    (real / "train" / "ants" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    opened("d", cache=1000).check()  # those to train on do not fit, and are left until they are used
    data = opened("d")
    with pytest.raises(DataError, match=r"ants/gone\.png: is no image that can be decoded \(.*No such file"):
        data.check()


def test_all_levels_below_a_class_belong_to_it_for_a_scenario_as_for_a_client(tmp_path):
    for part in ("train", "test"):
        for kind in ("ants", "bees"):
            for site in ("bonn", "ulm"):
                fill(tmp_path / "d" / part / kind / site / "2020", 4)
    data = opened("d")
    assert (data.classes, counts(data)) == (["ants", "bees"], (16, 16))
    mine = own_images("d", DataConfig(path="digits"), 8, ["bees", "ants"])
    assert mine.labels.bincount().tolist() == [8, 8]


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path):
    composed, apart = (unicodedata.normalize(form, "käfer") for form in ("NFC", "NFD"))
    assert composed != apart
    fill(tmp_path / "d" / "train" / composed)
    fill(tmp_path / "d" / "train" / "ants")
    fill(tmp_path / "d" / "test" / apart)
    data = opened("d")
    assert (data.classes, data.test.labels.tolist()) == (["ants", composed], [1] * 10)
    assert len(own_images("d/test", DataConfig(path="digits"), 8, ["ants", composed])) == 10
    assert len(own_images("d", DataConfig(path="digits"), 8, [apart, "ants"])) == 20
    fill(tmp_path / "d" / "train" / apart, 3)  # beside the other form: still one
    assert opened("d").classes == ["ants", composed]


def test_capitals_of_splits_and_of_suffixes(tmp_path):
    for part in ("Train", "TEST"):
        fill(tmp_path / "d" / part / "ants", 4, ".PNG")
        fill(tmp_path / "d" / part / "bees", 4, ".Png")
    assert counts(opened("d")) == (8, 8)
    split(tmp_path / "d", "ants", "bees", count=20)  # the exact names are there too
    assert counts(opened("d")) == (40, 20)


def test_a_class_of_the_test_split_alone_is_refused_with_both_lists(tmp_path):
    split(tmp_path / "d", "ants", "bees")
    (tmp_path / "d" / "test" / "bees").rename(tmp_path / "d" / "test" / "Bees")
    assert refusal("d") == (
        "data.label_column: d, split 'test': class 'Bees' is not among the classes ('ants', 'bees'); here are 'Bees', "
        "'ants'; did you mean 'bees'?"
    )


def test_what_fits_in_nowhere_is_named(tmp_path):
    place = split(tmp_path / "d", "ants", "bees")
    fill(place / "more" / "wasps")
    assert refusal("d").startswith(f"data.path: {Path('d/more')} lies beside the splits train and test and is neither")
    (place / "more").rename(place / "val")
    assert opened("d").notes == ["not used: val"]
    (place / "train" / "empty").mkdir()
    assert "d/train/empty: is the folder of a class and holds no images; remove it" in refusal("d")
    (place / "train" / "empty" / "1.heic").write_bytes(b"")
    assert "holds no images, but 1 files that are none (.heic)" in refusal("d")
    fill(place / "train" / "empty", 1)
    (place / "test" / "notes.txt").write_text("")
    assert opened("d").notes == ["not used: val", "passed over, as they are no images: 1 .heic, 1 .txt"]
    Image.new("RGB", (8, 8)).save(place / "train" / "stray.png")
    assert refusal("d").startswith("d/train/stray.png: lies in no class's folder")


def test_splits_of_other_names_are_asked_for(tmp_path):
    for part in ("training", "testing"):
        fill(tmp_path / "d" / part / "ants", 4)
    assert refusal("d", test_split=0.5).startswith(
        "data.train_split: d has testing and training, which look like splits, and none of them is 'train'"
    )
    assert counts(opened("d", train_split="training", test_split="testing")) == (4, 4)
    assert refusal("d", train_split="training") == (
        "data.test_split: d has no split 'test'; it has training, testing; a share of the training images can be held "
        "out instead, such as 0.2"
    )


def test_slices_and_sums_of_splits(tmp_path):
    place = split(tmp_path / "d", "ants", "bees")
    fill(place / "val" / "ants", 4)
    assert counts(opened("d", train_split="train[:75%]+val", test_split="train[75%:]")) == (19, 5)
    assert refusal("d", train_split="train[:75%").startswith("data.train_split: 'train[:75%' is no split or slice of d")


def metadata(place: Path, rows: list[str], name: str = "metadata.csv") -> None:
    (place / name).write_text("\n".join(["file_name,label,site", *rows]))


def test_a_table_of_metadata_names_every_image_once(tmp_path):
    place = tmp_path / "d"
    fill(place, 6)
    rows = [f"{number}.png,{'NA' if number % 2 else 'ill'},Rome" for number in range(6)]
    metadata(place, rows)
    by_site = {"partition": {"kind": "natural_id", "partition_by": "site"}}
    data = load(DataConfig(path="d", test_split=0.5, validation=0.25, **by_site), 8, 1, Key(0))
    assert (data.classes, data.owners) == (["NA", "ill"], ["Rome"])  # NA is a name
    metadata(place, rows[:4])
    assert refusal("d", test_split=0.5) == (
        "d/metadata.csv: does not name 4.png and 1 more, with 4 rows for 6 images; every image has one row: add or "
        "remove rows, or images"
    )
    metadata(place, [*rows, "7.png,ill,Oslo"])
    assert "names 7.png, which is not there, with 7 rows for 6 images" in refusal("d", test_split=0.5)
    metadata(place, [*rows, rows[0]])
    assert "names 0.png more than once" in refusal("d", test_split=0.5)
    metadata(place, [*rows[:-1], "5.png,,Oslo"])
    assert "1 of 6 images in d, split 'train' have no label" in refusal("d", test_split=0.5)


def test_a_table_beside_the_images_of_classes_is_passed_over_and_one_that_is_meant_is_read(tmp_path):
    place = split(tmp_path / "d", "ants", "bees")
    (place / "names.csv").write_text("a,b\n1,2\n")
    assert counts(opened("d")) == (20, 10)
    fill(tmp_path / "t" / "photos", 8)
    lines = [f"photos/{number}.png,{'ants' if number % 2 else 'bees'}" for number in range(8)]
    (tmp_path / "t" / "index.csv").write_text("\n".join(["image,label", *lines]))
    assert "holds images in one folder, photos, and tables, such as index.csv" in refusal("t", test_split=0.5)
    data = opened("t/index.csv", test_split=0.5)
    data.check()
    assert (data.classes, counts(data)) == (["ants", "bees"], (4, 4))


@pytest.mark.parametrize("name", ["images.zip", "train.tar", "notes.txt", "x"])
def test_a_file_of_no_kind_that_is_read(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    assert refusal(name).startswith(f"data.path: {name} is a file, and no table that can be read (.arrow, .csv, ")


def test_a_missing_folder_is_never_another_projects_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for kind in ("ants", "bees"):
        fill(tmp_path / "one" / "data" / kind)
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    datasets.load_dataset("data")  # as anybody may have done, who shares the cache
    assert counts(opened("data", test_split=0.5)) == (10, 10)
    monkeypatch.chdir(tmp_path / "two")
    found = refusal("data", test_split=0.5)
    assert found.startswith("data.path: no folder or file 'data', and the Hub cannot be reached")
    for reader in ("imagefolder", "parquet", "./data", "/data/none"):
        assert refusal(reader).startswith(f"data.path: nothing to load at '{reader}', no such folder or file")


def test_a_clone_of_a_data_set_of_the_hub(tmp_path):
    place = tmp_path / "clone"
    for name in ("fine", "coarse"):
        (place / name).mkdir(parents=True)
        for part in ("train", "held-out"):
            rows = {"image": [Image.new("RGB", (8, 8))] * 8, "label": [0, 1] * 4}
            features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
            table = datasets.Dataset.from_dict(rows, features=features)
            for shard in range(2):
                table.shard(2, shard).to_parquet(place / name / f"{part}-{shard:05}-of-00002.parquet")
    entry = """
- config_name: {0}
  data_files:
  - split: train
    path: {0}/train-*
  - split: test
    path: {0}/held-out-*"""
    kinds = "\n".join(
        f"- config_name: {name}\n  features:\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
        f"          '0': {first}\n          '1': {second}"
        for name, first, second in (("fine", "ant", "bee"), ("coarse", "legs", "wings"))
    )
    configs = "".join(map(entry.format, ("fine", "coarse")))
    (place / "README.md").write_text(f"---\nconfigs:{configs}\ndataset_info:\n{kinds}\n---\n# Insects\n")
    data = opened("clone", name="coarse")
    assert (data.classes, counts(data)) == (["legs", "wings"], (8, 8))
    assert opened("clone", name="fine").classes == ["ant", "bee"]
    assert refusal("clone") == "data.name: clone has several configurations, fine, coarse; name one"
    assert "has no configuration 'rough'; it has fine, coarse" in refusal("clone", name="rough")


def test_a_data_set_that_was_saved_to_disk(tmp_path):
    rows = {"image": [Image.new("RGB", (8, 8))] * 8, "label": ["a", "b"] * 4}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "saved")
    data = opened("saved")
    data.check()
    assert (data.classes, counts(data)) == (["a", "b"], (8, 8))


def test_tables_of_several_kinds(tmp_path):
    fill(tmp_path / "t", 8)
    lines = [f'{{"image": "{number}.png", "label": "{"ab"[number % 2]}"}}' for number in range(8)]
    for name, text in (
        ("lines.jsonl", "\n".join(lines)), ("list.json", f"[{','.join(lines)}]"),
        ("table.TSV", "\n".join(["image\tlabel", *(f"{number}.png\t{'ab'[number % 2]}" for number in range(8))])),
    ):  # fmt: skip
        (tmp_path / "t" / name).write_text(text)
        data = opened(f"t/{name}", test_split=0.25)
        data.check()
        assert (data.classes, counts(data)) == (["a", "b"], (6, 2)), name
    assert counts(opened("t/*.jsonl", test_split=0.25)) == (6, 2)  # a pattern, where no file is called so
    (tmp_path / "t" / "broken.parquet").write_bytes(b"PAR1")
    assert refusal("t/broken.parquet").startswith("data.path: t/broken.parquet cannot be read as a table (")
    assert not [name for name in Counter(os.listdir(tmp_path / "t")) if name.startswith(".")]


def test_no_such_user(tmp_path):
    assert refusal("~nobody-of-this-name/x") == (
        "data.path: ~nobody-of-this-name/x: there is no user of this name; write the path of the folder"
    )
