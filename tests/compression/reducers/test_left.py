"""What is left of tokens: what a server refuses of it, and what it is ready for."""

import pytest
import torch

from splitfed.compression.expect import Geometry
from splitfed.compression.reducers.base import View
from splitfed.compression.reducers.none import NoReduction
from splitfed.compression.reducers.tokens.discard_tokens import DiscardTokens
from splitfed.compression.reducers.tokens.left import LeftTokens
from splitfed.compression.reducers.values.topk import TopK
from splitfed.errors import WireError
from splitfed.seeds import Key

GEOMETRY = Geometry(batch=3, tokens=17, width=4, prefix=1, classes=5)
POSITIONS = torch.tensor([[0, 2, 3, 7, 9, 11, 16], [0, 1, 2, 3, 4, 5, 6]])
METHODS = [NoReduction(), DiscardTokens(0.5), TopK(0.25)]


def sent(method: LeftTokens):
    """A mini-batch of two samples of which 7 tokens were left, as it crosses."""
    activations = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    seen = torch.rand(2, 7, generator=torch.Generator().manual_seed(1))
    plan = method.plan(View(activations, 1, lambda: seen, positions=POSITIONS), Key(0))
    return plan.reduce(activations), plan.targets(torch.zeros(2, dtype=torch.int64), 5), plan.side, plan.meta, seen


@pytest.mark.parametrize("inner", METHODS, ids=lambda one: type(one).__name__)
def test_what_is_sent_is_within_bounds_and_passes(inner) -> None:
    method = LeftTokens(inner, 17, 4, 12)
    smashed, targets, side, meta, _ = sent(method)
    method.check(smashed, targets, side, meta, GEOMETRY)
    bounds = method.expected(GEOMETRY)
    for name, tensor in {"smashed": smashed, "targets": targets, **{f"side/{n}": t for n, t in side.items()}}.items():
        assert any(one.allows(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for one in bounds[name])
    assert method.restore(smashed, side, meta).shape[-1] == 4


def test_positions_are_those_of_the_tokens_that_travel() -> None:
    *_, side, _, seen = sent(LeftTokens(DiscardTokens(0.5), 17, 4, 12))
    for sample, own in enumerate(side["positions"].tolist()):
        best = seen[sample, 1:].argsort(descending=True)[:2] + 1
        assert own == sorted([0, *POSITIONS[sample, best].tolist()])


@pytest.mark.parametrize("left", [4, 8, 18, "7", None])
@pytest.mark.parametrize("inner", METHODS, ids=lambda one: type(one).__name__)
def test_another_number_of_tokens_is_refused(inner, left) -> None:
    method = LeftTokens(inner, 17, 4, 12)
    smashed, targets, side, meta, _ = sent(method)
    with pytest.raises(WireError):
        method.check(smashed, targets, side, {**meta, "left": left}, GEOMETRY)


@pytest.mark.parametrize(
    "change", [lambda p: p[:1], lambda p: p.flip(1), lambda p: p + 1, lambda p: p - 1, lambda p: p.repeat(1, 3)]
)
def test_positions_that_no_tokens_can_have_are_refused(change) -> None:
    method = LeftTokens(NoReduction(), 17, 4, 12)
    smashed, targets, side, meta, _ = sent(method)
    with pytest.raises(WireError):
        method.check(smashed, targets, {**side, "positions": change(side["positions"])}, meta, GEOMETRY)
