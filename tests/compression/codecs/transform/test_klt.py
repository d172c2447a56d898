"""Transform coding against what theory says of Gaussian rows, and against whole-number arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from splitfed.compression.codecs.decoders import decode
from splitfed.compression.codecs.registry import CodecConfig
from splitfed.compression.codecs.transform import klt, rans
from splitfed.compression.lossless_settings import Zstd
from splitfed.seeds import Key

KEY = Key(3, ("test",))


def packet(x: torch.Tensor, **settings):
    return TypeAdapter(CodecConfig).validate_python({"kind": "klt", **settings}).build().encode(x, KEY)


def correlated(rows: int, width: int, decay: float) -> tuple[torch.Tensor, np.ndarray]:
    """Rows of Gaussian numbers whose variances, in a basis of their own, fall by `decay` from one to the next."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    variances = decay ** torch.arange(width, dtype=torch.float64)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64) * variances.sqrt() @ basis.T + 3
    return x.float(), variances.numpy()


def least_bits(variances: np.ndarray, error: float) -> float:
    """Bits of a row at an error, by reverse water-filling (Cover and Thomas, section 10.3.3)."""
    low, high = 0.0, float(variances.max())
    for _ in range(200):
        level = (low + high) / 2
        low, high = (low, level) if np.minimum(variances, level).sum() > error else (level, high)
    return float(0.5 * np.log2(np.maximum(variances / level, 1)).sum())


@pytest.mark.parametrize("snr", [6.0, 12.0, 20.0, 30.0])
@pytest.mark.parametrize("decay", [0.8, 0.95, 1.0])
def test_the_error_is_what_was_asked_for_and_bytes_are_near_the_least(snr, decay):
    x, variances = correlated(20_000, 32, decay)
    sent = packet(x, snr=snr)
    error = float((decode(sent).double() - x.double()).square().sum(1).mean())
    assert abs(10 * np.log10(variances.sum() / error) - snr) < 0.8
    least = least_bits(variances, error) * len(x) / 8
    # A grid costs a quarter of a bit more than the least for each direction that is told, the coder little.
    assert least < len(sent.buffer) < least + 0.36 * 32 / 8 * len(x)


def test_rows_with_much_in_common_take_fewer_bytes_than_a_grid_each():
    x, _ = correlated(2_000, 96, 0.9)
    grid = TypeAdapter(CodecConfig).validate_python({"kind": "uniform", "bits": 3, "scale": "channel"}).build()
    coarse = grid.encode(x, KEY)
    noise = float((decode(coarse) - x).square().sum() / (x - x.mean(0)).square().sum())
    shuffled = Zstd(shuffle="channels").build().compress(coarse.buffer, coarse.bits, coarse.shape)[1]
    assert len(packet(x, snr=-10 * np.log10(noise)).buffer) < 0.4 * len(shuffled)


@pytest.mark.parametrize("shape", [(40, 6), (8, 5, 6), (2, 4, 5, 6)], ids=str)
def test_the_receiver_adds_up_whole_numbers(shape):
    """Exactly, so that it reads the same on any machine: held against fractions."""
    x, each = correlated(40, 6, 0.5)[0].view(shape), 1 if len(shape) == 2 else 5
    if each > 1:
        x = x + torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    sent = packet(x, snr=25.0)
    step, wider, number, of_vectors, of_coefficients, many = klt.HEAD.unpack_from(sent.buffer)
    assert many == (each > 1)
    at = klt.HEAD.size
    vectors = [klt.OF_VECTORS.unpack_from(sent.buffer, at + klt.OF_VECTORS.size * i) for i in range(of_vectors)]
    at += klt.OF_VECTORS.size * of_vectors
    size = klt.OF_COEFFICIENTS.size
    together = [klt.OF_COEFFICIENTS.unpack_from(sent.buffer, at + size * i) for i in range(of_coefficients)]
    sizes = [6, *([6 * each] if many else []), *(6 * n for _, n in vectors), *(40 * n for n, _ in together)]
    mean, *groups = rans.decode(sent.buffer[at + size * of_coefficients :], sizes)
    means = mean + (groups.pop(0).reshape(each, 6) if many else np.zeros((1, 6), int))
    basis = [
        [Fraction(int(v), 2**bits) for v in row]
        for group, (bits, _) in zip(groups, vectors, strict=False)
        for row in group.reshape(-1, 6)
    ]
    found = [
        [int(code) - Fraction(nearer, 16) * int(np.sign(code)) for code in row]
        for group, (_, nearer) in zip(groups[of_vectors:], together, strict=True)
        for row in group.reshape(-1, 40)
    ]
    assert len(basis) == len(found) == number > 2
    expected = [
        [
            float(Fraction(step) * (int(means[r % each][d]) * Fraction(2) ** wider
                                    + sum(found[k][r] * basis[k][d] for k in range(number))))
            for d in range(6)
        ]
        for r in range(40)
    ]  # fmt: skip
    assert decode(sent).equal(torch.tensor(expected, dtype=torch.float64).float().view(shape))


def positioned(samples: int, positions: int, width: int, apart: float) -> torch.Tensor:
    """Tokens `[B, N, D]` whose means by position vary so many times as much as what is theirs."""
    x, variances = correlated(samples * positions, width, 0.9)
    means = torch.randn(positions, width, generator=torch.Generator().manual_seed(1))
    return x.view(samples, positions, width) + means * (apart * variances.mean()) ** 0.5


def test_what_all_images_have_at_a_position_is_told_once():
    x = positioned(64, 37, 48, apart=1.0)
    sent, alike = packet(x, snr=10.0), packet(x.flatten(0, 1), snr=10.0)
    errors = [float((decode(one).view_as(x) - x).square().mean()) for one in (sent, alike)]
    assert abs(10 * np.log10(errors[0] / errors[1])) < 0.3
    assert len(sent.buffer) < 0.75 * len(alike.buffer)


@pytest.mark.parametrize("apart", [0.0, 0.05, 0.3, 3.0])
@pytest.mark.parametrize("samples", [2, 8, 64])
def test_means_by_position_are_sent_where_they_save_bytes(samples, apart):
    x = positioned(samples, 37, 48, apart)
    sent, alike = packet(x, snr=10.0), packet(x.flatten(0, 1), snr=10.0)
    if not klt.HEAD.unpack_from(sent.buffer)[-1]:
        assert sent.buffer == alike.buffer
    else:
        assert len(sent.buffer) < 1.02 * len(alike.buffer)


def test_constant_rows_take_hardly_any_bytes():
    x = torch.arange(64.0).repeat(500, 1)
    sent = packet(x)
    assert len(sent.buffer) < 300
    assert decode(sent).allclose(x, atol=64 * 2.0**-14)


def test_more_numbers_to_a_row_than_rows():
    x = torch.randn(5, 3000, generator=torch.Generator().manual_seed(0))
    error = (decode(packet(x, snr=20.0)) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert 0.004 < float(error) < 0.016
