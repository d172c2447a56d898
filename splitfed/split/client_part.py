"""What a client holds of a model: the front, and whatever else is trained at its side.

It goes out at the start of a round and comes back at its end, as one set of tensors under timm's names, and has one
optimiser.
"""

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy

from torch import Tensor, nn

from splitfed.model.parts import Back, Front, Parts
from splitfed.scenario import Scenario

AUXILIARY = "aux"  # how the names of an auxiliary net's tensors begin, and no other's


class Auxiliary(nn.Module):
    """What stands in for the back at a client: a copy of its first `blocks` blocks, and of its norm and head.

    Its tensors bear the phase that it is of, by its `first` round, as that of another is another net.
    """

    def __init__(self, back: Back, blocks: int, first: int) -> None:
        super().__init__()
        net = deepcopy(back)
        net.blocks = nn.Sequential(OrderedDict(list(net.blocks.named_children())[:blocks]))
        net.decoder = nn.Identity()
        self._name = f"{AUXILIARY}{first}"
        self.add_module(self._name, net.train())

    def forward(self, activations: Tensor) -> Tensor:
        """Turn activations at the cut `[B, n, D]` into logits `[B, classes]`."""
        return self.get_submodule(self._name)(activations)


def first_round(net: Mapping[str, Tensor]) -> int:
    """Return the first round of the phase that an auxiliary net's tensors are of; 0 for none."""
    return next((int(name.split(".")[0].removeprefix(AUXILIARY)) for name in net), 0)


class ClientPart(nn.Module):
    """A front and, where there is one, another part `beside` it, whose weights travel under a `role` of their own."""

    def __init__(self, front: Front, beside: nn.Module | None = None, role: str = "") -> None:
        super().__init__()
        self.front, self.beside, self._role = front, nn.Identity() if beside is None else beside, role

    @classmethod
    def of(cls, scenario: Scenario, parts: Parts) -> "ClientPart":
        """Return what a client holds of a scenario's model: with `fl` all of it, with private labels the tail too."""
        if not scenario.federation.splits:
            return cls(parts.front, parts.back, "back_weights")
        if scenario.federation.private:
            return cls(parts.front, parts.tail, "tail_weights")
        return cls(parts.front)

    def with_auxiliary(self, net: Auxiliary) -> "ClientPart":
        """Return this front with a net beside it that teaches it. Labels are shared: it has nothing beside it yet."""
        return ClientPart(self.front, net, "aux_weights")

    def travelling(self) -> dict[str, Tensor]:
        """Return the tensors that go out and come back in each round: all but an encoder that is frozen or a client's
        own, and what an adapter has frozen."""
        return {**self.front.travelling(), **self.beside.state_dict()}

    def load_travelling(self, weights: Mapping[str, Tensor]) -> None:
        """Take over, by copy, what came; what does not travel stays as it is."""
        others = self.beside.state_dict()
        self.beside.load_state_dict({name: weights[name] for name in others})
        self.front.load_travelling({name: tensor for name, tensor in weights.items() if name not in others})

    def frozen(self) -> dict[str, Tensor]:
        """Return the tensors that every client is sent once, as they are never trained; nothing without an adapter."""
        return self.front.frozen()

    def load_frozen(self, weights: Mapping[str, Tensor]) -> None:
        """Take over, by copy, what is never trained."""
        self.front.load_travelling(dict(weights))

    def roles(self) -> dict[str, str]:
        """Return the role in the ledger of each travelling tensor that is not the front's."""
        return dict.fromkeys(self.beside.state_dict(), self._role)
