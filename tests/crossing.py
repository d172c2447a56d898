"""A mini-batch across a cut: both halves of a reducer with the wire between them, or without it."""

import torch
from torch import Tensor

from splitfed.compression.reducer import Plan, Reducer, View
from splitfed.cut import Batch, Cut
from splitfed.expect import Geometry
from splitfed.scenario_sections import Compression
from splitfed.seeds import Key
from splitfed.wire import Packed

PLAIN = {"codec": "float32", "lossless": "none"}
LABEL_BYTES = 8


def cut_for(reducer: dict, geometry: Geometry, **packings: dict) -> Cut:
    """Return a cut with this reducer: float32 and nothing lossless, unless `packings` say otherwise."""
    packed = dict.fromkeys(("smashed", "targets", "cut_gradient"), PLAIN) | packings
    return Cut(Compression(reducer=reducer, **packed), geometry, torch.device("cpu"))


def plan_for(reducer: Reducer, activations: Tensor, key: Key, attention: Tensor | None = None, prefix: int = 1) -> Plan:
    """Return the plan for a batch, which sees activations as a client shows them."""
    return reducer.plan(View(activations.detach(), prefix, lambda: attention), key)


def send(cut: Cut, plan: Plan, activations: Tensor, labels: Tensor) -> tuple[Packed, Batch]:
    """Send a batch across; return the frame and what the server makes of it."""
    targets = plan.targets(labels, cut.geometry.classes)
    packed = cut.pack_step(plan, plan.reduce(activations), targets, len(labels), Key(0), 1, 0, 1)
    return packed, arrive(cut, packed)


def arrive(cut: Cut, packed: Packed) -> Batch:
    """Return what the server makes of a frame. Raises WireError where it refuses it."""
    return cut.batch(cut.unpack_up(packed.buffer))


def assert_split_equals_whole(reducer: Reducer, plan: Plan, activations: Tensor, back) -> Tensor:
    """Check in float64 that the gradient at the client, which crosses as that of the smashed tensor, is the one of
    autograd through both halves at once; return the gradient that crosses."""
    whole = activations.detach().clone().requires_grad_()
    loss = back(reducer.restore(plan.reduce(whole), plan.side, plan.meta))
    loss.backward()

    split = activations.detach().clone().requires_grad_()
    smashed = plan.reduce(split)
    arrived = smashed.detach().requires_grad_()
    back(reducer.restore(arrived, plan.side, plan.meta)).backward()
    assert arrived.grad.shape == smashed.shape
    smashed.backward(arrived.grad)
    torch.testing.assert_close(split.grad, whole.grad, rtol=1e-10, atol=1e-12)
    return arrived.grad
