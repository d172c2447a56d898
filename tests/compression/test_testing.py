"""The checks for authors find what is broken: a method that is right, and all the ways to make it wrong."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import pytest
import torch

from splitfed.compression.codecs import decoders
from splitfed.compression.codecs.base import Codec, CodecSettings, Decoder, Packet
from splitfed.compression.codecs.integers import encode_integers
from splitfed.compression.expect import Expect
from splitfed.compression.reducers.base import Plan, Reducer, ReducerSettings, expected_targets, meta_number
from splitfed.errors import CodecError, WireError
from splitfed.testing import check_codec, check_reducer, sent_bytes


@dataclass(kw_only=True)
class RowPlan(Plan):
    reducer: "Rows"

    def reduce(self, activations):
        if "in place" in self.reducer.wrong:
            activations.detach().mul_(2)
        kept = activations.gather(1, self.side["rows"].unsqueeze(2).expand(-1, -1, activations.shape[2]))
        if "no gradient" in self.reducer.wrong:
            return kept.detach()
        if "width" in self.reducer.wrong:
            return kept[..., :-1]
        return kept * torch.rand(()) if "global" in self.reducer.wrong else kept

    def where(self):
        return self.side["rows"]

    def targets(self, labels, classes):
        if "targets" in self.reducer.wrong:
            return torch.nn.functional.one_hot(labels, classes).float() * 0.5
        return labels

    def kept(self, samples, tokens):
        return torch.ones(samples, tokens) * (2 if "kept" in self.reducer.wrong else 1)


class Rows(Reducer):
    """Two tokens of each sample travel, with their places; zeros stand for the others."""

    side_places = True

    def __init__(self, wrong):
        self.wrong = wrong
        self.calls = 0

    def plan(self, view, key):
        if "attention" in self.wrong:
            view.attention()
        samples, tokens, _ = view.activations.shape
        self.calls += 1
        key = key.at(self.calls) if "calls" in self.wrong else key
        rows = torch.rand(samples, tokens, generator=key.generator()).argsort(1)[:, :2]
        rows = rows.int() if "int32" in self.wrong else rows
        return RowPlan(side={"rows": rows}, meta={"tokens": tokens}, reducer=self)

    def check(self, smashed, targets, side, meta, geometry):
        if "counts" not in self.wrong:
            super().check(smashed, targets, side, meta, geometry)
        if "meta" not in self.wrong:
            meta_number(meta, "tokens", geometry.tokens, geometry.tokens)
        if "side" not in self.wrong and (side["rows"].min() < 0 or side["rows"].max() >= geometry.tokens):
            raise WireError("a place that is none")

    def places(self, geometry):
        return geometry.tokens

    def where(self, side):
        return side["rows"] * ("where" not in self.wrong)

    def restore(self, smashed, side, meta, decoder=None):
        whole = smashed.new_zeros(len(smashed), meta["tokens"], smashed.shape[2])
        return whole.scatter(1, side["rows"].unsqueeze(2).expand_as(smashed), smashed)

    def expected(self, geometry):
        count = 3 if "bounds" in self.wrong else 2
        return {
            "smashed": (Expect.floats((1, geometry.batch), count, geometry.width),),
            "side/rows": (Expect.integers((1, geometry.batch), 2),),
            "targets": (Expect.floats((1, geometry.batch), geometry.classes),)
            if "targets" in self.wrong
            else expected_targets(geometry),
        }


class RowsConfig(ReducerSettings):
    kind: Literal["rows"] = "rows"
    single: ClassVar[bool] = True
    wrong: str = ""
    pair: tuple[int, int] | None = None

    def build(self):
        return Rows(self.wrong)


def test_a_reducer_that_is_right_passes_and_its_bytes_are_counted():
    check_reducer(RowsConfig())
    assert sent_bytes(RowsConfig(), 4) == {"smashed": 4 * 4 * 2 * 6, "targets": 8 * 4, "side": 1 + 4 * 2 * 4 // 8}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("in place", "in place"), ("no gradient", "no gradient goes through"), ("width", "not expected"),
        ("global", "global generator"), ("calls", "other bytes"), ("int32", "int32"), ("counts", "twice as many"),
        ("meta", "breaks `restore`"), ("side", "breaks `restore`"), ("bounds", "not expected"),
        ("attention", "needs_attention"), ("targets", "sum to 1"), ("kept", "`kept`"),
        ("where", "others than the plan"),
    ],
)  # fmt: skip
def test_a_reducer_that_is_wrong_is_told_so(wrong, why):
    with pytest.raises((AssertionError, WireError, CodecError), match=why):
        check_reducer(RowsConfig(wrong=wrong))


def test_settings_that_no_scenario_can_carry_are_told():
    with pytest.raises((AssertionError, ValueError), match="pair"):
        check_reducer(RowsConfig(pair=(1, 2)))


def trusting(packet, device):
    values = torch.tensor([]).double()
    if len(packet.buffer):
        values = torch.frombuffer(bytearray(packet.buffer), dtype=torch.float64)
    return values.to(getattr(torch, packet.dtype)).view(packet.shape)


def careful(packet, device):
    values = trusting(packet, device)
    if not values.isfinite().all():
        raise WireError("not finite")
    return values


FLOATS = frozenset({"float32", "float16", "bfloat16", "float64"})
WHOLE = Decoder(FLOATS, lambda shape: 8 * torch.Size(shape).numel(), careful)


class Wide(Codec):
    """Eight bytes a number."""

    def __init__(self, wrong):
        self.wrong = wrong
        self.calls = 0

    def encode(self, tensor, key):
        if tensor.dtype == torch.int64 and "integers" not in self.wrong:
            return encode_integers(tensor)
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in FLOATS and "dtypes" not in self.wrong:
            raise CodecError("no float")
        if not tensor.isfinite().all() and "nan" not in self.wrong:
            raise CodecError("not finite")
        if "refuses" in self.wrong and tensor.numel() > 100:
            raise CodecError("too many")
        if "global" in self.wrong:
            torch.rand(())
        values = tensor.detach().double().contiguous()
        if "strides" in self.wrong and not tensor.is_contiguous():
            values = values + 1
        if "key" in self.wrong:
            values = values + torch.seed() % 97
        shape = tuple(tensor.shape)
        buffer = values.numpy().tobytes()
        buffer = buffer[:-1] if "size" in self.wrong else buffer
        return Packet("wide-gone" if "tag" in self.wrong else "wide", dtype, shape, buffer)


class WideConfig(CodecSettings):
    kind: Literal["wide"] = "wide"
    decoders: ClassVar = {"wide": WHOLE}
    wrong: str = ""

    def build(self):
        return Wide(self.wrong)


@pytest.fixture
def installed(monkeypatch):
    def install(decoder):
        monkeypatch.setattr(decoders, "DECODERS", decoders.DECODERS | {"wide": decoder})

    install(WHOLE)
    return install


def close(x, y):
    return torch.equal(x, y)


def test_a_codec_that_is_right_passes(installed):
    check_codec(WideConfig(), close)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("nan", "refuses its own packet"), ("refuses", "ordinary numbers"), ("global", "global generator"),
        ("strides", "strides"), ("key", "other bytes|global generator"), ("size", "its decoder expects"),
        ("tag", "is it in `decoders`"), ("dtypes", "dtype|not refused|carry"), ("integers", "integers from 0 on"),
    ],
)  # fmt: skip
def test_a_codec_that_is_wrong_is_told_so(wrong, why, installed):
    with pytest.raises((AssertionError, WireError), match=why):
        check_codec(WideConfig(wrong=wrong), close)


@pytest.mark.parametrize(
    ("decoder", "why"),
    [
        (replace(WHOLE, decode=trusting), "finite"),
        (replace(WHOLE, decode=lambda packet, device: careful(packet, device).flatten()), "comes back as"),
        (replace(WHOLE, dtypes=frozenset({"float16"})), "does not carry"),
        (replace(WHOLE, decode=lambda packet, device: careful(packet, device) * 1.5), "too far"),
    ],
    ids=["trusting", "flat", "narrow", "wrong"],
)
def test_a_decoder_that_is_wrong_is_told_so(decoder, why, installed):
    installed(decoder)
    with pytest.raises(AssertionError, match=why):
        check_codec(WideConfig(), close)
