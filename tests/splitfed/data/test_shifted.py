"""Clients that see the same classes through transforms of their own: who sees what, and that nothing else changes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small
from outcomes import outcome
from pydantic import ValidationError

from splitfed import simulate
from splitfed.data.corruptions import corrupt
from splitfed.data.dataset import FederatedData, load
from splitfed.data.partitions.evenly import CORRUPTIONS, Shifted, View
from splitfed.data.settings import DataConfig
from splitfed.errors import ScenarioError
from splitfed.seeds import Key

KEY = Key(5)


def digits(partition, size: int = 16, clients: int = 6, **more) -> FederatedData:
    return load(DataConfig(path="digits", limit=60, test_limit=20, partition=partition, **more), size, clients, KEY)


def pixels(images, rows=None) -> torch.Tensor:
    return images.pixels(torch.arange(len(images)) if rows is None else rows)


def test_severity_0_is_iid_bit_for_bit():
    plain, shifted = digits("iid"), digits(Shifted(severity=0))
    assert all(map(torch.equal, plain.partitions, shifted.partitions))
    assert torch.equal(pixels(plain.train), pixels(shifted.train))


def test_a_run_with_severity_0_is_that_of_iid(tmp_path: Path):
    plan = small("data.limit=48", "evaluation={held_out: 0.2}", "federation.rounds=1")
    kinds = ("iid", "{kind: shifted, severity: 0}", "{kind: shifted, severity: 5}")
    each = [plan.with_([f"data.partition={kind}"]) for kind in kinds]
    runs = [simulate(one, runs=tmp_path / str(number)) for number, one in enumerate(each)]
    plain, none, much = (outcome(run.folder) for run in runs)
    assert plain == none
    assert plain["clients"] != much["clients"]
    assert plain["model"] != much["model"]


@pytest.mark.parametrize("cache", [None, "1 GiB"])
def test_each_client_sees_its_own_images_through_its_transform_and_nobody_elses_change(cache):
    plain, shifted = digits("iid", cache=cache), digits(Shifted(severity=4), cache=cache)
    assert shifted.views is not None
    assert len({view.transform for view in shifted.views} & set(CORRUPTIONS)) == 6
    for client, (rows, view) in enumerate(zip(shifted.partitions, shifted.views, strict=True)):
        assert torch.equal(rows, plain.partitions[client])
        before, after = pixels(plain.train, rows), pixels(shifted.train, rows)
        assert torch.equal(after, pixels(shifted.train, rows))
        if view.transform == "noise":
            off = after.int() - before.int()
            assert float(off.abs().float().mean()) > 10
            assert not torch.equal(off[0], off[1])
            continue
        for old, new in zip(before, after, strict=True):
            image = old.permute(1, 2, 0).numpy()
            wanted = corrupt(image, view.transform, 4, np.random.default_rng(0), view.direction)
            assert np.array_equal(new.permute(1, 2, 0).numpy(), wanted)
    assert torch.equal(pixels(plain.validation), pixels(shifted.validation))
    assert torch.equal(pixels(plain.test), pixels(shifted.test))
    assert plain.images_bytes == shifted.images_bytes


def test_transforms_are_dealt_evenly_and_the_key_draws_which_and_which_way():
    settings = Shifted(transforms=("none", "brightness", "noise"), severity=2)
    views = settings.views(200, KEY)
    assert views == settings.views(200, KEY) != settings.views(200, Key(6))
    counts = Counter(view.transform for view in views)
    assert sorted(counts.values()) == [66, 67, 67]
    assert set(map(str, views)) == {"none", "noise 2", "brightness +2", "brightness -2"}
    assert 20 < sum(str(view) == "brightness +2" for view in views) < 47
    assert [str(View("contrast", 3, way)) for way in (1, -1)] == ["contrast -3", "contrast +3"]


def test_rows_of_nobody_stay_as_they_are():
    data, plain = digits("iid"), digits("iid")
    before = pixels(plain.train).clone()
    data = digits(Shifted(), cache=None)
    data.train.seen([torch.tensor([1])], [View("brightness", 5)], KEY)
    changed = (pixels(data.train) != before).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize(
    ("given", "named"), [({"severity": 6}, "severity"), ({"transforms": []}, "transforms"),
                         ({"transforms": "fog"}, "transforms"),
                         ({"transforms": ["none", "blur", "hue", "blur"]}, "blur is named twice: name each once")],
)  # fmt: skip
def test_what_cannot_be_is_refused(given, named: str):
    with pytest.raises(ValidationError, match=named):
        Shifted(**given)


@pytest.mark.parametrize(
    ("section", "wanted"),
    [
        ("data.partition={kind: shifted, transforms: [nise, 3]}", ["transforms.0: must be", "transforms.1: must be"]),
        ("data.partition={kind: shifted, transforms: []}", ["transforms: must have at least 1 item, not 0"]),
        ("model.exits={blocks: [a]}", ["exits.blocks.0: must be a whole number"]),
        (
            "control={kind: drift_plus_penalty, target: {kind: all_bytes, bytes: 1MB}, points: {a: {x: 1}, b: {}}}",
            ["points.a.x: unknown key"],
        ),
    ],
)
def test_how_many_items_there_are_is_told_of_what_was_written(section: str, wanted: list[str]) -> None:
    """Not of those that are right."""
    with pytest.raises(ScenarioError) as error:
        small(section)
    assert len(error.value.problems) == len(wanted)
    assert all(why in problem for problem, why in zip(error.value.problems, wanted, strict=True))
