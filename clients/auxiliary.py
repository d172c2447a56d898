"""Fits an auxiliary net to the server's gradients (FSL-SAGE, arXiv 2505.23182), so that what it teaches the front comes
near to what the back would teach it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

STEPS, LR = 10, 1e-3


def align(
    net: nn.Module, made: Tensor, labels: Tensor, gradient: Tensor, forward: Callable[[int], AbstractContextManager]
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
    for number in range(STEPS):
        optimiser.zero_grad(set_to_none=True)
        with forward(number), _twice_differentiable(net):
            loss = nn.functional.cross_entropy(net(given), labels)
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
