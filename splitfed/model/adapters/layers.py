"""What bottlenecks and Hydra add to a layer: small branches beside it or behind it, in parts that take turns.

It hangs on the layer itself, which keeps its name and its numbers: what timm makes of the model is found in it as ever.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from splitfed.seeds import Key

ADDED = "added"
BESIDE, BEHIND = "parallel", "sequential"


class Branch(nn.Module):
    """Two small matrices, `[width, taken]` and `[width, given]`; `curved` has a GELU between them, and biases. It reads
    what goes into its layer, or what comes out of it. The second matrix is zero at first."""

    def __init__(self, taken: int, width: int, given: int, scale: float, key: Key, *, curved: bool) -> None:
        super().__init__()
        bound = taken**-0.5  # that of nn.Linear
        drawn = torch.empty(width, taken).uniform_(-bound, bound, generator=key.generator())
        # Both have long rows: a codec may keep a scale for each.
        self.down, self.up = nn.Parameter(drawn), nn.Parameter(torch.zeros(width, given))
        self.down_bias = nn.Parameter(torch.zeros(width)) if curved else None
        self.up_bias = nn.Parameter(torch.zeros(given)) if curved else None
        self.scale, self.curved, self.rests = scale, curved, False

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what it adds, `[..., taken]` to `[..., given]`; one that `rests` learns nothing of it."""
        down, down_bias, up, up_bias = (
            one.detach() if self.rests and one is not None else one
            for one in (self.down, self.down_bias, self.up, self.up_bias)
        )
        assert down is not None
        assert up is not None
        hidden = linear(tokens, down, down_bias)
        return self.scale * linear(gelu(hidden) if self.curved else hidden, up.T, up_bias)


class Added(nn.ModuleList):
    """What is added to a layer: the sum of its parts, each of branches by whether they are beside the layer or behind
    it."""

    def forward(self, taken: Tensor, made: Tensor) -> Tensor:
        """Return what a layer made of what it has taken, and what the parts add to that."""
        whole = made
        for part in self:
            for where, branch in part.items():  # type: ignore[operator]
                whole = whole + branch(made if where == BEHIND else taken)
        return whole

    def turn_to(self, turn: int | None) -> None:
        """Let all parts rest but that whose turn it is, counted from 0; none where that is None."""
        for number, part in enumerate(self):
            for branch in part.children():
                branch.rests = turn is not None and number != turn  # type: ignore[assignment]


def attach(layer: nn.Module, added: Added) -> None:
    """Have a layer give what it gave, and what is added to it."""
    layer.add_module(ADDED, added)
    layer.register_forward_hook(_and_what_is_added)


def _and_what_is_added(layer: nn.Module, taken: tuple[Tensor, ...], made: Tensor) -> Tensor:
    return layer.get_submodule(ADDED)(taken[0], made)


def split_name(name: str) -> tuple[str, int, str] | None:
    """Return of a number that was added its layer, its part and its name in that; None for any other."""
    layer, mark, rest = name.partition(f".{ADDED}.")
    number, _, inner = rest.partition(".")
    return (layer, int(number), inner) if mark and number.isdecimal() else None


def by_layer(state: Mapping[str, Tensor]) -> dict[str, list[dict[str, Tensor]]]:
    """Return what was added by layer, and of each part the tensors by their names in it."""
    found = dict[str, dict[int, dict[str, Tensor]]]()
    for name, tensor in state.items():
        if (place := split_name(name)) is not None:
            layer, number, inner = place
            found.setdefault(layer, {}).setdefault(number, {})[inner] = tensor
    return {layer: [parts[number] for number in sorted(parts)] for layer, parts in found.items()}
