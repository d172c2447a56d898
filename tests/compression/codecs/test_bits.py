"""Bit packing against numpy's, for every width."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitfed.compression.codecs.bits import pack, packed_size, unpack


def reference(codes: torch.Tensor, bits: int) -> bytes:
    """Write the codes bit by bit, lowest first."""
    table = np.unpackbits(codes.numpy()[:, None], axis=1, bitorder="little")[:, :bits]
    return np.packbits(table.ravel(), bitorder="little").tobytes()


@pytest.mark.parametrize("bits", range(1, 9))
@given(count=st.integers(0, 70), seed=st.integers(0, 2**32), offset=st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_packs_like_numpy_and_back(bits, count, seed, offset):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (count + offset,), generator=generator, dtype=torch.uint8)[offset:]
    packed = pack(codes, bits)
    assert packed.numpy().tobytes() == reference(codes, bits)
    assert packed.numel() == packed_size(count, bits)
    padded = torch.cat([torch.zeros(offset, dtype=torch.uint8), packed])[offset:]
    assert torch.equal(unpack(padded, bits, count), codes)
