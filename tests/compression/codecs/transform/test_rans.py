"""rANS: what goes in comes out, in little more than the entropy, and other bytes are refused."""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitfed.compression.codecs.transform import rans
from splitfed.errors import CodecError, WireError

NUMBERS = st.one_of(st.integers(-2, 2), st.integers(-40, 40), st.integers(-rans.MOST, rans.MOST))
GROUPS = st.lists(st.lists(NUMBERS, max_size=60), max_size=5)


def arrays(groups):
    return [np.array(group, np.int64) for group in groups]


def sizes(groups):
    return [len(group) for group in groups]


@contextmanager
def walking(all_at_once):
    """Have numpy move all states, or Python each, however many there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rans, "_FEW", 0 if all_at_once else 1 << 30)  # what is written does not depend on it
        yield


@given(GROUPS)
@settings(deadline=None)
def test_what_goes_in_comes_out(groups):
    data = rans.encode(arrays(groups))
    assert [found.tolist() for found in rans.decode(data, sizes(groups))] == groups
    assert len(data) <= rans.most_bytes(sum(sizes(groups)), len(groups))


@pytest.mark.parametrize("counts", [[], [0], [1], [0, 3, 0], [900, 0, 200], [1024, 1024], [3000, 1, 2047], [40_000]])
def test_all_states_at_once_write_and_read_what_each_after_the_other_does(counts):
    draws = np.random.default_rng(len(counts))
    groups = [draws.laplace(0, 3 * place + 0.3, n).round().astype(np.int64) for place, n in enumerate(counts)]
    written = []
    for all_at_once in (True, False):
        with walking(all_at_once):
            written.append(rans.encode(groups))
    assert written[0] == written[1]
    for all_at_once in (True, False):
        with walking(all_at_once):
            found = rans.decode(written[0], sizes(groups))
        assert all(np.array_equal(one, other) for one, other in zip(found, groups, strict=True))


@given(GROUPS, st.booleans(), st.data())
@settings(deadline=None, max_examples=200)
def test_other_bytes_are_refused_or_integers(groups, all_at_once, draw):
    data = bytearray(rans.encode(arrays(groups)))
    if data and draw.draw(st.booleans()):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    else:
        data = data[: draw.draw(st.integers(0, len(data)))] + draw.draw(st.binary(max_size=3))
    try:
        with walking(all_at_once):
            found = rans.decode(bytes(data), sizes(groups))
    except WireError:
        return
    assert sizes(found) == sizes(groups)
    assert all(np.abs(group).max(initial=0) <= rans.MOST for group in found)


@pytest.mark.parametrize("deviation", [0.1, 0.5, 1.0, 8.0, 300.0])
def test_bytes_are_little_more_than_the_entropy(deviation):
    values = np.random.default_rng(0).normal(0, deviation, 200_000).round().astype(np.int64)
    _, counts = np.unique(values, return_counts=True)
    shares = counts / values.size
    least = -(shares * np.log2(shares)).sum() * values.size / 8
    assert least < len(rans.encode([values])) < 1.03 * least + 1000  # a state for each 1,024 numbers


def test_groups_have_statistics_of_their_own():
    zeros, coins = np.zeros(50_000, np.int64), np.random.default_rng(0).integers(0, 2, 50_000)
    apart, together = len(rans.encode([zeros, coins])), len(rans.encode([np.concatenate([zeros, coins])]))
    assert apart < 50_000 / 8 * 1.02 + 500
    assert together > 1.5 * apart


def test_a_number_beyond_what_is_told_is_refused():
    with pytest.raises(CodecError, match="beyond 32767"):
        rans.encode([np.array([1 << 15])])
