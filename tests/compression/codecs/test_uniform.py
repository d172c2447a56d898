"""Uniform quantisation against numpy: which numbers share a grid, what it spans, and what a rotation changes."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from splitfed.compression.codecs.decoders import coded_size, decode
from splitfed.compression.codecs.registry import CodecConfig
from splitfed.seeds import Key

KEY = Key(3, ("test",))
AXES = {"token": 2, "channel": (0, 1), "tensor": (0, 1, 2)}


def codec(**settings):
    return TypeAdapter(CodecConfig).validate_python({"kind": "uniform", **settings}).build()


def sent(x: torch.Tensor, key: Key = KEY, **settings) -> torch.Tensor:
    return decode(codec(**settings).encode(x, key))


def outliers(*shape: int) -> torch.Tensor:
    """Activations as Vision Transformers have them: three features tower above the others."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x[..., [3, 40, 100]] *= torch.tensor([30.0, 15.0, 20.0])
    return x


@pytest.mark.parametrize("scale", ["token", "channel", "tensor"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_nearest_is_what_numpy_computes(scale, bits):
    x = outliers(4, 6, 128)
    wide, axes, levels = x.double().numpy(), AXES[scale], 2**bits - 1
    low = wide.min(axes, keepdims=True)
    step = (wide.max(axes, keepdims=True) - low) / levels
    expected = low + np.rint((wide - low) / step) * step
    error = np.abs(sent(x, bits=bits, scale=scale, rounding="nearest").double().numpy() - expected)
    assert (error > 1e-4 * step).mean() < 1e-3, "only halves may be rounded another way"
    assert (error <= 1.001 * step).all()


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"bits": 4}, 4 * 6 * 10 // 2 + 8 * 24),
        ({"bits": 4, "scale": "channel"}, 120 + 8 * 10),
        ({"bits": 4, "scale": "tensor"}, 120 + 8),
        ({"bits": 4, "scale_bits": 16}, 120 + 4 * 24 + 4),
        ({"bits": 4, "rotation": True}, 120 + 8 * 24 + 4),
        ({"bits": 3, "scale": "channel", "scale_bits": 16, "rotation": True}, 90 + 4 * 10 + 4 + 4),
    ],
)
def test_bytes_are_those_of_the_formula(settings, size):
    packet = codec(**settings).encode(torch.randn(4, 6, 10), KEY)
    assert len(packet.buffer) == coded_size(packet.tag, packet.dtype, packet.shape) == size


@pytest.mark.parametrize("scale", [1e-24, 1e-9, 1.0, 1e9])
@pytest.mark.parametrize("low", [-1.0, 0.0, 0.5, 3.0])
def test_grids_in_16_bits_still_reach_both_ends(scale, low):
    x = (low + torch.rand(50, 64, generator=torch.Generator().manual_seed(2))) * scale
    x *= torch.logspace(0, -5, 50).unsqueeze(1)  # some tokens are far smaller than others
    full, half = (sent(x, bits=8, scale_bits=bits, rounding="nearest") for bits in (32, 16))
    step = (x.amax(1, True) - x.amin(1, True)) / 255
    assert bool(((full - x).abs() <= 0.501 * step + x.abs() * 1e-6).all())
    assert bool(((half - x).abs() <= 0.501 * (step + 2**-9 * (step + x.abs().amax(1, True) / 255))).all())


@pytest.mark.parametrize("settings", [{"scale_bits": 16}, {"rotation": True}, {"scale": "channel", "rotation": True}])
def test_stochastic_rounding_is_right_on_average(settings):
    x, count = outliers(3, 5, 128), 400
    total, squares = torch.zeros_like(x, dtype=torch.float64), torch.zeros_like(x, dtype=torch.float64)
    for number in range(count):
        y = sent(x, KEY.at(number), bits=2, **settings).double()
        total, squares = total + y, squares + (y - x) ** 2
    # of numbers that hardly ever change, the deviation that was seen tells little
    deviation = (squares / count).sqrt().clamp(min=0.1 * float((squares / count).mean().sqrt()))
    far = (total / count - x).abs() / (deviation / count**0.5)
    assert float(far.max()) < 5.5
    assert float((far**2).mean()) < 1.3


def test_each_key_rotates_another_way_and_the_receiver_follows():
    x = torch.ones(1, 64)
    codes = {bytes(codec(bits=8, rotation=True, rounding="nearest").encode(x, KEY.at(n)).buffer) for n in range(20)}
    assert len(codes) == 20
    for number in range(20):
        assert torch.allclose(sent(x, KEY.at(number), bits=8, rotation=True), x, atol=0.1)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_a_rotation_makes_two_bits_usable_where_features_tower(rounding):
    x = outliers(8, 20, 128)

    def error(**settings) -> float:
        return float((sent(x, bits=2, rounding=rounding, **settings) - x).square().mean() / x.var())

    assert error(rotation=True) < 0.5 * error()
    assert error(scale="channel") < 0.5 * error()


def test_zeros_stay_zeros():
    x = torch.zeros(2, 3, 40)
    for settings in ({"rotation": True}, {"scale_bits": 16}, {"scale": "channel"}, {"scale": "tensor"}):
        assert torch.equal(sent(x, bits=2, **settings), x)


def test_largest_float16_numbers_come_back_finite():
    x = torch.full((4, 64), 65504.0, dtype=torch.float16)
    x[1], x[2, ::2] = -65504.0, 0.0
    y = sent(x, bits=2, rotation=True)
    assert bool(y.isfinite().all())
    assert float(y.max()) == 65504.0
