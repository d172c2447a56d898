"""What every codec promises, as a check; `splitfed.testing` offers it."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from splitfed.compression.buffers import dtype_name
from splitfed.compression.codec import CodecSettings, Packet
from splitfed.compression.codecs import coded_size, decode, fits
from splitfed.errors import CodecError, WireError
from splitfed.seeds import Key

KEY = Key(0)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (3, 0), (1,), (7,), (2, 1, 1), (3, 5, 8), (5, 33))


def must(holds: bool, what: str) -> None:
    """Raise AssertionError, whatever Python's switches, unless it holds."""
    if not holds:
        raise AssertionError(what)


def round_trip(settings: CodecSettings, x: Tensor, key: Key = KEY) -> Tensor | None:
    """Encode a tensor, check everything that a packet promises, and return what is decoded; None where the codec
    refuses the tensor with CodecError."""
    before, state = x.detach().clone(), torch.get_rng_state()
    try:
        packet = settings.build().encode(x, key)
    except CodecError:
        return None
    must(torch.equal(torch.get_rng_state(), state), "it draws from torch's global generator: draw from the key's")
    must(bool(((x == before) | (x != x)).all()), "encoding changes the tensor")
    must((packet.dtype, packet.shape) == (dtype_name(x), tuple(x.shape)),
         f"{dtype_name(x)} {list(x.shape)} becomes a packet of {packet.dtype} {list(packet.shape)}")  # fmt: skip
    try:
        size = coded_size(packet.tag, packet.dtype, packet.shape)
    except WireError as error:
        raise AssertionError(
            f"{error}: is it in `decoders`, and is the package installed (pip install -e .)?"
        ) from None
    must(fits(len(packet.buffer), size), f"a packet of {len(packet.buffer)} bytes, where its decoder expects {size}")
    again = settings.build().encode(x, key)
    must(bytes(again.buffer) == bytes(packet.buffer), "the same tensor and key give other bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's, of memory that is not writable
        try:
            y = decode(packet)
        except WireError as error:
            raise AssertionError(f"its decoder refuses its own packet: {error}") from error
    must((y.dtype, y.shape, y.requires_grad) == (x.dtype, x.shape, False),
         f"{dtype_name(x)} {list(x.shape)} comes back as {dtype_name(y)} {list(y.shape)}")  # fmt: skip
    must(bool(y.isfinite().all()), "what comes back is not finite")
    sent, kept = bytes(packet.buffer), y.clone()
    y.view(-1).fill_(1)
    must(bytes(packet.buffer) == sent, "the decoded tensor lives in the packet")
    return kept


def check_codec(
    settings: CodecSettings, within: Callable[[Tensor, Tensor], bool] = lambda x, y: True, key: Key = KEY
) -> None:
    """Check a codec's settings, what they build and its decoders against the contract in `splitfed.compression.codec`;
    its package must be installed. `within(x, y)` tells whether y is close enough to x, both finite floats, to have come
    from it.

    Floats of all dtypes and integers cross; NaN, infinity and other dtypes are refused with CodecError, and bytes that
    are no packet with WireError.
    """
    must(type(settings).model_validate(settings.model_dump(mode="json")) == settings,
         "its settings do not come back from what a scenario holds")  # fmt: skip
    generator = key.at("testing").generator()
    for shape in SHAPES:
        for dtype in DTYPES:
            x = torch.randn(shape, generator=generator).to(dtype)
            for values in (x, torch.zeros_like(x), torch.ones_like(x), x * 1e30, x * 1e-30):
                values = values.nan_to_num(posinf=0.0, neginf=0.0)
                y = round_trip(settings, values, key)
                must(
                    y is not None or bool((values.abs() > 100).any()), f"ordinary numbers of {list(shape)} are refused"
                )
                must(
                    y is None or within(values, y), f"{dtype_name(x)} {list(shape)} comes back too far from what it was"
                )
            _check_packets(settings, x, key)
        numbers = torch.randint(1000, shape, generator=generator)
        back = round_trip(settings, numbers, key)
        must(back is not None and torch.equal(back, numbers), "integers from 0 on come back as others, or not at all")
    _check_refusals(settings, key)
    x = torch.randn(6, 7, 8, generator=generator)
    for view in (x.transpose(0, 2), x[..., 1::3], x[1:], x[:1].expand(4, 7, 8), x.clone().requires_grad_()):
        packets = [settings.build().encode(tensor, key) for tensor in (view, view.detach().contiguous())]
        must(bytes(packets[0].buffer) == bytes(packets[1].buffer), "strides or gradients of a tensor show in its bytes")


def _check_refusals(settings: CodecSettings, key: Key) -> None:
    for bad in (float("nan"), float("inf"), float("-inf")):
        for dtype in DTYPES:
            for shape in ((1,), (3, 5, 37)):
                x = torch.zeros(shape, dtype=dtype)
                x.view(-1)[-1] = bad
                must(round_trip(settings, x, key) is None, f"{bad} in {dtype_name(x)} is not refused with CodecError")
    for dtype in (torch.int32, torch.bool, torch.complex64):
        must(round_trip(settings, torch.zeros(2, dtype=dtype), key) is None, f"{dtype} is not refused with CodecError")
    negative = torch.tensor([3, -1])
    back = round_trip(settings, negative, key)
    must(back is None or torch.equal(back, negative), "a negative integer is neither refused nor carried")


def _check_packets(settings: CodecSettings, x: Tensor, key: Key) -> None:
    """Bytes that no encoder writes are refused, or are some finite tensor."""
    packet, what = settings.build().encode(x, key), f"{dtype_name(x)} {list(x.shape)}"
    sent, generator = bytes(packet.buffer), key.at("damage", *x.shape).generator()
    damaged = [sent[:n] for n in {0, 1, len(sent) // 2, max(0, len(sent) - 1)}] + [sent + b"\0", sent * 2]
    damaged += [bytes([fill]) * len(sent) for fill in (0, 127, 255)]
    damaged += [bytes(torch.randint(256, (len(sent),), generator=generator).tolist()) for _ in range(4)]
    for buffer in damaged:
        try:
            y = decode(Packet(packet.tag, packet.dtype, packet.shape, buffer))
        except WireError:
            continue
        except Exception as error:
            raise AssertionError(f"{what}: {len(buffer)} bytes that are no packet raise {error!r}") from error
        must(y.shape == x.shape and bool(y.isfinite().all()),
             f"{what}: {len(buffer)} bytes that are no packet become {list(y.shape)}, or are not finite")  # fmt: skip
