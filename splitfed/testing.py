"""What every reducer and every codec promises, as checks for the tests of who writes one.

    def test_it_keeps_the_contract():
        check_reducer(MineConfig(kind="mine", ratio=0.5))

A check raises AssertionError with what was broken. What only your method promises, its formula and its bytes, is yours
to test; `cut_for`, `plan_for` and `send` take a batch across for that, and `sent_bytes` counts.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from splitfed.compression.codecs.base import CodecSettings, Packet
from splitfed.compression.codecs.buffers import dtype_name
from splitfed.compression.codecs.decoders import coded_size, decode, fits
from splitfed.compression.expect import Geometry
from splitfed.compression.reducers.base import Plan, Reducer, ReducerSettings, View
from splitfed.compression.reducers.trained.layers import IDENTITY, Halves
from splitfed.errors import CodecError, WireError
from splitfed.scenario.compression import Compression
from splitfed.seeds import Key
from splitfed.split.computing.rehearsal import PLACE
from splitfed.split.copies import Visit
from splitfed.split.cut import Arrived, Cut
from splitfed.wire.frame import Packed

GEOMETRY = Geometry(batch=8, tokens=10, width=6, prefix=1, classes=5)
KEY = Key(0)
PLAIN = {"codec": "float32", "lossless": "none"}


def cut_for(reducer: ReducerSettings | dict[str, Any] | str, geometry: Geometry = GEOMETRY, **packings: Any) -> Cut:
    """Return a cut with this reducer: float32 and nothing lossless, unless `packings` say otherwise."""
    packed = dict.fromkeys(("smashed", "targets", "cut_gradient"), PLAIN) | packings
    made = Compression.model_validate(packed)
    sections = {role: getattr(made, role) for role in packed}
    if not isinstance(reducer, ReducerSettings):
        reducer = Compression.model_validate({"reducer": reducer}).reducer
    # Not validated: the package of the reducer may not be installed yet.
    return Cut(Compression().model_copy(update={"reducer": reducer, **sections}), geometry, torch.device("cpu"))


def plan_for(
    reducer: Reducer, activations: Tensor, key: Key, attention: Tensor | None = None, prefix: int = 1,
    encoder: nn.Module = IDENTITY,
) -> Plan:  # fmt: skip
    """Return the plan for activations `[B, n, d]`, which it sees as a client shows them; `attention` is `[B, n]`."""

    def read() -> Tensor:
        must(reducer.needs_attention and attention is not None, "it looks at attention: set needs_attention = True")
        assert attention is not None
        return attention

    return reducer.plan(View(activations.detach(), prefix, read, encoder), key)


def send(cut: Cut, plan: Plan, activations: Tensor, labels: Tensor) -> tuple[Packed, Arrived]:
    """Send a batch across; return the frame and what the server makes of it."""
    targets = plan.targets(labels, cut.geometry.classes)
    packed = cut.pack_step(plan, plan.reduce(activations), targets, len(labels), Key(0), PLACE)
    return packed, arrive(cut, packed)


def arrive(cut: Cut, packed: Packed) -> Arrived:
    """Return what the server makes of a frame. Raises WireError where it refuses it."""
    return cut.batch(cut.unpack_up(packed.buffer))


def sent_bytes(
    settings: ReducerSettings, samples: int | None = None, geometry: Geometry = GEOMETRY, key: Key = KEY
) -> dict[str, int]:
    """Return the bytes by role that a batch of random images (a full one) sends up, in float32 and with no lossless
    stage: `smashed`, `targets`, `side`."""
    cut, example = cut_for(settings, geometry), _Example(settings, geometry, samples or geometry.batch, key)
    packed, _ = send(cut, example.plan(), example.activations, example.labels)
    return {role: sizes.sent for role, sizes in packed.sizes.items()}


def assert_split_equals_whole(
    reducer: Reducer, plan: Plan, activations: Tensor, back: Callable[[Tensor], Tensor], decoder: nn.Module = IDENTITY
) -> Tensor:
    """Check in float64 that the gradient at the client, which crosses as that of the smashed tensor, is the one of
    autograd through both halves at once; return the gradient that crosses."""
    whole = activations.detach().clone().requires_grad_()
    must(plan.reduce(whole).requires_grad, "no gradient goes through `reduce`")
    back(reducer.restore(plan.reduce(whole), plan.side, plan.meta, decoder)).backward()

    split = activations.detach().clone().requires_grad_()
    smashed = plan.reduce(split)
    arrived = smashed.detach().requires_grad_()
    back(reducer.restore(arrived, plan.side, plan.meta, decoder)).backward()
    must(arrived.grad is not None and arrived.grad.shape == smashed.shape, "smashed gets no gradient from the back")
    smashed.backward(arrived.grad)
    torch.testing.assert_close(split.grad, whole.grad, rtol=1e-10, atol=1e-12)
    assert arrived.grad is not None
    return arrived.grad


def check_reducer(settings: ReducerSettings, geometry: Geometry = GEOMETRY, key: Key = KEY) -> None:
    """Check a reducer's settings and what they build against the contract in `splitfed.compression.reducers.base`.

    Batches of `geometry.batch` random samples, one fewer, and one cross: bounds hold, the same key gives the same
    bytes, the gradient is that of the whole model, and what a hostile peer says is refused or does no harm. Gates close
    some of the tokens before, and learn by the gradient that comes back.
    """
    text = settings.model_dump(mode="json")
    must(type(settings).model_validate(text) == settings, "its settings do not come back from what a scenario holds")
    must((problem := settings.problem(geometry.batch)) is None, f"not for batches of {geometry.batch}: {problem}")
    made = settings.build()
    must(settings.ragged == made.ragged, "its settings and what they build differ in `ragged`")
    must(
        not made.ragged or not (made.separable or settings.single or made.places(geometry)),
        "rows of a `ragged` reducer are no samples: it can be neither `separable` nor `single`, nor have `places`",
    )
    _check_gates(settings, geometry, key)
    for samples in sorted({geometry.batch, max(1, geometry.batch - 1), 1}, reverse=True):
        example = _Example(settings, geometry, samples, key)
        _check_crossing(cut_for(settings, geometry), example)
        _check_hostile(example)
        if settings.single and not settings.noisy:
            _check_copies(settings, example)
        example = _Example(settings, geometry, samples, key, torch.float64)
        assert_split_equals_whole(example.reducer, example.plan(), example.activations, _cubed, example.decoder)


def _cubed(x: Tensor) -> Tensor:
    return (x**3).sum()  # its gradient depends on x, so a wrong value shows


class _Example:
    """A batch of random activations, attention and labels, with the reducer and its own layers, if it has any."""

    def __init__(
        self, settings: ReducerSettings, geometry: Geometry, samples: int, key: Key, dtype: torch.dtype = torch.float32
    ) -> None:
        self.reducer, self.geometry, self.key = settings.build(), geometry, key
        generator = key.at("testing", samples).generator()
        shape = (samples, geometry.tokens, geometry.width)
        self.activations = torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
        self.attention = torch.randn(shape[:2], generator=generator).softmax(1)
        self.labels = torch.randint(geometry.classes, (samples,), generator=generator)
        halves = self.reducer.halves(geometry, key) or Halves(IDENTITY, IDENTITY)
        self.encoder, self.decoder = halves.encoder.to(dtype), halves.decoder.to(dtype)
        if halves.gates is not None:
            with torch.no_grad():
                made = halves.gates.to(dtype)(self.activations, _blocks(geometry), self.reducer.budget(key))
            self.activations = made.requires_grad_()

    def plan(self) -> Plan:
        """Plan for the batch, as always with the same key."""
        return plan_for(
            self.reducer, self.activations, self.key, self.attention, self.geometry.prefix, self.encoder
        )  # fmt: skip


class _Mean(nn.Module):
    """Stands for a block: each token sees the mean of those that it may attend to."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        seen = torch.ones_like(x[..., :1]) if attn_mask is None else attn_mask[:, 0, 0, :, None].to(x.dtype)
        return x + (x * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)


def _blocks(geometry: Geometry) -> list[nn.Module]:
    return [_Mean() for _ in range(geometry.blocks)]


def _check_gates(settings: ReducerSettings, geometry: Geometry, key: Key) -> None:
    """Gates close whole tokens, never prefix tokens, and in evaluation each sample's by itself; what they learn by is
    the gradient of what they leave open."""
    reducer, halves = settings.build(), settings.build().halves(geometry, key)
    if halves is None or halves.gates is None:
        return
    gates, state, prefix = halves.gates, torch.get_rng_state(), geometry.prefix
    shape = (geometry.batch, geometry.tokens, geometry.width)
    tokens = torch.randn(shape, generator=key.at("testing", "gates").generator())
    made = gates(tokens, _blocks(geometry), reducer.budget(key))
    must(made.shape == tokens.shape and bool(made.isfinite().all()), f"gates make {tuple(made.shape)} of {shape}")
    must(bool(made[:, :prefix].ne(0).any(-1).all()), "gates close prefix tokens")
    (made**3).sum().backward()
    learning = [one.grad for one in gates.parameters() if one.requires_grad]
    must(any(grad is not None and bool(grad.ne(0).any()) for grad in learning), "no gradient comes to the gates")
    gates.eval()
    with torch.no_grad():
        for budget in (None, 0.3, torch.linspace(0.2, 1, geometry.batch)):
            whole = gates(tokens, _blocks(geometry), budget)
            alone = gates(tokens[-1:], _blocks(geometry), budget[-1:] if isinstance(budget, Tensor) else budget)
            must(torch.allclose(whole[-1:], alone, rtol=1e-4, atol=1e-6), "in evaluation a sample sees those beside it")
    must(torch.equal(torch.get_rng_state(), state), "gates draw from torch's global generator: draw from the key's")


def _check_crossing(cut: Cut, example: _Example) -> None:
    """One batch, both ways: nothing is changed or drawn that should not be, bounds hold, shapes fit."""
    before, state = example.activations.detach().clone(), torch.get_rng_state()
    plan = example.plan()
    for name, tensor in plan.side.items():
        must(tensor.dtype == torch.int64, f"side {name!r} is {tensor.dtype}, not int64")
    packed, batch = send(cut, plan, example.activations, example.labels)
    must(torch.equal(torch.get_rng_state(), state), "it draws from torch's global generator: draw from the key's")
    must(torch.equal(example.activations, before), "it changes the activations in place")
    must(send(cut, example.plan(), example.activations, example.labels)[0].buffer == packed.buffer,
         "the same batch and key give other bytes")  # fmt: skip
    targets, classes = plan.targets(example.labels, example.geometry.classes), example.geometry.classes
    if targets.is_floating_point():
        must(targets.shape[1:] == (classes,) and bool(((targets.sum(1) - 1).abs() < 1e-5).all()),
             "soft targets are rows of one share for each class, which sum to 1")  # fmt: skip
    restored = example.reducer.restore(batch.smashed, batch.side, batch.frame.meta, example.decoder)
    _check_restored(example, restored, len(batch.targets))
    again = example.reducer.restore(plan.reduce(example.activations), plan.side, plan.meta, example.decoder)
    must(torch.equal(restored, again), "`restore` makes something else of what has crossed")
    down = cut.pack_gradient(batch.frame, torch.ones_like(batch.smashed), 1.0, example.key)
    cut.unpack_gradient(down.buffer, plan.reduce(example.activations))
    shape = example.activations.shape[:2]
    kept, groups = plan.kept(*shape), plan.groups(shape[0])
    must(kept.shape == shape and bool(((kept >= 0) & (kept <= 1)).all()), "`kept` is no share for each token")
    must(groups.shape == shape[:1] and groups.dtype == torch.int64, "`groups` is no number for each sample")


def _check_copies(settings: ReducerSettings, example: _Example) -> None:
    """Two visits of one batch, of which both ends keep copies: the same ones, of what was smashed, in its places."""
    kept = {"smashed": PLAIN | {"delta": True}, "cut_gradient": PLAIN | {"delta": True}}
    cut = cut_for(settings, example.geometry, **kept)
    (here, there), plan = (cut.copies(), cut.copies()), example.plan()
    assert here
    smashed, targets = plan.reduce(example.activations), plan.targets(example.labels, example.geometry.classes)
    must(len(smashed) == len(example.labels), "it is `single`, and yet makes another number of samples")
    for _ in range(2):
        visit = Visit(torch.arange(len(smashed)), here)
        packed = cut.pack_step(plan, smashed, targets, len(smashed), Key(0), PLACE, visit)
        batch = cut.batch(cut.unpack_up(packed.buffer), there)
        must(torch.allclose(batch.smashed, smashed.float(), rtol=1e-2, atol=1e-2),
             "a copy is not of what was smashed: `where` names places twice, or others than the plan")  # fmt: skip
        down = cut.pack_gradient(batch.frame, torch.ones_like(batch.smashed), 1.0, example.key, batch.visit)
        cut.unpack_gradient(down.buffer, smashed, visit)


def _check_restored(example: _Example, restored: Tensor, targets: int) -> None:
    tokens, width = example.geometry.tokens, example.geometry.width
    must(restored.dim() == 3 and len(restored) == targets and restored.shape[1] <= tokens
         and restored.shape[2] == width and bool(restored.isfinite().all()),
         f"{targets} targets are restored as {tuple(restored.shape)}, where [{targets}, at most {tokens}, {width}] and "
         "finite numbers are wanted")  # fmt: skip


def _check_hostile(example: _Example) -> None:
    """Whatever a peer says within the bounds, `check` refuses it or `restore` can live with it."""
    plan, reducer = example.plan(), example.reducer
    smashed = plan.reduce(example.activations).detach()
    targets = plan.targets(example.labels, example.geometry.classes)
    try:
        reducer.check(smashed, torch.cat([targets, targets]), plan.side, plan.meta, example.geometry)
        must(False, "twice as many targets as samples are not refused")
    except WireError:
        pass
    for side, meta in _lies(plan):
        try:
            reducer.check(smashed, targets, side, meta, example.geometry)
        except WireError:
            continue
        try:
            restored = reducer.restore(smashed, side, meta, example.decoder)
        except Exception as error:
            told = {name: tensor.flatten()[:4].tolist() for name, tensor in side.items()}
            raise AssertionError(
                f"`check` passes what breaks `restore` ({type(error).__name__}: {error}): side {told}, meta {meta}"
            ) from error
        _check_restored(example, restored, len(targets))


def _lies(plan: Plan) -> Iterator[tuple[Mapping[str, Tensor], dict[str, Any]]]:
    """Yield side tensors and meta that differ from a plan's in one thing."""
    numbers = (-(2**63), -1, 0, 1, 2**31, 2**63 - 1)
    for (name, tensor), number, everywhere in product(plan.side.items(), numbers, (True, False)):
        lie = torch.full_like(tensor, number) if everywhere else tensor.clone()
        lie.view(-1)[-1:] = number
        yield {**plan.side, name: lie}, dict(plan.meta)
    for name in plan.meta:
        yield plan.side, {key: value for key, value in plan.meta.items() if key != name}
        for value in (*numbers, 0.5, 1e300, True, "", "text"):
            yield plan.side, {**plan.meta, name: value}


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
    """Check a codec's settings, what they build and its decoders against the contract in
    `splitfed.compression.codecs.base`;
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
