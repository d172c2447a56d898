"""Memory and time of one training step, measured on random images."""

import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitfed.attention import ClsAttention
from splitfed.compression.reducer import View
from splitfed.cut import Cut
from splitfed.models import Back, Front
from splitfed.precision import autocast
from splitfed.scenario import Scenario
from splitfed.seeds import Key

_TIMED_STEPS = 3


@dataclass(frozen=True, slots=True)
class Side:
    """One side's parameters, and its memory in bytes: weights, gradients and optimiser state together (`state`), and
    what a step saves for backward (`activations`)."""

    parameters: int
    state: int
    activations: int


def measure(
    front: Front, back: Back, cut: Cut, scenario: Scenario, batch: int, key: Key
) -> tuple[Side, Side, float, float]:
    """Time a step of `batch` random images at both sides and count what it keeps; return the client's and the server's
    memory, the seconds of a step, and those of a forward pass alone."""
    training, size = scenario.training, scenario.model.image_size
    images = torch.randn(batch, 3, size, size, device=cut.device)
    attention = ClsAttention(front) if cut.reducer.needs_attention else None
    optimisers = training.client.optimiser_for(front), training.server.optimiser_for(back)
    saved = _Saved(front), _Saved(back)
    seconds = []
    for number in range(1 + _TIMED_STEPS):
        # The first step counts, which takes time, and warms up; the others are timed.
        count = saved if number == 0 else (nullcontext(), nullcontext())
        began = time.perf_counter()
        with count[0], autocast(training.precision, cut.device):
            activations = front(images)
        read = attention.read if attention else lambda: images
        plan = cut.reducer.plan(View(activations.detach(), cut.geometry.prefix, read, front.encoder), key)
        with count[0]:
            reduced = plan.reduce(activations)
        smashed = reduced.detach().requires_grad_()
        targets = plan.targets(torch.zeros(batch, dtype=torch.int64, device=cut.device), cut.geometry.classes)
        with count[1], autocast(training.precision, cut.device):
            restored = cut.reducer.restore(smashed, plan.side, plan.meta, back.decoder)
            loss = nn.functional.cross_entropy(back(restored), targets)
        loss.backward()
        assert smashed.grad is not None
        reduced.backward(smashed.grad)
        training.client.step(optimisers[0], front)
        training.server.step(optimisers[1], back)
        float(loss.detach())  # waits for the device
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    with torch.inference_mode(), autocast(training.precision, cut.device):
        float(back(back.decoder(front.encoder(front(images)))).sum())
    forward = time.perf_counter() - began
    client, server = (_side(*side) for side in zip((front, back), optimisers, saved, strict=True))
    return client, server, min(seconds[1:]), forward


def _side(module: nn.Module, optimiser: torch.optim.Optimizer, saved: "_Saved") -> Side:
    numbers = sum(p.numel() for p in module.parameters())
    learned = sum(p.numel() for p in module.parameters() if p.requires_grad)
    moments = sum(t.nbytes for s in optimiser.state.values() for t in s.values() if isinstance(t, Tensor))
    return Side(numbers, 4 * (numbers + learned) + moments, saved.bytes)


class _Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a forward pass keeps for backward, each storage once, parameters not at all."""

    def __init__(self, module: nn.Module) -> None:
        known = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.bytes = 0

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                self.bytes += storage.nbytes()
            return tensor

        super().__init__(keep, lambda tensor: tensor)
