"""Memory and time of one training step, measured on random images."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from splitfed.compression.expect import Geometry
from splitfed.federation.phases import spans
from splitfed.model.adaptive.alast import Passed, adaptives
from splitfed.model.adaptive.attention import ClsAttention
from splitfed.model.exits.heads import beside, exits_of
from splitfed.model.forward import autocast, in_chunks, join_chunks, keyed_rng
from splitfed.model.parts import Back, Front, Parts, Tail
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.split.auxiliary import Auxiliary, align
from splitfed.split.client_part import ClientPart
from splitfed.split.cut import Cut

_TIMED_STEPS = 3


@dataclass(frozen=True, slots=True)
class Side:
    """One side's parameters, and its memory in bytes: weights, gradients and optimiser state together (`state`), what a
    step saves for backward (`activations`), and what is kept of samples, for differences (`copies`)."""

    parameters: int
    state: int
    activations: int
    copies: int = 0


def measure(parts: Parts, cut: Cut, scenario: Scenario, batch: int, key: Key) -> tuple[Side, Side, float, float]:
    """Time a step of `batch` random images at both sides and count what it keeps; return the client's and the server's
    memory, the seconds of a step, and those of a forward pass alone. The memory is that of a client which computes a
    mini-batch at once; the seconds are the scenario's."""
    training, size = scenario.training, scenario.model.image_size
    images = torch.randn(batch, 3, size, size, generator=key.at("estimate", "images").generator()).to(cut.device)
    part, splits = ClientPart.of(scenario, parts), scenario.federation.splits
    part.turn_to(1)
    sides = (part, parts.back) if splits else (part,)
    settings = (training.client, training.server)[: len(sides)]
    optimisers = [config.optimiser_for(side, training.head_lr) for config, side in zip(settings, sides, strict=True)]
    saved = [_Saved(side) for side in sides]
    last = scenario.federation.rounds  # exits learn by then
    step = _Split(parts, cut, training.precision, key, last) if splits else _Whole(part, cut, training.precision, last)
    seconds = []
    with keyed_rng(key.at("estimate", "dropout"), cut.device):
        for number in range(1 + _TIMED_STEPS):
            # The first step counts, which takes time, and warms up; the others are timed.
            count = saved if number == 0 else [nullcontext() for _ in sides]
            began = time.perf_counter()
            loss = step(images, count, training.client.chunk if number else None)
            for config, optimiser, side in zip(settings, optimisers, sides, strict=True):
                config.step(optimiser, side)
            float(loss.detach())  # waits for the device
            seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        with torch.inference_mode(), autocast(training.precision, cut.device):
            float(parts.whole()(images).sum())
        forward = time.perf_counter() - began
    measured = [_side(*side) for side in zip(sides, optimisers, saved, strict=True)]
    alone = measured[0]
    for phase, _ in spans(scenario.phases, scenario.federation.rounds):
        if ahead := scenario.ahead(phase.first):
            measured[0] = max(measured[0], _waiting(alone, part, ahead + 1), key=_bytes)
        if local := phase.local:
            net = Auxiliary(parts.back, local.blocks, phase.first).to(cut.device)
            taught = _taught(part.with_auxiliary(net), cut, scenario, images, key, fits=local.align_every > 0)
            measured[0] = max(measured[0], taught, key=_bytes)
    if not splits:  # the server has the model to evaluate it, and learns nothing
        numbers = sum(p.numel() for p in part.parameters())
        measured.append(Side(numbers, 4 * numbers, 0))
    return measured[0], measured[1], min(seconds[1:]), forward


def foresee(scenario: Scenario, parts: Parts, images: int) -> Side:
    """Return a client's memory with mini-batches of so few images, computed at once, from forward passes alone, which
    take little and change no weight; what its reducer saves is left out."""
    client, part, size = scenario.training.client, ClientPart.of(scenario, parts), scenario.model.image_size
    device = next(parts.front.parameters()).device
    phases = [phase for phase, _ in spans(scenario.phases, scenario.federation.rounds)]
    nets = [
        (part.with_auxiliary(Auxiliary(parts.back, local.blocks, phase.first).to(device)), local.align_every > 0)
        for phase in phases
        if (local := phase.local)
    ]
    found, given = list[Side](), torch.zeros(images, 3, size, size, device=device)
    labels, key = torch.zeros(images, dtype=torch.int64, device=device), Key(scenario.seed).at("foreseen")
    for one, fits in [(part, False), *nets]:
        saved = _Saved(one)
        for adapted in adaptives(one.front, one.beside):
            adapted.begin_most()
        with keyed_rng(key, device), saved, autocast(scenario.training.precision, device):
            made = _learning(one.front, scenario.federation.rounds, labels, given)
            _learning(one.beside, scenario.federation.rounds, labels, made)
        numbers, learned = _numbers(one)
        state = 4 * (numbers + learned * (1 + client.optimiser.moments))
        state += 2 * 4 * _numbers(one.beside)[0] if fits else 0
        found.append(Side(numbers, state, saved.bytes))
    if ahead := max(scenario.ahead(phase.first) for phase in phases):
        found.append(_waiting(found[0], part, ahead + 1))
    return max(found, key=_bytes)


def carried(scenario: Scenario, geometry: Geometry) -> int:
    """Return how many bytes there are of each image of a mini-batch however few are computed at a time: the image, what
    the front made of it and the gradient of that, and where labels are private the same at the second cut."""
    image, tokens = 3 * scenario.model.image_size**2, geometry.tokens * geometry.width
    cuts = 0 if not scenario.federation.splits else 2 if scenario.federation.private else 1
    return 4 * (image + 2 * cuts * tokens)


def _numbers(module: nn.Module) -> tuple[int, int]:
    """Return how many numbers a module has, and how many of them are learned."""
    return sum(p.numel() for p in module.parameters()), sum(p.numel() for p in module.parameters() if p.requires_grad)


def _bytes(side: Side) -> int:
    return side.state + side.activations


def _waiting(side: Side, part: ClientPart, steps: int) -> Side:
    """Return the memory of a client with so many mini-batches on their way: what each saves for backward, and for each
    a copy of the weights that it went through."""
    trained = 4 * sum(p.numel() for p in part.parameters() if p.requires_grad)
    return replace(side, state=side.state + steps * trained, activations=side.activations * steps)


def _taught(part: ClientPart, cut: Cut, scenario: Scenario, images: Tensor, key: Key, *, fits: bool) -> Side:
    """Take a step of a front that an auxiliary net teaches, and return the client's memory. Where the net `fits` the
    server's gradients, that comes while the front's own step waits, and has the net's moments in an optimiser's."""
    client, precision, saved = scenario.training.client, scenario.training.precision, _Saved(part)
    optimiser = client.optimiser_for(part, scenario.training.head_lr)
    shape = (len(images), cut.geometry.tokens, cut.geometry.width)
    with keyed_rng(key.at("estimate", "local"), cut.device):
        _Whole(part, cut, precision, scenario.federation.rounds)(images, [saved])
        if fits:
            made, labels = torch.randn(shape, device=cut.device), torch.zeros(len(images), dtype=torch.int64)
            part.beside.zero_grad(set_to_none=True)  # it learns from nothing else
            client.step(optimiser, part)
            with saved:
                given = made, labels.to(cut.device), torch.randn_like(made)
                align(part.beside, *given, lambda _: autocast(precision, cut.device), steps=1)
    if not fits:
        client.step(optimiser, part)
    side = _side(part, optimiser, saved)
    moments = 2 * 4 * sum(parameter.numel() for parameter in part.beside.parameters()) if fits else 0
    return replace(side, state=side.state + moments)


class _Whole:
    """A step of a client that trains a whole model, its own or one that ends in an auxiliary net."""

    def __init__(self, part: ClientPart, cut: Cut, precision: str, round: int) -> None:
        self.part, self.cut, self.precision, self.round = part, cut, precision, round

    def __call__(
        self, images: Tensor, count: Sequence[AbstractContextManager], chunk: int | None = None
    ) -> Tensor:  # fmt: skip
        for some in images.split(chunk or len(images)):
            labels = torch.zeros(len(some), dtype=torch.int64, device=self.cut.device)
            for one in adaptives(self.part.front, self.part.beside):
                one.begin_most()
            with count[0], autocast(self.precision, self.cut.device):
                activations = _learning(self.part.front, self.round, labels, some)
                loss = nn.functional.cross_entropy(_learning(self.part.beside, self.round, labels, activations), labels)
            loss.backward()
        return loss


class _Split:
    """A step of both sides, without what carries tensors from one to the other."""

    def __init__(self, parts: Parts, cut: Cut, precision: str, key: Key, round: int) -> None:
        self.parts, self.cut, self.precision, self.key, self.round = parts, cut, precision, key, round
        self.attention = ClsAttention(parts.front) if cut.reducer.needs_attention else None

    def __call__(
        self, images: Tensor, count: Sequence[AbstractContextManager], chunk: int | None = None
    ) -> Tensor:  # fmt: skip
        (front, back, tail), cut = self.parts, self.cut
        labels = torch.zeros(len(images), dtype=torch.int64, device=cut.device)
        adapted = adaptives(front, back)
        for one in adapted:
            one.begin_most()
        with count[0], autocast(self.precision, cut.device):
            activations = self._front(images, labels, chunk)
        read = self.attention.read if self.attention else None
        if read and adapted and (left := adapted[0].last):
            read = partial(_seen, left, read)
        plan, targets = cut.plan(activations, labels, self.key, read, front.encoder)
        with count[0]:
            reduced = plan.reduce(activations)
        smashed = reduced.detach().requires_grad_(reduced.requires_grad)
        with count[1], autocast(self.precision, cut.device):
            restored = cut.reducer.restore(smashed, plan.side, plan.meta, back.decoder)
            features = _learning(back, self.round, targets, restored)
        arrived = features.detach().requires_grad_(features.requires_grad)
        with count[0 if isinstance(tail, Tail) else 1], autocast(self.precision, cut.device):
            loss = nn.functional.cross_entropy(tail(arrived), targets)
        loss.backward()
        for made, received in ((features, arrived), (reduced, smashed)):
            if received.grad is not None:  # else nothing before it learns
                made.backward(received.grad)
        return loss

    def _front(self, images: Tensor, labels: Tensor, chunk: int | None) -> Tensor:
        made, read = [], []
        learning = partial(_learning, self.parts.front, self.round)
        for one in in_chunks(learning, chunk, labels, images):
            made.append(one)
            if chunk and self.attention:
                read.append(self.attention.read())
        if read and self.attention:
            self.attention.keep(read)
        return join_chunks(made)


def _seen(left: Passed, read: Callable[[], Tensor]) -> Tensor:
    return left.seen(read())


def _learning(part: nn.Module, round: int, targets: Tensor, given: Tensor) -> Tensor:
    """Return what a part of a model makes, through which its exits are learnt from as well."""
    if not exits_of(part):
        return part(given)
    assert isinstance(part, Front | Back)
    made, loss = part.learning(round, targets, given)
    return made if loss is None else beside(made, loss)


def _side(module: nn.Module, optimiser: torch.optim.Optimizer, saved: "_Saved") -> Side:
    numbers, learned = _numbers(module)
    moments = sum(t.nbytes for s in optimiser.state.values() for t in s.values() if isinstance(t, Tensor))
    return Side(numbers, 4 * (numbers + learned) + moments, saved.bytes)


class _Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a forward pass keeps for backward, each storage once, parameters not at all. Of a front
    whose blocks are computed again these are what goes into each, and what the one saves that saves most."""

    def __init__(self, module: nn.Module) -> None:
        front = getattr(module, "front", None)
        self._again = front if isinstance(front, Front) and front.grad_checkpointing else None
        self._before: list[int] = []
        self._blocks: list[tuple[int, int]] = []  # what goes into each, and what it saves
        known = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.bytes = 0

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                self.bytes += storage.nbytes()
            return tensor

        super().__init__(keep, lambda tensor: tensor)

    def __enter__(self) -> None:
        super().__enter__()
        self._hooks = []
        # What checkpoints save, no hook is told: it passes once as if nothing were computed again.
        if self._again is not None:
            self._again.set_grad_checkpointing(False)
            for block in self._again.blocks:
                self._hooks += [block.register_forward_pre_hook(self._enter), block.register_forward_hook(self._leave)]

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._again is None:
            return
        self._again.set_grad_checkpointing(True)
        for hook in self._hooks:
            hook.remove()
        if self._blocks:
            self.bytes -= sum(saved - given for given, saved in self._blocks)
            self.bytes += max(saved - given for given, saved in self._blocks)
            self._blocks.clear()

    def _enter(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._before.append(self.bytes)

    def _leave(self, _: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        self._blocks.append((given[0].nbytes, self.bytes - self._before.pop()))
