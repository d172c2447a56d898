"""`splitfed data`: what a run would train on, as text, table, CSV and picture."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small, table
from PIL import Image

from splitfed import describe, estimate, simulate
from splitfed.cli import main as cli
from splitfed.data.dataset import load
from splitfed.errors import DataError
from splitfed.reports.dataset.describe import Description
from splitfed.reports.dataset.picture import draw
from splitfed.reports.dataset.text import csv as to_csv
from splitfed.reports.dataset.text import head, partition_line
from splitfed.seeds import Key

SQUARE = ("data.partition={kind: square, min_size: 0}", "federation.clients=20")
DIRICHLET = "data.partition={kind: dirichlet, alpha: 0.3}"


def described(*overrides: str) -> Description:
    return describe(small("data.limit=null", *overrides))


def lines_of(one: Description) -> dict[str, str]:
    return {line[:13].strip(): line[13:] for line in head(one)[1:]}


def test_it_counts_what_a_run_deals():
    one = described(DIRICHLET)
    data = load(one.scenario.data, 8, 3, Key(0).at("data"))
    for client, rows in enumerate(data.partitions):
        labels = [int(data.train.labels[row]) for row in rows]
        assert one.held[client].tolist() == [labels.count(label) for label in range(10)]
        assert (int(one.images[client]), int(one.kinds[client])) == (len(labels), len(set(labels)))
        shares = [
            labels.count(c) / len(labels) - data.train.labels.tolist().count(c) / len(data.train) for c in range(10)
        ]
        assert float(one.distances[client]) == pytest.approx(sum(map(abs, shares)) / 2)
    assert one.left_out == 0


def test_one_class_each_is_as_far_apart_as_ten_classes_can_be():
    one = described("data.partition={kind: pathological, classes_per_client: 1}", "federation.clients=10")
    assert one.kinds.tolist() == [1] * 10
    assert one.distances.mean() == pytest.approx(0.9, abs=0.01)
    assert described("federation.clients=10").distances.mean() < 0.2


def test_the_text():
    found = lines_of(described(DIRICHLET, "seed=4"))
    assert found["splits"] == "1,294 images to train on, 144 to validate, 50 to test"
    assert found["partition"] == "dirichlet, alpha: 0.3, 3 clients, seed 4"
    assert not {"empty", "left out"} & set(found)
    assert lines_of(described())["images"] == "431 to 432 (median 431) for each client"
    found = lines_of(described("data.partition={kind: size, partition_sizes: [5, 5, 5]}"))
    assert found["left out"] == "1,279 training images go to no client"
    assert partition_line(described()) == "iid"


def test_clients_without_images_are_told_and_never_train(tmp_path, caplog):
    scenario = small(*SQUARE)
    one = describe(scenario)
    empty = [client for client, images in enumerate(one.images.tolist()) if not images]
    assert 0 < len(empty) < 10
    assert lines_of(one)["empty"] == f"{len(empty)} clients without images, never drawn to train"
    assert all(math.isnan(one.distances[client]) for client in empty)
    result = simulate(scenario, runs=tmp_path)
    assert f"{len(empty)} of 20 clients hold no images and never train: 0, 1" in caplog.text
    trained = {int(row["client"]) for row in table(result.folder / "ledger.csv") if row["role"] == "smashed"}
    assert trained == set(range(20)) - set(empty)
    assert estimate(scenario).steps == sum(-(-int(images) // 16) for images in one.images)


def test_csv_has_a_row_for_each_client():
    one = described(*SQUARE)
    rows = list(csv.DictReader(to_csv(one).splitlines()))
    assert [int(row["client"]) for row in rows] == list(range(20))
    assert [[int(row[f"class {name}"]) for name in one.classes] for row in rows] == one.held.tolist()
    assert [int(row["images"]) for row in rows] == one.images.tolist()


def test_the_picture_of_few_clients_shows_every_count():
    one = described(DIRICHLET)
    cells, bars, _ = draw(one).axes
    (image,) = cells.images
    assert np.array_equal(np.asarray(image.get_array().filled(0)), one.held.numpy())
    assert [bar.get_width() for bar in bars.patches] == one.images.tolist()
    assert bars.get_ylim()[0] > bars.get_ylim()[1]  # client 0 on top, as beside it


def test_the_picture_of_many_clients_shows_distributions():
    one = described("federation.clients=300", "data.partition={kind: dirichlet, alpha: 0.3, min_size: 0}")
    figure = draw(one)
    assert len(figure.axes) == 3
    for axes in figure.axes[:2]:
        assert sum(bar.get_height() for bar in axes.patches) == 300
    assert sum(bar.get_height() for bar in figure.axes[2].patches) == int((one.images > 0).sum())


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["splitfed", "data", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *capsys.readouterr()

    return run


def test_the_command(command, tmp_path):
    code, out, _ = command("digits", "--set", DIRICHLET, "--out", "one.png", "--csv", "one.csv", "--clients", "2")
    assert code == 0
    assert "partition    dirichlet, alpha: 0.3, 10 clients, seed 0" in out
    assert out.split("\n")[-3:] == ["one.png", "one.csv", ""]
    assert Image.open(tmp_path / "one.png").width == 990
    assert len(Path("one.csv").read_text().splitlines()) == 11
    again = command("digits", "--set", DIRICHLET, "--out", "two.png", "--clients", "2")[1]
    assert "and 8 more; --csv FILE writes all" in again
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert command("digits", "--set", DIRICHLET, "--seed", "1")[1] != command("digits", "--set", DIRICHLET)[1]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--out", "one.txt"], "--out one.txt: pictures are named *.png, *.pdf, *.svg"),
        (["--csv", "nowhere/one.csv"], "nowhere/one.csv: cannot be written (No such file or directory)"),
        (["--set", "data.partition=natural_id"], "--set data.partition=natural_id: data.partition.partition_by: "),
        (["--set", "data.partition={kind: natural_id, partition_by: writer}"],
         "data.partition.partition_by: digits has no columns, so none 'writer'; use a data set that has, or another"),
        (["--set", "data.partition={kind: size, partition_sizes: [1, 2]}"], "data.partition.partition_sizes: 2 sizes "
         "for 10 clients"),
    ],
)  # fmt: skip
def test_mistakes_of_the_command(command, arguments, problem):
    code, _, error = command("digits", *arguments)
    assert code == 2
    assert error.startswith(problem)
    assert error.count("\n") == 1


def photo(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), (value, value, value)).save(path)


def test_a_folder_for_each_class_without_a_test_split(tmp_path):
    for number, name in enumerate(("ants", "bees")):
        for shade in range(20):
            photo(tmp_path / "insects" / name / f"{shade}.png", 100 * number + shade)
    place = ("data={path: %s, test_split: 0.25}" % (tmp_path / "insects"),)
    one = described(*place)
    assert one.classes == ["ants", "bees"]
    assert (one.counts.train, one.counts.validation, one.counts.test) == (27, 3, 10)
    data, other = (load(described(*place, f"seed={seed}").scenario.data, 8, 3, Key(seed)) for seed in (0, 1))
    assert data.test.labels.bincount().tolist() == [5, 5]  # by class, which a slice of a sorted folder is not
    parts = [
        part.pixels(torch.arange(len(part)))[:, 0, 0, 0].tolist() for part in (data.train, data.validation, data.test)
    ]
    assert sorted(parts[0] + parts[1] + parts[2]) == sorted([*range(20), *range(100, 120)])
    assert sorted(parts[2]) == sorted(other.test.pixels(torch.arange(10))[:, 0, 0, 0].tolist())


def test_every_image_is_looked_at_where_that_is_asked_for(tmp_path, capsys, monkeypatch):
    import datasets
    from PIL import Image

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for part in ("train", "test"):
        for kind in ("ants", "bees"):
            (tmp_path / "d" / part / kind).mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (8, 8)).save(tmp_path / "d" / part / kind / f"{number}.png")
    broken = [tmp_path / "d" / part / "ants" / "3.png" for part in ("train", "test")]
    for path in broken:
        path.write_bytes(b"no image")
    (tmp_path / "d" / "train" / "bees" / "notes.txt").write_text("")
    plan = small(f"data.path={tmp_path}/d", "data.limit=10", "data.test_limit=2")
    assert describe(plan).notes == ["passed over, as they are no images: 1 .txt"]
    with pytest.raises(DataError) as caught:
        describe(plan, check=True)
    assert str(caught.value).startswith("data.path: 2 images cannot be decoded; ")
    assert all(f"\n  {path}: cannot identify image file" in str(caught.value) for path in broken)
    left_out = describe(small(f"data.path={tmp_path}/d", "data.on_bad=skip", "data.limit=50", "data.test_limit=2"))
    assert left_out.notes == [
        "2 images are left out: they cannot be decoded, or have no label",
        "passed over, as they are no images: 1 .txt",
        "data.limit: 50 are asked for, 13 images to train on are there",
    ]


def test_clients_that_see_in_ways_of_their_own_are_told_and_shown():
    one = described("data.partition={kind: shifted, transforms: [rotation, none], severity: 5}", "federation.clients=2")
    (view,) = {view for view in one.views if view.transform == "rotation"}
    found, turned = lines_of(one), str(view)
    assert turned in ("rotation +5", "rotation -5")
    assert found["partition"].startswith("shifted, severity: 5, ")
    assert "none by " in found["seen"]
    assert [row["view"] for row in csv.DictReader(to_csv(one).splitlines())] == list(map(str, one.views))
    assert np.array_equal(one.examples[turned], np.rot90(one.examples["none"], view.direction))
    shown = [image for part in draw(one).subfigs for axes in part.axes for image in axes.images if axes.get_title()]
    assert len(shown) == len(one.examples)
    assert "seen" not in lines_of(described())
    assert lines_of(described("data.partition={kind: shifted, severity: 0}"))["seen"].startswith("as they are")
