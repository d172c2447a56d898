"""What a client holds of a model: the front, and whatever else is trained at its side.

It goes out at the start of a round and comes back at its end, as one set of tensors under timm's names, and has one
optimiser.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from splitfed.model.exits.fraug import GENERATOR, Features, Fraug, Generator
from splitfed.model.exits.heads import EXITS
from splitfed.model.parts import Front, Later, Parts
from splitfed.scenario import Scenario
from splitfed.split.auxiliary import Auxiliary


class ClientPart(nn.Module):
    """A front and, where there is one, another part `beside` it, whose weights travel under a `role` of their own. In
    training the last exit of the front, and the head of what is beside it, see `features`, and `features_beside`."""

    def __init__(self, front: Front, beside: nn.Module | None = None, role: str = "") -> None:
        super().__init__()
        self.front, self.beside, self._role = front, nn.Identity() if beside is None else beside, role
        self.features = self.features_beside = Features()

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
        own, what an adapter has frozen, and norms of a client's own."""
        return {**self.front.travelling(), **self._beside(staying=False)}

    def load_travelling(self, weights: Mapping[str, Tensor]) -> None:
        """Take over, by copy, what came; what does not travel stays as it is."""
        self._load(weights, self._beside(staying=False).keys())

    def frozen(self) -> dict[str, Tensor]:
        """Return the tensors that every client is sent once: those that are never trained, and what norms of its own
        begin with."""
        return {**self.front.frozen(), **self._beside(staying=True)}

    def load_frozen(self, weights: Mapping[str, Tensor]) -> None:
        """Take over, by copy, what came once."""
        self._load(weights, self._beside(staying=True).keys() & weights.keys())

    @contextmanager
    def making_up(self, fraug: Fraug | None) -> Iterator[None]:
        """Have features made up meanwhile for the head that a generator is for; None makes none."""
        if fraug is not None:
            where = "features" if self.front.generator is not None else "features_beside"
            setattr(self, where, fraug)
        try:
            yield
        finally:
            self.features = self.features_beside = Features()

    @property
    def generator(self) -> tuple[Generator, Front | Later] | None:
        """The generator that is here, and the part that has the head that it is for."""
        for part in (self.front, self.beside):
            if isinstance(part, Front | Later) and part.generator is not None:
                return part.generator, part
        return None

    def own(self) -> dict[str, Tensor]:
        """Return the tensors that are each client's own, and stay with it from round to round."""
        front = {name: tensor for name, tensor in self.front.state_dict().items() if name in self.front.stays}
        return {**front, **self._beside(staying=True)}

    def _beside(self, *, staying: bool) -> dict[str, Tensor]:
        stays = self.beside.stays if isinstance(self.beside, Later) else frozenset()
        return {name: tensor for name, tensor in self.beside.state_dict().items() if (name in stays) == staying}

    def _load(self, weights: Mapping[str, Tensor], beside: Collection[str]) -> None:
        self.beside.load_state_dict({**self.beside.state_dict(), **{name: weights[name] for name in beside}})
        self.front.load_travelling({name: tensor for name, tensor in weights.items() if name not in beside})

    def roles(self) -> dict[str, str]:
        """Return the role in the ledger of each travelling tensor that is not the front's."""
        beside = self.beside.state_dict()
        exits = [name for name in (*self.front.travelling(), *beside) if name.startswith(EXITS)]
        made = [name for name in (*self.front.travelling(), *beside) if name.startswith(GENERATOR)]
        own = dict.fromkeys(exits, "exit_weights") | dict.fromkeys(made, "generator_weights")
        return dict.fromkeys(beside, self._role) | own
