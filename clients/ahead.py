"""How a client goes through its mini-batches: one after another, or ahead of the answers, so that it computes and sends
the next ones while a gradient is on its way.

When exactly which answer is taken is fixed, whatever the network does: with `ahead` a, mini-batch t goes out after the
update of mini-batch t - 1 - a. So all engines train the same. Its gradient is taken through the weights with which it
went out, which are kept in a copy, as autograd refuses weights that were updated since; the update is of today's
weights. That is SecretFlow's schedule, w <- w - lr g(w of `ahead` updates before).

Beside the weights, what a forward pass leaves stays with it: dropout's masks and a norm's statistics are in its graph.
Running statistics are nothing that a backward pass reads, and are not copied.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from splitfed.clients.steps import FrozenStep, LocalStep, SparseStep, SplitStep, WholeStep, learns
from splitfed.errors import WireError
from splitfed.seeds import Key
from splitfed.split.client_part import ClientPart
from splitfed.split.copies import Visit
from splitfed.wire.channel import Stream
from splitfed.wire.frame import Packed, Place

Step = WholeStep | SplitStep | LocalStep | FrozenStep | SparseStep
Came = tuple[float, int, int]
"""The loss of a mini-batch, and its bytes up and down."""


class MiniBatch(NamedTuple):
    """What a step takes of a mini-batch, on the client's device."""

    images: Tensor
    labels: Tensor
    key: Key
    place: Place
    visit: Visit | None


def in_turn(step: Step, stream: Stream | None, batches: Iterable[MiniBatch]) -> Iterator[Came]:
    """Take each mini-batch to its end, and yield what came of it: its gradient is there to be applied before the next
    is asked for. Raises as the step does."""
    for batch in batches:
        yield step(stream, *batch)


def ahead(step: SplitStep, by: int, stream: Stream, batches: Iterable[MiniBatch]) -> Iterator[Came]:
    """Send mini-batches before the answers of `by` others are there; yield as `in_turn` does, in the same order, the
    last ones when all are sent. Raises as the step does, and WireError for an answer to another mini-batch."""
    part, waiting = _Versions(step.part), deque[_Waiting]()
    for batch in batches:
        weights = part.now()
        with torch.set_grad_enabled(learns(step.part, batch.place)):
            smashed, _, packed = part.through(weights, step.smashed, *batch)
        stream.send(packed.buffer)
        waiting.append(_Waiting(batch, weights, smashed, packed))
        if len(waiting) > by:
            yield _answered(step, part, stream, waiting.popleft())
    while waiting:
        yield _answered(step, part, stream, waiting.popleft())


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A mini-batch whose gradient is on its way: the weights that it went through, and its graph, from `smashed` on."""

    batch: MiniBatch
    weights: dict[str, Tensor]
    smashed: Tensor
    packed: Packed


def _answered(step: SplitStep, part: "_Versions", stream: Stream, one: _Waiting) -> Came:
    """Wait for the gradient of a mini-batch, and leave it to the client's part as it is now."""
    reply, place, learns = stream.receive(), one.batch.place, one.smashed.requires_grad
    if learns:
        gradient, frame = step.answer(reply, one.smashed, one.packed, one.batch.visit)
    else:
        frame = step.cut.unpack_taken(reply)
    if frame.place != place:
        raise WireError(f"an answer to {frame.place}, where that to {place} is next")
    if learns:
        one.smashed.backward(gradient)
    part.take(one.weights)
    return float(frame.meta["loss"]), one.packed.total, len(reply)


class _Versions(nn.Module):
    """A client's part that computes with other weights than its own."""

    def __init__(self, part: ClientPart) -> None:
        super().__init__()
        self.part = part
        self._trained = {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

    def now(self) -> dict[str, Tensor]:
        """Return a copy of all weights that are trained, as they are."""
        return {name: weight.detach().clone().requires_grad_() for name, weight in self._trained.items()}

    def through(self, weights: dict[str, Tensor], run: Callable, *given: object) -> Any:
        """Return what `run` makes of what is given while the part has these weights."""
        return functional_call(self, weights, (run, *given))

    def forward(self, run: Callable, *given: object) -> Any:
        """Be what `through` calls."""
        return run(*given)

    def take(self, weights: dict[str, Tensor]) -> None:
        """Leave the gradients of a copy to the weights of today."""
        for name, weight in self._trained.items():
            weight.grad = weights[name].grad
