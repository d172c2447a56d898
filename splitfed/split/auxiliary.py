"""What stands in for the back at a client that learns from a loss of its own: an auxiliary net, and how it is fitted to
the server's gradients (FSL-SAGE, arXiv 2505.23182), so that it teaches the front what the back would."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from splitfed.model.parts import Back

AUXILIARY = "aux"  # how the names of an auxiliary net's tensors begin, and no other's
STEPS, LR = 10, 1e-3  # of a fit


class Auxiliary(nn.Module):
    """What stands in for the back at a client: a copy of its first `blocks` blocks, and of its norm and head.

    Its tensors bear the phase that it is of, by its `first` round, as that of another is another net.
    """

    def __init__(self, back: Back, blocks: int, first: int) -> None:
        super().__init__()
        net = deepcopy(back)
        net.blocks = nn.Sequential(OrderedDict(list(net.blocks.named_children())[:blocks]))
        net.decoder, net.exits = nn.Identity(), None
        net.requires_grad_(True)  # whatever an adapter has frozen of the back
        self._name = f"{AUXILIARY}{first}"
        self.add_module(self._name, net.train())

    def forward(self, activations: Tensor) -> Tensor:
        """Turn activations at the cut `[B, n, D]` into logits `[B, classes]`."""
        return self.get_submodule(self._name)(activations)


def first_round(net: Mapping[str, Tensor]) -> int:
    """Return the first round of the phase that an auxiliary net's tensors are of; 0 for none."""
    return next((int(name.split(".")[0].removeprefix(AUXILIARY)) for name in net), 0)


def align(
    net: nn.Module, made: Tensor, labels: Tensor, gradient: Tensor, forward: Callable[[int], AbstractContextManager],
    steps: int = STEPS,
) -> list[float]:  # fmt: skip
    """Fit a net so that the gradient of its mean loss with respect to what a front `made`, `[B, n, d]`, comes near to
    this one; return how far apart they were before each step, as ||a - g||^2 / ||g||^2.

    Tokens of which the gradient tells nothing, as a reducer left them out, count in neither. A forward pass is made
    within `forward(number)`. Each fit has an optimiser of its own, so that none need be kept.
    """
    seen, length = gradient.ne(0).any(-1, keepdim=True), gradient.float().norm()
    if not float(length) > 0:  # of a gradient that rounding has made zero there is no direction
        return []
    given, wanted = made.detach().requires_grad_(), gradient.float() / length
    parameters = list(net.parameters())
    optimiser, apart = torch.optim.Adam(parameters, LR), list[float]()
    for number in range(steps):
        optimiser.zero_grad(set_to_none=True)
        with forward(number), _twice_differentiable(net):
            # As a view: torch can count what a module computes only where its input is no leaf.
            loss = nn.functional.cross_entropy(net(given.view_as(given)), labels)
        (own,) = torch.autograd.grad(loss, given, create_graph=True)
        distance = ((own.float() * seen) / length - wanted).square().sum()
        distance.backward(inputs=parameters)
        optimiser.step()
        apart.append(float(distance.detach()))
    optimiser.zero_grad(set_to_none=True)
    return apart


@contextmanager
def _twice_differentiable(net: nn.Module) -> Iterator[None]:
    """Have the attention of timm's blocks unfused, as the fused one has no second derivative. Torch's own switch is the
    whole process's, and other clients may train beside this one."""
    fused = [module for module in net.modules() if getattr(module, "fused_attn", False)]
    for module in fused:
        module.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]
