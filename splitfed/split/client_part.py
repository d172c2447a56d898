"""What a client holds of a model: the front, and whatever else is trained at its side.

It goes out at the start of a round and comes back at its end, as one set of tensors under timm's names, and has one
optimiser.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from splitfed.model.exits.heads import EXITS
from splitfed.model.parts import Front, Parts
from splitfed.scenario import Scenario
from splitfed.split.auxiliary import Auxiliary


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
        beside = self.beside.state_dict()
        exits = [name for name in (*self.front.travelling(), *beside) if name.startswith(EXITS)]
        return dict.fromkeys(beside, self._role) | dict.fromkeys(exits, "exit_weights")
