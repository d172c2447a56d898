"""What a client holds of a model: the front, and whatever else is trained at its side.

It goes out at the start of a round and comes back at its end, as one set of tensors under timm's names, and has one
optimiser.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from splitfed.model.adapters.layers import Added, split_name
from splitfed.model.exits.fraug import GENERATOR, Features, Fraug, Generator
from splitfed.model.exits.heads import EXITS
from splitfed.model.parts import Front, Part, Parts
from splitfed.scenario import Scenario
from splitfed.split.auxiliary import Auxiliary


class ClientPart(nn.Module):
    """A front and, where there is one, another part `beside` it, whose weights travel under a `role` of their own.
    Where what an adapter adds is divided, so many parts of it take `turns`, one a round. In training the last exit of
    the front, and the head of what is beside it, see `features`, and `features_beside`."""

    def __init__(self, front: Front, beside: nn.Module | None = None, role: str = "", turns: int = 1) -> None:
        super().__init__()
        self.front, self.beside, self._role = front, nn.Identity() if beside is None else beside, role
        self.turns = turns
        self.features = self.features_beside = Features()

    @classmethod
    def of(cls, scenario: Scenario, parts: Parts) -> "ClientPart":
        """Return what a client holds of a scenario's model: with `fl` all of it, with private labels the tail too."""
        turns = scenario.model.adapter.turns
        if not scenario.federation.splits:
            return cls(parts.front, parts.back, "back_weights", turns)
        if scenario.federation.private:
            return cls(parts.front, parts.tail, "tail_weights", turns)
        return cls(parts.front, turns=turns)

    def with_auxiliary(self, net: Auxiliary) -> "ClientPart":
        """Return this front with a net beside it that teaches it. Labels are shared: it has nothing beside it yet."""
        return ClientPart(self.front, net, "aux_weights")

    def travelling(self, round: int | None = None) -> dict[str, Tensor]:
        """Return the tensors that go out and come back in a round, or in some round: all but an encoder that is frozen
        or a client's own, what an adapter has frozen, what it adds whose turn it is not, and norms of a client's own.
        """
        beside = self.beside.travelling() if isinstance(self.beside, Part) else self.beside.state_dict()
        whole = {**self.front.travelling(), **beside}
        if round is None or self.turns == 1:
            return whole
        turn = self.turn(round)
        return {name: tensor for name, tensor in whole.items() if part_of(name) in (None, turn)}

    def blocks(self, watched: bool) -> list[nn.Module]:
        """Return the blocks that are trained here, without the front's last one where that is `watched`."""
        beside = list(self.beside.blocks) if isinstance(self.beside, Part) else []
        return [*list(self.front.blocks)[: -1 if watched else None], *beside]

    def turn(self, round: int) -> int:
        """Return whose turn a round is, of the parts of what an adapter adds, from 0 on."""
        return (round - 1) % self.turns

    def turn_to(self, round: int) -> None:
        """Let learn, of what an adapter adds, that part alone whose turn a round is; all where it is whole."""
        for module in self.modules():
            if isinstance(module, Added):
                module.turn_to(self.turn(round) if self.turns > 1 else None)

    def load_travelling(self, weights: Mapping[str, Tensor]) -> None:
        """Take over, by copy, what came; what did not stays as it is."""
        others = self.beside.state_dict()
        self.beside.load_state_dict({**others, **{name: weights[name] for name in others if name in weights}})
        self.front.load_travelling({name: tensor for name, tensor in weights.items() if name not in others})

    def frozen(self) -> dict[str, Tensor]:
        """Return the tensors that every client is sent once: those that are never trained, and what norms of its own
        begin with."""
        beside = self.beside.frozen() if isinstance(self.beside, Part) else {}
        return {**self.front.frozen(), **beside}

    def load_frozen(self, weights: Mapping[str, Tensor]) -> None:
        """Take over, by copy, what came once."""
        self.load_travelling(weights)

    def own(self) -> dict[str, Tensor]:
        """Return the tensors that are each client's own, and stay with it from round to round."""
        beside = self.beside.own() if isinstance(self.beside, Part) else {}
        return {**self.front.own(), **beside}

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
    def generator(self) -> tuple[Generator, Part] | None:
        """The generator that is here, and the part that has the head that it is for."""
        for part in (self.front, self.beside):
            if isinstance(part, Part) and part.generator is not None:
                return part.generator, part
        return None

    def roles(self) -> dict[str, str]:
        """Return the role in the ledger of each tensor that is not the front's."""
        beside = self.beside.state_dict()
        exits = [name for name in (*self.front.travelling(), *beside) if name.startswith(EXITS)]
        made = [name for name in (*self.front.travelling(), *beside) if name.startswith(GENERATOR)]
        own = dict.fromkeys(exits, "exit_weights") | dict.fromkeys(made, "generator_weights")
        return dict.fromkeys(beside, self._role) | own


def part_of(name: str) -> int | None:
    """Return of which part of what an adapter adds a tensor is, from 0 on; None for any other."""
    place = split_name(name)
    return None if place is None else place[1]
