"""Every codec, dtype and shape: what comes back is within the codec's stated bound, or the sender was told."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from splitfed import testing
from splitfed.compression.codecs.base import Packet
from splitfed.compression.codecs.decoders import DECODERS, coded_size, decode
from splitfed.compression.codecs.registry import CodecConfig
from splitfed.compression.codecs.transform import rans
from splitfed.errors import CodecError, WireError
from splitfed.seeds import Key

KEY = Key(7, ("test",))
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DTYPES = [*FLOATS.values(), torch.float64]
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
UNDERFLOW = {torch.float64: 0.0, torch.float32: 2.0**-149, torch.float16: 2.0**-25, torch.bfloat16: 2.0**-133}
TINY, MOST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
CONFIGS = [
    *({"kind": kind} for kind in FLOATS),
    *({"kind": "float8", "format": f} for f in ("e4m3", "e5m2")),
    *({"kind": "uniform", "bits": b, "rounding": r} for b in (2, 3, 4, 6, 8) for r in ("stochastic", "nearest")),
    {"kind": "uniform", "bits": 3, "scale": "channel"},
    {"kind": "uniform", "bits": 8, "scale": "tensor", "rounding": "nearest"},
    {"kind": "uniform", "bits": 2, "scale_bits": 16},
    {"kind": "uniform", "bits": 8, "scale_bits": 16, "rounding": "nearest"},
    {"kind": "uniform", "bits": 6, "scale_bits": 16, "scale": "channel"},
    {"kind": "uniform", "bits": 2, "rotation": True},
    {"kind": "uniform", "bits": 4, "rotation": True, "scale_bits": 16, "rounding": "nearest"},
    {"kind": "uniform", "bits": 3, "rotation": True, "scale": "channel"},
    {"kind": "uniform", "bits": 3, "levels": 5},
    {"kind": "uniform", "bits": 8, "levels": 2, "scale_bits": 16, "rounding": "nearest"},
    {"kind": "klt"},
    {"kind": "klt", "snr": 0.0},
    {"kind": "klt", "snr": 50.0},
    {"kind": "fedlite"},
    {"kind": "fedlite", "subvectors": 4, "groups": 2, "centroids": 3},
    {"kind": "fedlite", "subvectors": 6, "groups": 6, "centroids": 256},
]
SHAPES = [(), (0,), (3, 0), (0, 5), (1,), (7,), (1, 1, 24), (2, 1, 1), (3, 5, 8), (5, 33), (2, 3, 4, 5)]


settings_of = TypeAdapter(CodecConfig).validate_python


def build(config):
    return settings_of(config).build()


def as_rows(x: torch.Tensor) -> torch.Tensor:
    return x.double().reshape(-1, x.shape[-1] if x.dim() else 1)


def spanned(config) -> tuple[int, ...]:
    """The dimensions of [rows, features] that one grid of a uniform codec spans."""
    return {"token": (1,), "channel": (0,), "tensor": (0, 1)}[config.get("scale", "token")]


def within(config, x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether every error is within what a codec's documentation allows."""
    rows, error, kind = as_rows(x), (as_rows(y) - as_rows(x)).abs(), config["kind"]
    largest = rows.abs().amax()
    rounding = 8 * UNIT[torch.float32] + UNIT[x.dtype]
    if kind in FLOATS:
        stored = FLOATS[kind]
        bound = rows.abs() * (UNIT[stored] + UNIT[x.dtype]) * 1.01 + UNDERFLOW[stored]
    elif kind == "float8":
        relative, absolute = (2.0**-4, 2.0**-18) if config["format"] == "e4m3" else (2.0**-3, 2.0**-32)
        bound = torch.maximum(rows.abs() * relative, largest * absolute) + rows.abs() * rounding + TINY
    elif kind == "fedlite":
        # All subvectors in one group: replaced by their mean, they would err by their scatter around it.
        length = -(-rows.shape[1] // config.get("subvectors", 16))
        points = torch.nn.functional.pad(rows, (0, -rows.shape[1] % length)).view(-1, length)
        scatter = ((points - points.mean(0)) ** 2).sum() ** 0.5
        return bool((error**2).sum() ** 0.5 <= scatter * 1.0001 + (largest * rounding + TINY) * rows.numel() ** 0.5)
    elif kind == "klt":
        varies = ((rows - rows.mean(0)) ** 2).sum()
        steps = len(rows) ** 0.5 * 2.0**-13  # of a number, the most that there are
        luck = 1.3 + 0.6**2 * 12  # of few numbers all may lie as far from a step as they can
        allowed = varies * luck * 10 ** (-config.get("snr", 12.0) / 10) + varies * rows.shape[1] * steps**2
        rest = (largest * (rounding + 2.0**-14) + TINY) * rows.numel() ** 0.5
        return bool((error**2).sum() ** 0.5 <= allowed**0.5 + rest)
    else:
        axes, levels = spanned(config), config.get("levels", 2 ** config["bits"]) - 1
        span, top = rows.amax(axes, True) - rows.amin(axes, True), rows.abs().amax(axes, True)
        if config.get("rotation"):  # no rotated number is larger than its row is long
            top = (rows**2).sum(1, True) ** 0.5
            top = top if axes == (1,) else top.amax()
            span = 2 * top
        if config.get("scale_bits") == 16:
            span = span * (1 + 2.0**-9) + top * 2.0**-9 + largest * 2.0**-19 + 4 * TINY * levels
        bound = span / levels * (0.5 if config.get("rounding") == "nearest" else 1) + top * rounding + TINY
        if config.get("rotation"):  # turned back, errors keep their length only
            error, bound = (error**2).sum(1, True) ** 0.5, bound * rows.shape[1] ** 0.5
    return bool((error <= bound + UNDERFLOW[x.dtype]).all())


def may_refuse(config, x: torch.Tensor) -> bool:
    """Whether the codec's documentation lets it refuse this finite tensor."""
    rows, kind = as_rows(x), config["kind"]
    if kind in FLOATS:
        return not bool(x.to(FLOATS[kind]).to(x.dtype).isfinite().all())
    largest = float(rows.abs().amax())
    if kind == "uniform":
        axes = spanned(config)
        if bool((rows.amax(axes) - rows.amin(axes) > 0.999999 * MOST).any()):
            return True
        if config.get("rotation") and largest > 2.0**114 / rows.shape[1] ** 0.5:
            return True
        if config.get("scale_bits") == 16 and largest > 0.99 * torch.finfo(x.dtype).max:
            return True
    return largest > (0.999999 * MOST if kind == "float8" else MOST)


def round_trip(config, x: torch.Tensor) -> torch.Tensor | None:
    """Encode and decode, and check everything that is promised; None where the sender was rightly told."""
    y = testing.round_trip(settings_of(config), x, KEY)
    if y is None:
        assert may_refuse(config, x)
    elif x.numel() and x.is_floating_point():
        assert within(config, x, y)
    return y


def values(pattern: str, shape, scale: float, seed: int, dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if pattern == "constant":
        x = torch.ones(shape, dtype=torch.float64)
    elif pattern == "offset":
        x = x * 1e-3 + 1
    elif pattern == "outlier" and x.numel():
        x.view(-1)[seed % x.numel()] = 1e4
    elif pattern == "binary":
        x = (x > 0).double()
    finest = torch.finfo(dtype).max
    return (x * scale).clamp(-finest, finest).to(dtype)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(map(str, c.values())))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(
    shape=st.sampled_from(SHAPES),
    pattern=st.sampled_from(["normal", "constant", "offset", "outlier", "binary"]),
    scale=st.sampled_from([0.0, 1e-45, 1e-38, 1e-9, 1.0, 300.0, 6e4, 1e6, 1e30, 1e38, 3e38, 1e300]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=12)
def test_floats_come_back_within_the_stated_bound(config, dtype, shape, pattern, scale, seed):
    round_trip(config, values(pattern, shape, scale, seed, dtype))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(map(str, c.values())))
@given(shape=st.sampled_from(SHAPES), bits=st.integers(0, 63), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=12)
def test_integers_come_back_exactly(config, shape, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2**bits if bits < 63 else 2**63 - 1, shape, generator=generator)
    assert torch.equal(round_trip(config, x.clone()), x)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(map(str, c.values())))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5, 37)])
def test_nan_and_infinity_are_refused_wherever_they_are(config, dtype, bad, shape):
    for place in {0, 1, 200, 554}:
        x = torch.zeros(shape, dtype=dtype)
        if place < x.numel():
            x.view(-1)[place] = bad
            with pytest.raises(CodecError):
                build(config).encode(x, KEY)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(map(str, c.values())))
def test_every_codec_keeps_the_contract(config):
    testing.check_codec(settings_of(config), lambda x, y: not x.numel() or within(config, x, y), KEY)


@pytest.mark.parametrize(
    ("kind", "value", "dtype"),
    [
        ("float16", 1e6, torch.float32), ("float16", -65520.0, torch.float64), ("float32", 1e300, torch.float64),
        ("bfloat16", 65504.0, torch.float16), ("bfloat16", MOST, torch.float32), ("uniform", 1e300, torch.float64),
        ("float8", 1e300, torch.float64), ("fedlite", -1e300, torch.float64),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error_and_never_infinity(kind, value, dtype):
    with pytest.raises(CodecError):
        build({"kind": kind}).encode(torch.tensor([0.0, value], dtype=dtype), KEY)


def test_a_row_that_spans_more_than_float32_is_refused_and_the_largest_span_is_not():
    with pytest.raises(CodecError):
        build("uniform").encode(torch.tensor([[1.0, 2.0], [-MOST, MOST]]), KEY)
    assert round_trip({"kind": "uniform", "bits": 2, "rounding": "nearest"}, torch.tensor([0.0, MOST])) is not None


def test_integers_are_packed_but_for_float32_and_need_no_sign():
    x = torch.arange(100)
    assert len(build("float32").encode(x, KEY).buffer) == 800
    assert len(build("uniform").encode(x, KEY).buffer) == len(build("float16").encode(x, KEY).buffer) == 1 + 88
    assert decode(build("float32").encode(-x, KEY)).tolist() == (-x).tolist()
    with pytest.raises(CodecError):
        build("uniform").encode(-x, KEY)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_stochastic_rounding_is_right_on_average(bits):
    codec, count, step = build({"kind": "uniform", "bits": bits}), 20_000, 1 / (2**bits - 1)
    for value in (0.1, 0.5, 0.77, 0.999):
        x = torch.full((count + 2,), value)
        x[0], x[1] = 0.0, 1.0
        y = decode(codec.encode(x, KEY.at(str(value))))[2:].double()
        share = (value / step) % 1
        deviation = step * (share * (1 - share) / count) ** 0.5
        assert abs(y.mean() - x[2].double()) <= 5 * deviation + 1e-4 * step
        assert len(y.unique()) <= 2


def test_neighbours_are_rounded_independently():
    x = torch.full((40_002,), 0.5)
    x[0], x[1] = 0.0, 1.0
    up = (decode(build({"kind": "uniform", "bits": 2}).encode(x, KEY))[2:] > 0.5).double() - 0.5
    for lag in (1, 2, 3, 4):
        assert abs((up[lag:] * up[:-lag]).mean()) < 5 * 0.25 / 200


def test_a_key_decides_the_rounding():
    x, codec = torch.randn(4, 50), build({"kind": "uniform", "bits": 4})
    assert bytes(codec.encode(x, KEY).buffer) == bytes(codec.encode(x, Key(7, ("test",))).buffer)
    assert bytes(codec.encode(x, KEY).buffer) != bytes(codec.encode(x, KEY.at("else")).buffer)
    nearest = build({"kind": "uniform", "bits": 4, "rounding": "nearest"})
    assert bytes(nearest.encode(x, KEY).buffer) == bytes(nearest.encode(x, KEY.at("else")).buffer)


def test_a_row_of_equal_values_is_exact():
    x = torch.tensor([[0.1], [-3e38], [1e-45], [7.0]]).expand(4, 9)
    for bits in (2, 8):
        assert torch.equal(decode(build({"kind": "uniform", "bits": bits}).encode(x, KEY)), x)


def floats(*numbers: float) -> bytes:
    return torch.tensor(numbers).numpy().tobytes()


def halves(*numbers: float) -> bytes:
    return torch.tensor(numbers, dtype=torch.float16).numpy().tobytes()


def book(subvectors: int, groups: int, centroids: int) -> bytes:
    return struct.pack("<HHH", subvectors, groups, centroids)


def klt(step: float, wider: int, vectors: list, coefficients: list, mean=(0, 0), rows: int = 2) -> bytes:
    """A packet of rows of two numbers each, all of whose directions and coefficients are 1."""
    groups = [mean, *([1] * (2 * n) for _, n in vectors), *([1] * (rows * n) for n in coefficients)]
    head = struct.pack("<fbIBB", step, wider, sum(n for _, n in vectors), len(vectors), len(coefficients))
    sizes = [struct.pack("<BI", *pair) for pair in vectors] + [struct.pack("<Ib", n, 3) for n in coefficients]
    return b"".join([head, *sizes, rans.encode([np.array(group, np.int64) for group in groups])])


@pytest.mark.parametrize(
    "packet",
    [
        Packet("float64", "float32", (1,), bytes(8)),
        Packet("uniform5", "float32", (1,), bytes(9)),
        Packet("", "float32", (0,), b""),
        Packet("float32", "int64", (1,), bytes(4)),
        Packet("int", "float32", (1,), b"\x01\x00"),
        Packet("int64", "bool", (1,), bytes(8)),
        Packet("float32", "float32", (2,), bytes(7)),
        Packet("float16", "float32", (2,), bytes(5)),
        Packet("float32", "float32", (2**40,), b""),
        Packet("float32", "float32", (0, 2**62, 2**62), b""),
        Packet("float32", "float32", (-1, -1), bytes(4)),
        Packet("float32", "float32", (2,), floats(1, float("nan"))),
        Packet("float32", "float32", (2,), floats(float("inf"), 1)),
        Packet("float32", "float16", (2,), floats(1, 1e6)),
        Packet("uniform8", "float32", (1,), b"\x00" + floats(float("nan"), 0)),
        Packet("uniform8", "float32", (1,), b"\x00" + floats(0, float("inf"))),
        Packet("uniform8", "float32", (1,), b"\x00" + floats(0, float("nan"))),
        Packet("uniform8", "float32", (1,), b"\x00" + floats(0, -1)),
        Packet("uniform8", "float32", (1,), b"\xff" + floats(0, 3e38)),
        Packet("uniform8", "float16", (1,), b"\xff" + floats(0, 1e3)),
        Packet("uniform8", "float32", (2, 1), bytes(10)),
        Packet("uniform8-half", "float32", (1,), b"\x00" + halves(0, 1) + floats(float("inf"))),
        Packet("uniform8-half", "float32", (1,), b"\x00" + halves(0, 1) + floats(-1)),
        Packet("uniform8-half", "float32", (1,), b"\x00" + halves(float("nan"), 1) + floats(1)),
        Packet("uniform8-half", "float32", (1,), b"\x00" + halves(0, -1) + floats(1)),
        Packet("uniform8-half", "float16", (1,), b"\x00" + halves(0, 1) + floats(300)),
        Packet("uniform8-rotated", "float32", (1,), b"\x00" + floats(3e38, 0) + bytes(4)),
        Packet("uniform8-rotated", "float32", (1,), b"\x00" + floats(float("nan"), 0) + bytes(4)),
        Packet("uniform8-rotated", "float32", (1,), b"\x00" + floats(0, float("inf")) + bytes(4)),
        Packet("uniform8-rotated", "float32", (1,), b"\x00" + floats(0, -1) + bytes(4)),
        Packet("uniform8-rotated", "float32", (1,), b"\x00" + floats(0, 1)),
        Packet("uniform8-channel", "float32", (2, 1), bytes(18)),
        Packet("uniform8-token", "float32", (1,), bytes(9)),
        Packet("float8", "float32", (1,), bytes(5)),
        Packet("float8-e4m3", "float32", (1,), b"\x7f" + floats(1)),
        Packet("float8-e5m2", "float32", (1,), b"\x7c" + floats(1)),
        Packet("float8-e5m2", "float32", (1,), b"\x00" + floats(float("inf"))),
        Packet("float8-e5m2", "float32", (1,), b"\x00" + floats(-1)),
        Packet("float8-e5m2", "float32", (1,), b"\x7b" + floats(1e36)),
        Packet("float8-e4m3", "float16", (1,), b"\x7e" + floats(1e3)),
        Packet("float8-e4m3", "float32", (1,), bytes(4)),
        Packet("fedlite", "float32", (4,), bytes(5)),
        Packet("fedlite", "float32", (4,), book(4, 1, 2) + floats(1, float("nan")) + b"\x00"),
        Packet("fedlite", "float16", (4,), book(4, 1, 2) + floats(1, 1e6) + b"\x00"),
        Packet("fedlite", "float32", (4,), book(4, 1, 3) + floats(1, 2, 3) + b"\xff"),
        Packet("fedlite", "float32", (4,), book(4, 0, 2) + floats(1, 2) + b"\x00"),
        Packet("fedlite", "float32", (4,), book(4, 3, 2) + floats(1, 2) + b"\x00"),
        Packet("fedlite", "float32", (4,), book(0, 0, 2) + floats(1, 2) + b"\x00"),
        Packet("fedlite", "float32", (4,), book(5000, 1, 2) + floats(1, 2) + b"\x00"),
        Packet("fedlite", "float32", (4,), book(4, 1, 0) + floats(1, 2) + b"\x00"),
        Packet("fedlite", "float32", (4,), book(4, 1, 300) + floats(1, 2, 3, 4) + b"\x00"),
        Packet("fedlite", "float32", (4,), book(4, 1, 2) + floats(1, 2, 3) + b"\x00"),
        Packet("klt", "float32", (2, 2), bytes(11)),
        Packet("klt", "float32", (2, 2), klt(0.0, 0, [], [])),
        Packet("klt", "float32", (2, 2), klt(-1.0, 0, [], [])),
        Packet("klt", "float32", (2, 2), klt(float("nan"), 0, [], [])),
        Packet("klt", "float32", (2, 2), klt(float("inf"), 0, [], [])),
        Packet("klt", "float32", (2, 2), klt(1.0, 25, [], [])),
        Packet("klt", "float32", (2, 2), klt(1.0, -25, [], [])),
        Packet("klt", "float32", (2, 2), klt(1.0, 0, [], [])[:-1]),
        Packet("klt", "float32", (2, 2), klt(1.0, 0, [], []) + b"\x00"),
        Packet("klt", "float32", (2, 2), klt(1.0, 0, [(4, 3)], [3])),
        Packet("klt", "float32", (2, 2), klt(1.0, 0, [(13, 1)], [1])),
        Packet("klt", "float32", (2, 2), klt(1.0, 0, [(4, 1)], [])),
        Packet("klt", "float32", (2, 2), klt(1.0, 0, [(4, 1)], [2])),
        Packet("klt", "float32", (2, 2), klt(3e38, 24, [], [], [1, 1])),
        Packet("klt", "float16", (2, 2), klt(65504.0, 0, [], [], [3, 3])),
        Packet("int", "int64", (2,), b""),
        Packet("int", "int64", (2,), b"\x00\x00"),
        Packet("int", "int64", (2,), b"\x40" + bytes(16)),
        Packet("int", "int64", (2,), b"\x05\x00"),
        Packet("int", "int64", (2,), b"\x01\x00\x00"),
    ],
)
def test_packets_that_no_encoder_writes_are_refused(packet):
    with pytest.raises(WireError):
        decode(packet)


@given(
    tag=st.sampled_from(sorted(DECODERS)),
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "float64", "int64"]),
    shape=st.lists(st.integers(0, 4), max_size=3),
    data=st.data(),
)
@settings(deadline=None, max_examples=300)
def test_any_bytes_decode_to_something_finite_or_are_refused(tag, dtype, shape, data):
    try:
        size = coded_size(tag, dtype, tuple(shape))
    except WireError:
        return
    length = data.draw(st.sampled_from(size)) if isinstance(size, range) else size
    buffer = data.draw(st.binary(min_size=length, max_size=length))
    if tag == "klt" and len(buffer) > 11:
        most = st.integers(0, 2)
        buffer = struct.pack("<fbIBB", 1.0, *(data.draw(most) for _ in range(4))) + buffer[11:]
    if tag == "fedlite" and len(buffer) > 6:  # numbers at random are hardly ever a header that fits
        buffer = book(*(data.draw(st.integers(0, high)) for high in (5, 3, 5))) + buffer[6:]
    try:
        y = decode(Packet(tag, dtype, tuple(shape), buffer))
    except WireError:
        return
    assert str(y.dtype) == f"torch.{dtype}"
    assert y.shape == tuple(shape)
    assert y.isfinite().all()


def test_a_scenario_names_codecs_by_kind():
    assert TypeAdapter(CodecConfig).validate_python("bfloat16").kind == "bfloat16"
    assert TypeAdapter(CodecConfig).validate_python("fedlite").correction == 5e-5
    for wrong in (
        "float7", {"kind": "uniform", "bits": 5}, {"kind": "uniform", "scale": "row"}, {"kind": "float32", "bits": 4},
        {"kind": "float8", "format": "e8m0"}, {"kind": "uniform", "scale_bits": 8}, {"kind": "fedlite", "centroids": 1},
        {"kind": "fedlite", "subvectors": 6, "groups": 4}, {"kind": "fedlite", "correction": float("inf")},
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            TypeAdapter(CodecConfig).validate_python(wrong)
