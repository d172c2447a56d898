import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from splitfed.data.partitions.union import Dirichlet, Iid, PartitionConfig, Pathological
from splitfed.errors import DataError
from splitfed.seeds import Key


def labels_of(classes: int, rows: int) -> torch.Tensor:
    return torch.arange(rows) % classes


def assert_complete(parts: list[torch.Tensor], rows: int) -> None:
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(rows))


configs = st.one_of(
    st.just(Iid()),
    st.builds(Dirichlet, alpha=st.sampled_from([0.3, 1.0, 100.0]), self_balancing=st.booleans()),
    st.builds(Pathological, classes_per_client=st.integers(1, 6)),
)


@settings(max_examples=60, deadline=None)
@given(configs, st.integers(1, 20), st.integers(1, 6), st.integers(1, 300), st.integers(0, 2**31))
def test_every_row_goes_to_exactly_one_client_or_the_setting_is_refused(config, clients, classes, rows, seed):
    labels = labels_of(classes, rows)
    try:
        parts = config.split(labels, clients, Key(seed))
    except DataError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert refusal.startswith(("data.partition.", "federation.clients: "))
        return
    assert len(parts) == clients
    assert all(part.dtype == torch.int64 and len(part) for part in parts)
    assert_complete(parts, rows)
    for part, again in zip(parts, config.split(labels, clients, Key(seed)), strict=True):
        assert torch.equal(part, part.sort().values)
        assert torch.equal(part, again)


@pytest.mark.parametrize("config", [Iid(), Dirichlet(), Pathological()])
def test_only_the_key_decides_and_no_global_randomness_is_touched(config):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    labels = labels_of(10, 400)
    before = state()
    parts = config.split(labels, 8, Key(1).at("partition"))
    assert state() == before
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert all(map(torch.equal, parts, config.split(labels, 8, Key(1).at("partition"))))
    assert not all(map(torch.equal, parts, config.split(labels, 8, Key(2).at("partition"))))


def test_iid_is_even_and_mixed():
    parts = Iid().split(labels_of(10, 1003), 10, Key(0))
    assert {len(part) for part in parts} == {100, 101}
    assert all(len((part % 10).unique()) == 10 for part in parts)


def skew(config) -> float:
    labels = labels_of(10, 5000)
    shares = [labels[part].bincount(minlength=10) / len(part) for part in config.split(labels, 10, Key(3))]
    return sum(float(share.max()) for share in shares) / len(shares)


def test_a_smaller_alpha_is_more_skewed():
    strong, medium, weak = skew(Dirichlet(alpha=0.1)), skew(Dirichlet(alpha=1.0)), skew(Dirichlet(alpha=1000.0))
    assert strong > medium + 0.1 > weak + 0.2
    assert weak < 0.12  # near the tenth that iid gives


def test_self_balancing_evens_the_sizes_out():
    def largest(balanced: bool) -> int:
        parts = Dirichlet(alpha=0.3, self_balancing=balanced).split(labels_of(50, 5000), 10, Key(0))
        return max(map(len, parts))

    assert largest(True) < largest(False)


def test_dirichlet_keeps_its_minimum_and_says_nothing_of_repeated_draws():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = Dirichlet(alpha=0.5, min_size=60).split(labels_of(10, 1000), 10, Key(0))
    assert min(map(len, parts)) >= 60


@pytest.mark.parametrize(("clients", "each", "classes"), [(10, 2, 10), (20, 10, 100), (7, 3, 5), (4, 5, 5), (5, 2, 10)])
def test_pathological_gives_each_client_its_number_of_classes_and_every_class_alike(clients, each, classes):
    labels = labels_of(classes, 2000)
    held = [set(labels[part].tolist()) for part in Pathological(classes_per_client=each).split(labels, clients, Key(4))]
    assert all(len(classes_held) == each for classes_held in held)
    owners = [sum(label in classes_held for classes_held in held) for label in range(classes)]
    assert max(owners) - min(owners) <= 1
    assert min(owners) >= 1


def test_pathological_takes_labels_with_gaps():
    labels = torch.tensor([3, 3, 9, 9, 40, 40])
    parts = Pathological(classes_per_client=1).split(labels, 3, Key(0))
    assert sorted(labels[part].unique().item() for part in parts) == [3, 9, 40]


@pytest.mark.parametrize(
    ("config", "clients", "message"),
    [
        (
            Iid(),
            101,
            "federation.clients: 101 clients with at least 1 image each need 101 training images, there are 100; "
            "use fewer clients",
        ),
        (
            Dirichlet(min_size=30),
            4,
            "federation.clients: 4 clients with at least 30 images each need 120 training images, there are 100; "
            "use fewer clients or a smaller data.partition.min_size",
        ),
        (
            Dirichlet(alpha=0.01, min_size=10),
            10,
            "data.partition.alpha: with 0.01, no draw gave each of 10 clients at least 10 images of 100; "
            "use a larger alpha, fewer clients or a smaller min_size",
        ),
        (
            Dirichlet(alpha=0.01),
            90,
            "data.partition.alpha: with 0.01, no draw gave each of 90 clients at least 1 image of 100; "
            "use a larger alpha, fewer clients or a smaller min_size (0 lets clients be empty)",
        ),
        (
            Pathological(classes_per_client=11),
            10,
            "data.partition.classes_per_client: 11 is more than the 10 classes of the training data; use at most 10",
        ),
        (
            Pathological(classes_per_client=2),
            3,
            "data.partition.classes_per_client: 3 clients with 2 classes each leave images of 4 of the 10 classes to "
            "nobody; use at least 4",
        ),
        (
            Pathological(classes_per_client=10),
            11,
            "data.partition.classes_per_client: 11 clients with 10 classes each need more images of a class than there "
            "are (the rarest has 10); use fewer clients or classes_per_client",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(config, clients, message):
    with pytest.raises(DataError) as caught:
        config.split(labels_of(10, 100), clients, Key(0))
    assert str(caught.value) == message


def test_configuration():
    adapter = TypeAdapter(PartitionConfig)
    assert adapter.validate_python("iid") == Iid()
    assert adapter.validate_python({"kind": "dirichlet", "alpha": 1}).alpha == 1
    for wrong in ({"kind": "dirichlet", "alpha": 0}, {"kind": "iid", "alpha": 1}, "round-robin"):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
