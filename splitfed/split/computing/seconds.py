"""What clients and the server compute for an image, and how many seconds that takes them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from splitfed.federation.phases import Phase, spans
from splitfed.link.clock import Exchange, Step
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.split.assembly import assemble
from splitfed.split.client_part import Auxiliary
from splitfed.split.computing.operations import Operations, count_net, count_step
from splitfed.split.computing.rehearsal import Pair
from splitfed.split.cut import Cut

_UNTOLD = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of a mini-batch: of the client `before` each of its frames and `after` the last answer, and of the server
    for each (`serve`)."""

    before: tuple[float, ...]
    serve: tuple[float, ...]
    after: float

    def step(self, pairs: Sequence[Pair]) -> Step:
        """Return it as a step of the clock, with the bytes of its frames and their answers; none stay with the
        client."""
        if not pairs:
            return Step((), math.fsum(self.before) + self.after)
        times = zip(self.before, self.serve, pairs, strict=False)
        return Step(tuple(Exchange(before, up, serve, down) for before, serve, (up, down) in times), self.after)


class Work:
    """Knows the operations of a scenario's model for so many `classes`, cut as each client has it, which are counted
    when they are first asked for, and the speed of each client and of the server."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario, self._key = scenario, Key(scenario.seed)
        self.classes = 2
        federation = scenario.federation
        self.profile = scenario.dealt_profiles()
        self._flops = {name: profile.device.flops for name, profile in federation.profiles.items()}
        self._server = federation.server.device.flops
        self._found: dict[int, tuple[Operations, dict[int, tuple[int, int]]]] = {}  # by the blocks of the front

    def speed(self, client: int) -> float | None:
        """Return a client's operations a second, or None where nothing tells them."""
        return self._flops.get(self.profile[client])

    def told(self, client: int, seconds: float | None) -> float | None:
        """Return what a mini-batch takes a client where it does not follow from its operations: so many `seconds` if
        its availability tells them, or one second where that tells the time but not these."""
        timed = self._scenario.federation.availability.timed
        return _UNTOLD if seconds is None and timed and self.speed(client) is None else seconds

    def training(self, client: int, images: int, phase: Phase, sends: bool, seconds: float | None) -> Spent:
        """Return what a mini-batch of so many images takes that a client `sends`, or keeps; its own part is `seconds`
        where these are told."""
        serve = self._serving(client, images, phase) if sends else ()
        speed = self.speed(client)
        if seconds is not None or speed is None:
            return Spent((seconds or 0.0, *(0.0,) * (len(serve) - 1)), serve, 0.0)
        found, share = self._operations(client), images / speed
        if not self._scenario.federation.splits:
            return Spent((share * found.client,), serve, 0.0)
        sending = found.reducing if sends else 0.0
        if phase.frozen:
            return Spent((share * (found.front_forward + sending),), serve, 0.0)
        if local := phase.local:
            net, forward = self._nets(client)[local.blocks]
            before = found.front_forward + found.making_up + forward + sending
            return Spent((share * before,), serve, share * (found.front + net + sending - before))
        # Features of the front are made up as it makes its own; of their loss the way back is little.
        making = found.front_forward + found.making_up
        first, rest = share * (making + sending), share * (found.front - making)
        return Spent((first, share * found.tail) if len(serve) > 1 else (first,), serve, rest)

    def evaluating(self, client: int, images: int) -> tuple[float, float]:
        """Return what client and server take to see whether so many images are right."""
        speed, found = self.speed(client), self._operations(client) if self.speed(client) or self._server else None
        if found is None:
            return 0.0, 0.0
        whole = found.front_forward + (0.0 if self._scenario.federation.splits else found.back_forward)
        own = images * whole / speed if speed else 0.0
        there = images * found.back_forward / self._server if self._server and self._scenario.federation.splits else 0.0
        return own, there

    def recalling(self, samples: int) -> float:
        """Return what the server takes to learn from so many samples that it keeps."""
        return samples * self._operations(0).server / self._server if self._server else 0.0

    def _serving(self, client: int, images: int, phase: Phase) -> tuple[float, ...]:
        each = 2 if self._scenario.federation.private else 1
        storing = self._scenario.remembers(phase.first)  # nothing is learned yet
        if self._server is None or storing or not self._scenario.federation.splits:
            return (0.0,) * each
        found, share = self._operations(client), images / self._server
        if each == 1:
            return (share * found.server,)
        first = found.restoring + found.back_forward
        return share * first, share * (found.server - first)

    def _counted(self, client: int) -> tuple[Operations, dict[int, tuple[int, int]]]:
        scenario = self._scenario.cut_as(self.profile[client])
        if (cut := scenario.model.cut) not in self._found:
            self._found[cut] = self._count(scenario)
        return self._found[cut]

    def _count(self, scenario: Scenario) -> tuple[Operations, dict[int, tuple[int, int]]]:
        cpu = torch.device("cpu")
        parts = assemble(scenario, self.classes, pretrained=False)
        batch = scenario.training.batch_size
        cut = Cut.of(scenario, parts.front.geometry(batch, self.classes), cpu)
        again = (scenario.training.client.chunk or batch) < batch
        nets = {
            phase.local.blocks: count_net(Auxiliary(parts.back, phase.local.blocks, 1), cut, self._key, again)
            for phase, _ in spans(scenario.phases, scenario.federation.rounds)
            if phase.local
        }
        return count_step(parts, cut, scenario, batch, self._key), nets

    def _operations(self, client: int) -> Operations:
        return self._counted(client)[0]

    def _nets(self, client: int) -> dict[int, tuple[int, int]]:
        return self._counted(client)[1]
