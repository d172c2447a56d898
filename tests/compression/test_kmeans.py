import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from splitfed.compression.kmeans import kmeans
from splitfed.seeds import Key


def blobs(seed, samples=90, features=12):
    generator = Key(seed).generator()
    centres = torch.randn(9, features, generator=generator)
    which = torch.randint(9, (samples,), generator=generator)
    return centres[which] + 0.6 * torch.randn(samples, features, generator=generator)


def sklearn_labels(points, start, iterations):
    model = KMeans(len(start), init=start.double().numpy(), n_init=1, max_iter=iterations, algorithm="lloyd", tol=0)
    return model.fit(points.double().numpy()).labels_


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("iterations", [1, 2, 50])
@pytest.mark.parametrize("seed", range(6))
def test_it_agrees_with_scikit_learn_from_the_same_start(seed, iterations):
    points = blobs(seed)
    start = points[Key(seed).numpy().permutation(len(points))[:8]]
    expected = sklearn_labels(points, start, iterations)
    assert len(set(expected)) == 8  # no empty cluster, which scikit-learn would fill and we drop
    labels, sizes = kmeans(points, 8, Key(0), iterations, start)
    assert labels.tolist() == expected.tolist()
    assert sizes.tolist() == np.bincount(expected).tolist()


def test_it_needs_more_than_one_iteration_here():
    points = blobs(0)
    start = points[Key(0).numpy().permutation(len(points))[:8]]
    assert sklearn_labels(points, start, 1).tolist() != sklearn_labels(points, start, 50).tolist()


def test_the_start_is_drawn_from_the_points_by_the_key():
    points, key = blobs(1), Key(5, ("start",))
    rows = torch.randperm(len(points), generator=key.generator())[:8]
    before = torch.get_rng_state()
    labels, _ = kmeans(points, 8, key)
    assert torch.equal(torch.get_rng_state(), before)
    assert labels.tolist() == sklearn_labels(points, points[rows], 50).tolist()
    assert labels.tolist() != kmeans(points, 8, Key(6))[0].tolist()


points_strategy = st.integers(1, 12).flatmap(
    lambda rows: st.lists(
        st.lists(st.integers(-2, 2), min_size=2, max_size=2), min_size=rows, max_size=rows
    )  # few distinct values: duplicates, ties and empty clusters are the rule
)


@settings(max_examples=150, deadline=None)
@given(points=points_strategy, clusters=st.integers(1, 14), seed=st.integers(0, 5))
def test_clusters_are_numbered_without_gaps_and_stable(points, clusters, seed):
    points = torch.tensor(points, dtype=torch.float32)
    labels, sizes = kmeans(points, clusters, Key(seed))
    assert labels.dtype == sizes.dtype == torch.int64
    assert len(sizes) <= min(clusters, len(points))
    assert sizes.tolist() == torch.bincount(labels).tolist()
    assert (sizes > 0).all()
    means = torch.stack([points[labels == c].double().mean(0) for c in range(len(sizes))])
    distances = (points.double()[:, None] - means).square().sum(2)
    own = distances.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(own, distances.min(1).values, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("samples", "clusters"), [(1, 1), (1, 3), (7, 1), (7, 7), (7, 9)])
def test_borders(samples, clusters):
    points = blobs(2, samples)
    labels, sizes = kmeans(points, clusters, Key(0))
    assert len(labels) == samples
    assert len(sizes) == min(samples, clusters)
    if clusters >= samples:
        assert sorted(labels.tolist()) == list(range(samples))


def test_identical_points_are_one_cluster():
    labels, sizes = kmeans(torch.full((9, 4), 0.1), 5, Key(0))
    assert labels.tolist() == [0] * 9
    assert sizes.tolist() == [9]


def test_an_empty_cluster_is_dropped():
    points = torch.tensor([[0.0], [0.1], [10.0], [10.1]])
    labels, sizes = kmeans(points, 3, Key(0), start=torch.tensor([[0.0], [500.0], [10.0]]))
    assert labels.tolist() == [0, 0, 1, 1]
    assert sizes.tolist() == [2, 2]


def test_small_differences_between_large_numbers_count():
    points = torch.tensor([[4096.0, 0.0], [4096.002, 0.0], [4096.01, 0.0], [4096.012, 0.0]])
    labels, _ = kmeans(points, 2, Key(0), start=points[[0, 2]])
    assert labels.tolist() == [0, 0, 1, 1]


def test_autocast_changes_nothing():
    points = blobs(3)
    expected = kmeans(points, 8, Key(1))[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kmeans(points, 8, Key(1))[0], expected)
