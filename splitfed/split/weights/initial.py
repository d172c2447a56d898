"""What a client holds in each phase of a run, and what of it both ends have without sending any: the weights that the
run begins with, from the model's own file and the scenario's seed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from splitfed.errors import RunError
from splitfed.model.parts import Parts
from splitfed.scenario import Scenario
from splitfed.split.auxiliary import Auxiliary
from splitfed.split.client_part import ClientPart
from splitfed.split.weights.wire import WeightWire


@dataclass(frozen=True, slots=True)
class Initial:
    """What a client part has of its own: the weights that would travel, float32 on the CPU, and their SHA-256."""

    weights: dict[str, Tensor]
    sha256: str

    @classmethod
    def of(cls, part: ClientPart) -> Self:
        """Take a copy of a part's weights as they are now; what is frozen of it counts into the SHA-256 as well."""
        weights = {name: tensor.detach().cpu().clone() for name, tensor in part.travelling().items()}
        return cls(weights, digest({**weights, **part.frozen()}))

    def same(self, weights: Mapping[str, Tensor]) -> bool:
        """Tell whether weights are these, bit for bit."""
        return weights.keys() == self.weights.keys() and all(weights[n].equal(t) for n, t in self.weights.items())

    def check(self, sha256: str) -> None:
        """Raise RunError unless the other end has loaded the same."""
        if sha256 != self.sha256:
            raise RunError(
                "compression.front_weights.initial: the weights that this client has loaded and drawn are others than "
                "the server's: the same file and the same version of torch give the same, or set it to send"
            )


@dataclass(frozen=True, slots=True)
class Held:
    """What a client holds in a round, what carries its weights there and back, and those that the run begins with,
    where clients load them themselves."""

    part: ClientPart
    wire: WeightWire
    initial: Initial | None


class HeldByPhase:
    """What a client holds of a scenario's model in its `parts`: the same in all phases, `plain`, but for those in which
    an auxiliary net teaches the front, or where what an adapter adds takes turns. Both sides have one of their own."""

    def __init__(self, scenario: Scenario, parts: Parts) -> None:
        self._scenario, self._back = scenario, parts.back
        part, loads = ClientPart.of(scenario, parts), scenario.compression.front_weights.initial == "load"
        self.plain = self._held(part, Initial.of(part) if loads else None)
        self._in_turn: dict[int, Held] = {}
        self._taught: tuple[int, Held] | None = None  # the phase, by its first round, and what is held in it
        # An auxiliary net of the first phase belongs to what the run begins with.
        self._first = self.plain.initial
        if loads and scenario.phase(1).local:
            self._first = Initial.of(self.at(1).part)
            self._taught = None

    def at(self, round: int) -> Held:
        """Return what is held in a round. The auxiliary net of a phase is made of the back as it is when that phase is
        first asked for, and dropped when another is."""
        phase = self._scenario.phase(round)
        if (local := phase.local) is None:
            self._taught = None
            return self._whose_turn(round)
        if self._taught is None or self._taught[0] != phase.first:
            part = self.plain.part.with_auxiliary(Auxiliary(self._back, local.blocks, phase.first))
            self._taught = phase.first, self._held(part, self._first if phase.first == 1 else self.plain.initial)
        return self._taught[1]

    def _whose_turn(self, round: int) -> Held:
        part = self.plain.part
        if part.turns == 1:
            return self.plain
        if (turn := part.turn(round)) not in self._in_turn:
            self._in_turn[turn] = Held(part, WeightWire.of(part, self._scenario.compression, round), None)
        return self._in_turn[turn]

    def forget(self) -> None:
        """Drop an auxiliary net, so that the next one is made of the back as it is then."""
        self._taught = None

    def _held(self, part: ClientPart, initial: Initial | None) -> Held:
        return Held(part, WeightWire.of(part, self._scenario.compression), initial)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes, whatever their order and device."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
