"""What every reducer and every codec promises, as checks for the tests of who writes one.

    def test_it_keeps_the_contract():
        check_reducer(MineConfig(kind="mine", ratio=0.5))

A check raises AssertionError with what was broken. What only your method promises, its formula and its bytes, is yours
to test; `cut_for`, `plan_for` and `send` take a batch across for that, and `sent_bytes` counts.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from splitfed.compression.halves import Halves
from splitfed.compression.reducer import IDENTITY, Plan, Reducer, ReducerSettings, View
from splitfed.cut import Batch, Cut
from splitfed.errors import WireError
from splitfed.expect import Geometry
from splitfed.scenario_compression import Compression, Packing
from splitfed.seeds import Key
from splitfed.testing_codecs import check_codec as check_codec
from splitfed.testing_codecs import must
from splitfed.testing_codecs import round_trip as round_trip
from splitfed.wire import Packed

GEOMETRY = Geometry(batch=8, tokens=10, width=6, prefix=1, classes=5)
KEY = Key(0)
PLAIN = {"codec": "float32", "lossless": "none"}


def cut_for(reducer: ReducerSettings | dict[str, Any] | str, geometry: Geometry = GEOMETRY, **packings: Any) -> Cut:
    """Return a cut with this reducer: float32 and nothing lossless, unless `packings` say otherwise."""
    packed = dict.fromkeys(("smashed", "targets", "cut_gradient"), PLAIN) | packings
    sections = {role: Packing.model_validate(packing) for role, packing in packed.items()}
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


def send(cut: Cut, plan: Plan, activations: Tensor, labels: Tensor) -> tuple[Packed, Batch]:
    """Send a batch across; return the frame and what the server makes of it."""
    targets = plan.targets(labels, cut.geometry.classes)
    packed = cut.pack_step(plan, plan.reduce(activations), targets, len(labels), Key(0), 1, 0, 1)
    return packed, arrive(cut, packed)


def arrive(cut: Cut, packed: Packed) -> Batch:
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
    """Check a reducer's settings and what they build against the contract in `splitfed.compression.reducer`.

    Batches of `geometry.batch` random samples, one fewer, and one cross: bounds hold, the same key gives the same
    bytes, the gradient is that of the whole model, and what a hostile peer says is refused or does no harm.
    """
    text = settings.model_dump(mode="json")
    must(type(settings).model_validate(text) == settings, "its settings do not come back from what a scenario holds")
    must((problem := settings.problem(geometry.batch)) is None, f"not for batches of {geometry.batch}: {problem}")
    for samples in sorted({geometry.batch, max(1, geometry.batch - 1), 1}, reverse=True):
        example = _Example(settings, geometry, samples, key)
        _check_crossing(cut_for(settings, geometry), example)
        _check_hostile(example)
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

    def plan(self) -> Plan:
        """Plan for the batch, as always with the same key."""
        return plan_for(
            self.reducer, self.activations, self.key, self.attention, self.geometry.prefix, self.encoder
        )  # fmt: skip


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
