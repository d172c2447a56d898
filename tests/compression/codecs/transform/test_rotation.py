"""The random rotation: orthogonal, exactly undone, the same for a seed anywhere, and of use to few bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

from splitfed.compression.codecs.transform.rotation import rotate, unrotate

WIDTHS = [1, 2, 3, 5, 8, 33, 63, 64, 65, 100, 127, 128, 192, 200]


def matrix(width: int, seed: int) -> torch.Tensor:
    return rotate(torch.eye(width, dtype=torch.float64), seed)


@pytest.mark.parametrize("width", WIDTHS)
def test_is_orthogonal(width):
    turned = matrix(width, 3)
    assert torch.allclose(turned @ turned.T, torch.eye(width, dtype=torch.float64), atol=1e-14)


@given(rows=st.integers(1, 5), width=st.integers(1, 200), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_is_undone(rows, width, seed):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    before = x.clone()
    y = rotate(x, seed)
    kept = y.clone()
    assert torch.allclose(unrotate(y, seed), x, atol=1e-13, rtol=0)
    assert torch.equal(x, before)
    assert torch.equal(y, kept)
    assert torch.allclose(y.norm(dim=1), x.norm(dim=1), rtol=1e-13)


def test_is_signs_and_a_hadamard_matrix():
    """Against scipy's: the magnitudes are its own, and each row differs from its row by one sign."""
    turned = matrix(64, 9) * 8
    signs = turned[:, 0]
    assert torch.allclose(turned, torch.from_numpy(hadamard(64)).double() * signs.unsqueeze(1), atol=1e-14)


@pytest.mark.parametrize("width", [w for w in WIDTHS if w >= 64])
def test_no_feature_stays_by_itself(width):
    for seed in range(5):
        assert float(matrix(width, seed).abs().max()) <= 0.6
        assert float((matrix(width, seed) ** 4).sum(1).max()) < 0.2, "on average, over all it should reach"


def test_seeds_differ_and_signs_are_fair():
    signs = torch.stack([torch.sign(rotate(torch.eye(64), seed)[:, 0]) for seed in range(200)])
    assert len({tuple(row.tolist()) for row in signs}) == 200
    assert float(signs.mean(0).abs().max()) < 4.5 / 200**0.5
    assert float((signs.T @ signs / 200 - torch.eye(64)).abs().max()) < 5 / 200**0.5


def test_signs_of_a_seed_never_change():
    """Peers of other versions decode by them: the bits of SHAKE-128 over the seed's four bytes, a one for plus."""
    signs = [1, 1, -1, 1, -1, -1, -1, -1, -1, 1, 1, 1, -1, -1, -1, 1]
    assert torch.sign(matrix(16, 12345)[:, 0]).int().tolist() == signs
