"""A client's own images: which layouts are read, how their classes are matched, and what is said of those that do not
fit."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from places import SHARED

from splitfed.data.dataset import load
from splitfed.data.images import Images
from splitfed.data.own import own_images
from splitfed.data.settings import DataConfig
from splitfed.data.sources.opening import open_labelled
from splitfed.errors import DataError
from splitfed.seeds import Key

CLASSES = ["ants", "bees", "wasps"]
# What the scenario says of its own data set; an image folder has no columns.
CONFIG = DataConfig(
    path="somebody/insects", image_column="img", label_column="kind", train_split="train[:80%]", limit=2
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "hospital").mkdir()
    return tmp_path / "hospital"


def picture(path: Path, value: int = 0, size: tuple[int, int] = (12, 9)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def own(place: Path, classes: Sequence[str] = CLASSES, config: DataConfig = CONFIG) -> Images:
    return own_images(str(place), config, 8, classes)


def refusal(place: Path, classes: Sequence[str] = CLASSES, config: DataConfig = CONFIG) -> str:
    with pytest.raises(DataError) as caught:
        own(place, classes, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def first(images: Images) -> dict[int, list[int]]:
    """Return the shades of the images of each label."""
    shades: dict[int, list[int]] = {}
    for label, pixels in zip(images.labels.tolist(), images.pixels(torch.arange(len(images))), strict=True):
        shades.setdefault(label, []).append(int(pixels[0, 0, 0]))
    return shades


def test_a_folder_for_each_class_matched_by_name_and_not_by_place(place):
    for number, name in enumerate(("wasps", "bees")):
        for shade in range(3):
            picture(place / name / f"{shade}.png", 100 * number + 10 * shade)
    images = own(place)
    assert len(images) == 6  # the scenario's limit is not theirs
    assert images.labels.dtype == torch.int64
    assert first(images) == {2: [0, 10, 20], 1: [100, 110, 120]}
    assert images.pixels(torch.arange(6)).shape == (6, 3, 8, 8)


def test_a_single_class_is_enough_and_folders_go_deeper(place):
    picture(place / "bees" / "2020" / "may" / "1.JPG", 50)
    picture(place / "bees" / "2021" / "1.png", 90)
    (place / "ants").mkdir()
    (place / "cats").mkdir()  # a class of no image is none
    assert set(first(own(place))) == {1}
    assert len(own(place)) == 2


def test_what_systems_leave_behind_is_no_image(place):
    picture(place / "bees" / "1.png")
    for name in ("._1.png", ".DS_Store", "Thumbs.db", "notes.txt"):
        (place / "bees" / name).write_bytes(b"no image")
    picture(place / "bees" / ".thumbnails" / "1.png")
    picture(place / "__MACOSX" / "1.png")
    picture(place / ".git" / "1.png")
    assert len(own(place)) == 1


def test_of_several_splits_the_training_split(place):
    picture(place / "train" / "ants" / "1.png", 10)
    picture(place / "train" / "bees" / "1.png", 20)
    picture(place / "test" / "ants" / "1.png", 30)
    assert first(own(place)) == {0: [10], 1: [20]}
    assert first(own(place, config=CONFIG.model_copy(update={"train_split": "test[50%:]"}))) == {0: [30]}


def test_a_class_may_be_called_like_a_split(place):
    picture(place / "train" / "1.png", 10)
    picture(place / "plane" / "1.png", 20)
    assert first(own(place, ["plane", "train"])) == {1: [10], 0: [20]}


def test_a_class_that_the_scenario_does_not_know(place):
    picture(place / "ants" / "1.png")
    picture(place / "zebras" / "1.png")
    assert refusal(place) == (
        f"{place}: class 'zebras' is not among the classes ('ants', 'bees', 'wasps'); here are 'ants', 'zebras'; "
        "rename it, or remove its images"
    )
    (place / "zebras").rename(place / "Bees")
    assert refusal(place).endswith("; did you mean 'bees'?")
    many = [f"kind {number}" for number in range(100)]
    assert "'kind 7' and 92 more)" in refusal(place, many)


def test_nothing_there(place, tmp_path):
    nothing = "no images found; a folder for each class should hold them"
    assert refusal(tmp_path / "nowhere").startswith(f"{tmp_path}/nowhere: there is no such file or folder")
    assert refusal(place) == f"{place}: {nothing}"
    (place / "ants").mkdir()
    (place / "ants" / "scan.dcm").write_bytes(b"what this package does not read")
    assert refusal(place) == f"{place}: {nothing}"


def test_images_without_a_class(place):
    picture(place / "1.png")
    assert refusal(place) == (
        f"{place}/1.png: lies in no class's folder; move it to the folder of its class, or remove it"
    )
    picture(place / "ants" / "1.png")
    assert "lies in no class's folder" in refusal(place)


def test_an_image_that_cannot_be_decoded_is_named(place):
    whole = picture(place / "ants" / "1.png", size=(64, 64)).read_bytes()
    for damaged in (b"", b"no image", whole[: len(whole) // 2]):
        (place / "ants" / "1.png").write_bytes(damaged)
        images = own(place)
        with pytest.raises(DataError, match=rf"{place}/ants/1\.png: is no image that can be decoded \(.*\); repair or"):
            images.pixels(torch.arange(1))


def test_a_folder_that_may_not_be_read(place, monkeypatch):
    def forbidden(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", forbidden)
    assert refusal(place) == f"{place}: cannot be read (Permission denied)"


def test_the_scenarios_cache_is_kept_to(place):
    picture(place / "ants" / "1.png", 40)
    for cache, later in ((None, 80), (3 * 8 * 8 - 1, 80), (3 * 8 * 8, 40)):
        images = own(place, config=CONFIG.model_copy(update={"cache": cache}))
        picture(place / "ants" / "1.png", 40)
        assert first(images) == {0: [40]}
        picture(place / "ants" / "1.png", 80)
        assert first(images) == {0: [later]}, cache


def test_reading_touches_no_cache_of_the_users(place, tmp_path):
    picture(place / "ants" / "1.png")
    own(place)
    assert not (tmp_path / "cache").exists()


def stored(folder: Path, split: str, labels: list, feature=None, columns: tuple[str, str] = ("img", "kind")) -> Path:
    """Write a data set of images whose shades are 10 times their row, and return its folder."""
    folder.mkdir(exist_ok=True)
    shades = [Image.new("RGB", (8, 8), (10 * row,) * 3) for row in range(len(labels))]
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: feature or datasets.Value("int64")})
    rows = {columns[0]: shades, columns[1]: labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def test_a_stored_data_set_is_matched_by_name(place):
    stored(place, "train", [1, 0, 1], datasets.ClassLabel(names=["wasps", "ants", "cats"]))  # cats of no image
    stored(place, "test", [2], datasets.ClassLabel(names=["wasps", "ants", "cats"]))
    assert first(own(place)) == {0: [0, 20], 2: [10]}
    assert first(own(place / "train.parquet")) == {0: [0, 20], 2: [10]}
    assert refusal(place / "test.parquet").startswith(f"{place}/test.parquet: class 'cats' is not among the classes")


def test_a_stored_data_set_with_names_as_texts(place):
    stored(place, "train", ["wasps", "bees", "wasps"], datasets.Value("string"))
    assert first(own(place)) == {2: [0, 20], 1: [10]}


def test_labels_without_names_say_nothing_of_classes_with_names(place):
    stored(place, "train", [2, 0])
    assert refusal(place) == (
        f"{place} has labels that are numbers, '0', '2', and the classes have names, 'ants', 'bees', 'wasps', so that "
        "nothing tells which is which; write names into the column"
    )
    stored(place, "train", [0, -1])
    assert refusal(place, ["0", "1"]) == f"{place}: 1 of 2 images have no label; remove them"


def test_labels_without_names_where_the_scenarios_have_none_either(place):
    """A scenario numbers such labels in their order: 3, 7 and 100 are its classes 0, 1 and 2."""
    stored(place, "train", [100, 3])
    assert first(own(place, ["3", "7", "100"])) == {2: [0], 0: [10]}
    stored(place, "train", [0, 3])
    assert "class '0' is not among the classes ('3', '7', '100')" in refusal(place, ["3", "7", "100"])


TEXT = datasets.Value("string")


def test_a_stored_data_set_of_other_splits_or_columns(place):
    stored(place, "validation", ["ants"], TEXT)
    assert first(own(place)) == {0: [0]}  # the only one there is
    stored(place, "test", ["ants"], TEXT)
    assert "has no split 'train'; it has test, validation" in refusal(place)
    stored(place, "train", ["ants"], TEXT, columns=("image", "label"))
    other = place.with_name("other")
    stored(other, "train", ["ants"], TEXT, columns=("image", "label"))
    assert refusal(other) == f"data.image_column: no column 'img' in {other}; it has image, label"


def test_images_with_their_classes_in_a_table(place):
    """What `datasets` calls an image folder with metadata."""
    for name in ("1.png", "2.png"):
        picture(place / name, 30)
    lines = [{"file_name": "1.png", "kind": "bees"}, {"file_name": "2.png", "kind": "ants"}]
    (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = CONFIG.model_copy(update={"image_column": "image"})
    assert Counter(own(place, config=config).labels.tolist()) == {1: 1, 0: 1}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the project")
def test_photos_are_the_same_from_a_folder_as_from_a_scenario(place):
    path = SHARED / "hymenoptera"
    config = DataConfig(path=str(path))
    stored_ones = own_images(str(path), config, 32, ["bees", "ants"])
    assert stored_ones.labels.bincount().tolist() == [121, 123]
    classes, (source, labels) = load(config, 32, 1, Key(0)).classes, open_labelled(config)
    source.labels = labels.tensor()
    scenario = Images(source, torch.tensor([0, 1, len(source) - 1]), 32)
    for row, label in ((0, 0), (1, 0), (len(source) - 1, 1)):
        assert int(labels.numbers[row]) == label
        (place / classes[label]).mkdir(exist_ok=True)
        source.image(row).save(place / classes[label] / f"{row}.png")
    images = own_images(str(place), config, 32, classes)
    assert torch.equal(images.labels, scenario.labels)
    assert torch.equal(images.pixels(torch.arange(3)), scenario.pixels(torch.arange(3)))
