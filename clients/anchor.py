"""FedProx's proximal term (arXiv 1812.06127, section 3.2): keeps a client's front near the one that it was given."""

import torch
from torch import nn


class Anchor:
    """Remembers the weights w0 of a module as they are now; `pull` adds the gradient of mu/2 ||w - w0||^2 to each
    parameter that has one. With mu 0 it keeps nothing and does nothing."""

    def __init__(self, module: nn.Module, mu: float) -> None:
        self._mu = mu
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad] if mu else []
        self._held = [(parameter, parameter.detach().clone()) for parameter in trained]

    @torch.no_grad()
    def pull(self) -> None:
        """Add mu (w - w0) to the gradients."""
        for parameter, start in self._held:
            if parameter.grad is not None:  # else it is still where it was
                parameter.grad.add_(parameter - start, alpha=self._mu)
