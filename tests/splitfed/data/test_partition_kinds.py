"""The other kinds of partitions: against flwr-datasets' partitioners, and what each promises of its shares."""

import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from flwr_datasets import partitioner as flower
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from splitfed.data.partitions.base import Column, in_order
from splitfed.data.partitions.shares import draw_inner, draw_shares
from splitfed.data.partitions.union import (
    Continuous,
    Exponential,
    GroupedNaturalId,
    InnerDirichlet,
    Linear,
    NaturalId,
    PartitionConfig,
    Pathological,
    Shard,
    Size,
    Square,
)
from splitfed.errors import DataError
from splitfed.seeds import Key

KEY = Key(3).at("partition")


def labels_of(classes: int, rows: int) -> Tensor:
    return torch.arange(rows) % classes


def column_of(values: list, known: list | None = None) -> Column:
    return Column("writer", np.array(values), np.unique(values if known is None else known))


def dealt(partitioner: flower.Partitioner, clients: int, **columns: np.ndarray) -> list[list[int]]:
    """Return what a partitioner of flwr-datasets deals of a plain data set, row by row."""
    partitioner.dataset = Dataset.from_dict({**columns, "row": np.arange(len(next(iter(columns.values()))))})
    return [sorted(partitioner.load_partition(client)["row"]) for client in range(clients)]


def refusal(config, rows: int = 100, clients: int = 4, column: Column | None = None) -> str:
    with pytest.raises(DataError) as caught:
        config.split(labels_of(10, rows), clients, KEY, column)
    assert "\n" not in str(caught.value)
    return str(caught.value)


seeds, alphas = st.integers(0, 2**31), st.sampled_from([0.05, 0.3, 1.0, 20.0])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=8, max_size=150), st.integers(1, 8), alphas, st.integers(0, 3),
       st.booleans(), seeds)  # fmt: skip
def test_dirichlet_deals_what_flower_does(labels, clients, alpha, min_size, balancing, seed):
    own = flower.DirichletPartitioner(clients, "label", alpha, min_size, balancing, shuffle=False, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = dealt(own, clients, label=np.array(labels))
        except ValueError:
            expected = None
    try:
        found = draw_shares(np.array(labels), clients, alpha, min_size, balancing, seed)
    except ValueError:
        assert expected is None
        return
    assert [sorted(rows.tolist()) for rows in found] == expected


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(0, 10), alphas, seeds, st.data())
def test_inner_dirichlet_deals_what_flower_does(sizes, more, alpha, seed, data):
    rows = sum(sizes) + more
    labels = data.draw(st.permutations([i % min(5, rows) for i in range(rows)]))
    own = flower.InnerDirichletPartitioner(sizes, "label", alpha, shuffle=False, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = dealt(own, len(sizes), label=np.array(labels))
        except ValueError:
            expected = None
    try:
        found = draw_inner(np.array(labels), tuple(sizes), alpha, seed)
    except ValueError:
        assert expected is None
        return
    assert [sorted(part.tolist()) for part in found] == expected


kinds = st.one_of(
    st.builds(Shard, num_shards_per_partition=st.integers(1, 4)),
    st.builds(Shard, num_shards_per_partition=st.none(), shard_size=st.integers(1, 9),
              keep_incomplete_shard=st.booleans()),
    st.builds(Linear, min_size=st.integers(0, 2)),
    st.builds(Square, min_size=st.integers(0, 2)),
    st.builds(Exponential, min_size=st.integers(0, 2)),
    st.builds(InnerDirichlet, alpha=st.sampled_from([0.3, 1.0, 100.0])),
    st.builds(NaturalId, partition_by=st.just("writer"), min_size=st.integers(0, 1)),
    st.builds(GroupedNaturalId, partition_by=st.just("writer"), group_size=st.integers(1, 3),
              mode=st.sampled_from(["allow-smaller", "allow-bigger", "strict"]), min_size=st.just(0)),
    st.builds(Continuous, partition_by=st.just("writer"), strictness=st.floats(0, 1)),
)  # fmt: skip
ALL_GO = (Linear, Square, Exponential, InnerDirichlet, NaturalId, GroupedNaturalId, Continuous)


@settings(max_examples=120, deadline=None)
@given(kinds, st.integers(1, 15), st.integers(1, 6), st.integers(1, 200), st.integers(1, 15), seeds)
def test_every_image_goes_to_one_client_or_the_setting_is_refused(config, clients, classes, rows, writers, seed):
    labels, column = labels_of(classes, rows), column_of([i % writers for i in range(rows)], list(range(writers)))
    try:
        parts = config.split(labels, clients, Key(seed), column)
    except DataError as error:
        refused = str(error)
    else:
        refused = None
    if refused is not None:
        assert refused.startswith(("data.partition.", "federation.clients: "))
        assert "\n" not in refused
        return
    assert len(parts) == clients
    assert min(map(len, parts)) >= getattr(config, "min_size", 1)
    together = torch.cat(parts)
    assert len(together.unique()) == len(together)
    assert not isinstance(config, ALL_GO) or len(together) == rows
    for part, again in zip(parts, config.split(labels, clients, Key(seed), column), strict=True):
        assert part.dtype == torch.int64
        assert torch.equal(part, part.sort().values)
        assert torch.equal(part, again)


WRITERS = column_of([i % 8 for i in range(400)])


@pytest.mark.parametrize(
    "config",
    [Shard(), Linear(), Square(), Exponential(min_size=0), Size(partition_sizes=(10,) * 8), InnerDirichlet(),
     GroupedNaturalId(partition_by="writer", group_size=2), Continuous(partition_by="writer", strictness=0.5)],
)  # fmt: skip
def test_another_seed_deals_other_shares(config):
    clients = 4 if isinstance(config, GroupedNaturalId) else 8
    one, other = (config.split(labels_of(10, 400), clients, Key(seed), WRITERS) for seed in (1, 2))
    assert not all(map(torch.equal, one, other))


@pytest.mark.parametrize(
    ("config", "own"),
    [(Linear(), flower.LinearPartitioner), (Square(), flower.SquarePartitioner),
     (Exponential(), flower.ExponentialPartitioner)],
)  # fmt: skip
def test_sizes_grow_as_flowers_do(config, own):
    expected = dealt(own(6), 6, label=np.arange(1003))
    assert [len(rows) for rows in config.split(labels_of(10, 1003), 6, KEY)] == [len(rows) for rows in expected]


@pytest.mark.parametrize(
    "config",
    [Shard(), Shard(num_shards_per_partition=3, shard_size=9), Shard(num_shards_per_partition=None, shard_size=17),
     Shard(num_shards_per_partition=None, shard_size=17, keep_incomplete_shard=True)],
)  # fmt: skip
def test_shards_are_flowers(config):
    labels, clients = labels_of(10, 403), 7
    order = in_order(403, KEY)
    order = order[labels[order].argsort(stable=True)]
    own = flower.ShardPartitioner(
        clients, "label", config.num_shards_per_partition, config.shard_size, config.keep_incomplete_shard,
        shuffle=False, seed=KEY.at("shards").integer(),
    )  # fmt: skip
    expected = dealt(own, clients, label=labels[order].numpy())
    assert [rows.tolist() for rows in config.split(labels, clients, KEY)] == [
        sorted(order[rows].tolist()) for rows in expected
    ]


def test_two_shards_of_a_class_make_a_client_of_two_classes_at_most():
    labels = labels_of(10, 1000)
    parts = Shard().split(labels, 50, KEY)
    assert {len(rows) for rows in parts} == {20}
    assert max(len(labels[rows].unique()) for rows in parts) == 2


def test_pathological_holds_exactly_so_many_classes():
    labels = labels_of(100, 5000)
    assert {len(labels[rows].unique()) for rows in Pathological(classes_per_client=7).split(labels, 40, KEY)} == {7}


def test_natural_ids_are_flowers():
    writers = np.random.default_rng(0).choice(["eve", "bob", "ann"], 90)
    expected = dealt(flower.NaturalIdPartitioner("writer"), 3, writer=writers)
    found = NaturalId(partition_by="writer").split(labels_of(10, 90), 3, KEY, column_of(writers))
    assert [rows.tolist() for rows in found] == expected
    assert set(writers[found[0].numpy()]) == {"ann"}


@pytest.mark.parametrize("mode", ["allow-smaller", "allow-bigger", "drop-reminder"])
def test_groups_of_natural_ids_are_flowers(mode):
    writers = np.repeat(np.arange(7), 5)
    config = GroupedNaturalId(partition_by="writer", group_size=3, mode=mode, sort_unique_ids=True)
    own = flower.GroupedNaturalIdPartitioner("writer", 3, mode, sort_unique_ids=True)
    clients = 3 if mode == "allow-smaller" else 2
    expected = dealt(own, clients, writer=writers)
    found = config.split(labels_of(10, 35), clients, KEY, column_of(writers))
    assert [rows.tolist() for rows in found] == expected
    drawn = config.model_copy(update={"sort_unique_ids": False}).split(
        labels_of(10, 35), clients, KEY, column_of(writers)
    )
    assert [rows.tolist() for rows in drawn] != expected
    assert all(len(rows) % 5 == 0 for rows in drawn)


def test_continuous_goes_from_chance_to_order():
    ages = column_of(list(range(300)))
    strict = Continuous(partition_by="age", strictness=1).split(labels_of(10, 300), 3, KEY, ages)
    assert [rows.tolist() for rows in strict] == [list(range(100 * i, 100 * i + 100)) for i in range(3)]
    loose = Continuous(partition_by="age", strictness=0).split(labels_of(10, 300), 3, KEY, ages)
    assert max(abs(rows.float().mean() - 149.5) for rows in loose) < 30


def test_a_client_may_be_empty_where_it_is_allowed_to_be():
    parts = Square(min_size=0).split(labels_of(10, 100), 20, KEY)
    assert len(parts[0]) == 0
    assert len(parts[-1]) > 10
    assert refusal(Square(), clients=20) == (
        "data.partition.min_size: square sizes leave 5 of 20 clients with fewer than 1 of 100 images; use fewer "
        "clients, or min_size: 0 to let them be empty"
    )
    lost = column_of([0, 0, 2, 2], [0, 1, 2])
    assert refusal(NaturalId(partition_by="writer"), 4, 3, lost) == (
        "data.partition.min_size: by column 'writer', 1 of 3 clients have fewer than 1 image to train on, client 1 is "
        "the first; use a larger data.limit, or min_size: 0 to let them be empty"
    )
    parts = NaturalId(partition_by="writer", min_size=0).split(labels_of(2, 4), 3, KEY, lost)
    assert [len(rows) for rows in parts] == [2, 0, 2]


@pytest.mark.parametrize(
    ("config", "clients", "message"),
    [
        (Shard(num_shards_per_partition=60), 4, "data.partition.num_shards_per_partition: 4 clients need 240 shards, "),
        (Shard(shard_size=13), 4, "data.partition.shard_size: 4 clients need 8 shards of 13 images, more than 100 "),
        (Shard(num_shards_per_partition=None, shard_size=40), 4, "data.partition.shard_size: 4 clients need 4 shards"),
        (Linear(min_size=30), 4, "federation.clients: 4 clients with at least 30 images each need 120"),
        (Linear(min_size=20), 4, "data.partition.min_size: linear sizes leave 1 of 4 clients with fewer than 20 "),
        (Exponential(min_size=0), 700, "federation.clients: 700 clients with at least 1 image"),
        (Size(partition_sizes=(5, 5)), 4, "data.partition.partition_sizes: 2 sizes for 4 clients; give one for each"),
        (Size(partition_sizes=(50, 50, 1)), 3, "data.partition.partition_sizes: together 101 images, where there are"),
        (InnerDirichlet(partition_sizes=(5,)), 4, "data.partition.partition_sizes: 1 sizes for 4 clients"),
        (InnerDirichlet(alpha=1e-3), 4, "data.partition.alpha: with 0.001, no images are left of the classes that"),
        (NaturalId(partition_by="writer"), 4, "federation.clients: 4, but column 'writer' has 9 values, each a client"),
        (GroupedNaturalId(partition_by="writer", group_size=2), 4, "federation.clients: 4, but the 9 values of column "
         "'writer' make 5 groups of 2; set federation.clients to 5"),
        (GroupedNaturalId(partition_by="writer", group_size=2, mode="strict"), 4, "data.partition.group_size: the 9 "
         "values of column 'writer' make no groups of 2 with mode: strict"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_way_out(config, clients, message):
    assert refusal(config, clients=clients, column=column_of([i % 9 for i in range(100)])).startswith(message)


def test_columns_that_are_no_numbers():
    config = Continuous(partition_by="writer", strictness=1)
    assert "does not hold numbers alone" in refusal(config, 8, 2, column_of(["a", "b"] * 4))
    assert "does not hold numbers alone" in refusal(config, 8, 2, column_of([1.0, float("nan")] * 4))
    assert "nearly the same number everywhere" in refusal(config, 8, 2, column_of([7] * 8))


def test_too_many_clients_for_exponential_sizes():
    assert refusal(Exponential(), 2000, 800).startswith("federation.clients: sizes cannot grow exponentially over 800")


def test_settings():
    adapter = TypeAdapter(PartitionConfig)
    size = adapter.validate_python({"kind": "size", "partition_sizes": [3, 4]})
    assert hash(size) == hash(Size(partition_sizes=(3, 4)))
    assert adapter.validate_python(size.model_dump(mode="json")) == size
    for kind in ("shard", "linear", "square", "exponential", "inner_dirichlet"):
        assert adapter.validate_python(kind).kind == kind
    for wrong in ("size", "natural_id", {"kind": "size", "partition_sizes": []}, {"kind": "linear", "min_size": -1},
                  {"kind": "size", "partition_sizes": [0]}, {"kind": "shard", "num_shards_per_partition": None},
                  {"kind": "continuous", "partition_by": "age", "strictness": 2},
                  {"kind": "grouped_natural_id", "partition_by": "a", "group_size": 2, "mode": "any"}):  # fmt: skip
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
