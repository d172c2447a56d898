"""What becomes of a mini-batch at a client: front, reducer, codec, exchange, backward; or a whole model at once.

A step leaves the gradients of what the client holds, if that learns; the update is `Worker`'s.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from splitfed.federation.phases import Phase
from splitfed.model.adaptive.alast import Passed, adaptives
from splitfed.model.adaptive.attention import ClsAttention
from splitfed.model.exits.heads import beside
from splitfed.model.forward import autocast, draws, in_chunks, join_chunks, keyed_rng
from splitfed.scenario.sections import Federation
from splitfed.seeds import Key
from splitfed.split.auxiliary import align
from splitfed.split.bounds import check_bounds
from splitfed.split.client_part import ClientPart
from splitfed.split.copies import Visit
from splitfed.split.cut import Cut
from splitfed.wire.channel import Stream
from splitfed.wire.frame import Frame, Packed, Place


def front(
    part: ClientPart, images: Tensor, labels: Tensor, place: Place, key: Key, budget: float | None = None,
    chunk: int | None = None, attention: ClsAttention | None = None, share: float = 1.0,
) -> Tensor:  # fmt: skip
    """Return what a client's front makes of the images of a mini-batch, which draws from `key`, of a `chunk` at a time,
    of each of which `attention` is read. Whoever goes back through it goes through its exits as well, if they learn
    with it, by this `share` of their loss. Raises Diverged for a loss of these that is not finite."""

    def run(some: Tensor, their: Tensor) -> tuple[Tensor, Tensor | None]:
        if not torch.is_grad_enabled():
            return part.front(some, budget), None
        with part.features.watching():
            return part.front.learning(place.round, their, some, budget)

    made, losses, read = [], [], []
    with adapting(part.front, place, key, torch.is_grad_enabled()):
        for activations, loss in in_chunks(run, chunk, images, labels):
            made.append(activations)
            if loss is not None:
                losses.append(loss * (share * len(activations) / len(images)))
            if chunk and attention:
                read.append(attention.read())
    if read and attention:
        attention.keep(read)
    whole = join_chunks(made)
    if not losses:
        return whole
    return beside(whole, checked(torch.stack(losses).sum() + part.features.beside(labels, *place), place))


def portions(key: Key, chunk: int | None, *given: Tensor) -> Iterator[tuple[float, Key, tuple[Tensor, ...]]]:
    """Give a mini-batch a `chunk` at a time: its share of the samples, what it draws by, its part of each tensor."""
    count = len(given[0])
    for number, some in enumerate(zip(*(one.split(chunk or count) for one in given), strict=True)):
        yield len(some[0]) / count, key.at(number) if number else key, some


@contextmanager
def adapting(part: nn.Module, place: Place, key: Key, learns: bool) -> Iterator[None]:
    """Let the budgets of a part of the model that is in training decide how a mini-batch passes through it, and move
    them by what they see of it, if there are any; whether the front `learns` from it is counted."""
    found = adaptives(part) if part.training else []
    for one in found:
        one.begin(*place, key.at("adaptive"))
    yield
    for one in found:
        one.commit()
        one.tally.add(one, learns)


def learns(part: ClientPart, place: Place) -> bool:
    """Tell whether the front, if it learns at all, learns from a mini-batch: not where none of its blocks is drawn."""
    return all(one.numbers.front_learns(*place) for one in adaptives(part.front))


def checked(loss: Tensor, place: Place) -> Tensor:
    """Return the loss of a client's exits. Raises Diverged where it is not finite, or absurd."""
    check_bounds("the loss of the exits", loss, place, sides=("client",))
    return loss


class WholeStep:
    """A client that holds the whole model needs nobody."""

    def __init__(self, part: ClientPart, cut: Cut, precision: str, chunk: int | None = None) -> None:
        self.part, self.device, self.precision, self.chunk = part, cut.device, precision, chunk
        self.draws = draws(part)

    def __call__(
        self, stream: Stream | None, images: Tensor, labels: Tensor, key: Key, place: Place, visit: Visit | None = None
    ) -> tuple[float, int, int]:  # fmt: skip
        """Return the loss, and that no bytes went up or down. Raises Diverged for a loss that is not finite."""
        told = 0.0
        for share, draw, (some, their) in portions(key.at("dropout"), self.chunk, images, labels):
            with keyed_rng(draw, self.device, self.draws), autocast(self.precision, self.device):
                with torch.set_grad_enabled(learns(self.part, place)):
                    activations = front(self.part, some, their, place, key, share=share)
                seen = self.part.features_beside
                with adapting(self.part.beside, place, key, activations.requires_grad), seen.watching():
                    logits, exits = self.part.beside.learning(place.round, their, activations)  # type: ignore[operator]
                loss = nn.functional.cross_entropy(logits, their)
            check_bounds("the loss", loss, place, sides=("client",))
            whole = loss + seen.beside(their, *place)
            (share * (whole if exits is None else whole + checked(exits, place))).backward()
            told += share * float(loss.detach())
        return told, 0, 0


class SplitStep:
    """One exchange: smashed data and targets go up, the gradient at the cut comes down. Where both ends keep copies of
    samples, each mini-batch is a `visit`."""

    def __init__(self, part: ClientPart, cut: Cut, precision: str, chunk: int | None = None) -> None:
        self.part, self.cut, self.device, self.precision, self.chunk = part, cut, cut.device, precision, chunk
        self.attention = ClsAttention(part.front) if cut.reducer.needs_attention else None
        self.draws = draws(part)

    def __call__(
        self, stream: Stream | None, images: Tensor, labels: Tensor, key: Key, place: Place, visit: Visit | None = None
    ) -> tuple[float, int, int]:  # fmt: skip
        """Exchange one mini-batch; return the loss and the bytes up and down. Raises WireError where the server's reply
        is not what was asked for, Diverged for numbers that are not finite any more, and CodecError for what else
        cannot be sent."""
        assert stream is not None
        with torch.set_grad_enabled(learns(self.part, place)):
            smashed, _, packed = self.smashed(images, labels, key, place, visit)
        reply = stream.exchange(packed.buffer)
        frame = self._learned(reply, smashed, packed, visit)
        return float(frame.meta["loss"]), packed.total, len(reply)

    def across(self, cut: Cut) -> Self:
        """Return this step across another cut."""
        step = copy(self)
        step.cut = cut
        if self.attention is None and cut.reducer.needs_attention:
            step.attention = ClsAttention(self.part.front)
        return step

    def smashed(
        self, images: Tensor, labels: Tensor, key: Key, place: Place, visit: Visit | None
    ) -> tuple[Tensor, Tensor, Packed]:  # fmt: skip
        """Return the smashed tensor, its targets, and the frame that carries them."""
        with keyed_rng(key.at("dropout"), self.device, self.draws), autocast(self.precision, self.device):
            activations = front(self.part, images, labels, place, key, self.budget(key), self.chunk, self.attention)
        return self.reduced(activations, labels, key, place, visit)

    def budget(self, key: Key) -> float | None:
        """Return what share of the tokens the gates of a front that learns let through, of the mini-batch of this key;
        None leaves it to them."""
        return self.cut.reducer.budget(key.at("budget")) if self.part.front.training else None

    def reduced(
        self, activations: Tensor, labels: Tensor, key: Key, place: Place, visit: Visit | None
    ) -> tuple[Tensor, Tensor, Packed]:  # fmt: skip
        """Return what becomes of the activations at the cut that the front has just made, as `smashed` does."""
        check_bounds("an activation at the cut", activations, place)  # before a reducer looks at them
        left = self._left()
        plan, targets = self.cut.plan(
            activations, labels, key.at("plan"), partial(self._seen, left), self.part.front.encoder,
            positions=None if left is None else left.positions,
        )  # fmt: skip
        smashed = plan.reduce(activations)
        packed = self.cut.pack_step(plan, smashed, targets, len(labels), key.at("rounding"), place, visit)
        return smashed, targets, packed

    def _left(self) -> Passed | None:
        """Return what became of the tokens of the mini-batch that the front has just passed on, if it has not passed
        all."""
        return next((one.last for one in adaptives(self.part.front) if self.part.front.training), None)

    def _seen(self, left: Passed | None) -> Tensor:
        """Return what the class token pays to the tokens at the cut, `[B, k]`, to a reducer that needs it."""
        assert self.attention is not None
        found = self.attention.read()
        return found if left is None else left.seen(found)

    def _learned(self, reply: bytes, smashed: Tensor, packed: Packed, visit: Visit | None) -> Frame:
        """Go on with the gradient at the cut, through the front, if it learns from this mini-batch, and return the
        frame of the reply."""
        if not smashed.requires_grad:
            return self.cut.unpack_taken(reply)
        gradient, frame = self.answer(reply, smashed, packed, visit)
        smashed.backward(gradient)
        return frame

    def answer(
        self, reply: bytes, smashed: Tensor, packed: Packed, visit: Visit | None
    ) -> tuple[Tensor, Frame]:  # fmt: skip
        """Return the gradient of the smashed tensor, and the frame that brought it."""
        frame = self.cut.unpack_gradient(reply, smashed, visit)
        gradient = self.cut.corrected(frame.tensors["cut_gradient"], smashed, packed, visit)
        return gradient.to(smashed.dtype), frame


class LocalStep:
    """A mini-batch from which the front learns here, by the loss of the auxiliary net beside it in this `part`. Some
    go up too, as the phase says and another `step` packs them, and what comes back is their loss, or for some of them
    the gradient: then the net learns from these alone. Made anew for each round.

    The net sees what the front makes: nothing crosses on the way there, so that nothing need be left out.
    """

    def __init__(self, step: SplitStep, part: ClientPart, phase: Phase) -> None:
        self._step, self._part = step, part
        self._every, self._answer_every = phase.upload_every, phase.answer_every
        self._draws = draws(part)
        self._seen = 0
        self._losses: list[float] = []  # of what went up, at the server

    def __call__(
        self, stream: Stream | None, images: Tensor, labels: Tensor, key: Key, place: Place, visit: Visit | None = None
    ) -> tuple[float, int, int]:  # fmt: skip
        """Take a mini-batch; return the loss here and the bytes up and down. Raises as `SplitStep` does."""
        with self._forward(key.at("dropout")):
            step = self._step
            activations = front(self._part, images, labels, place, key, step.budget(key), step.chunk, step.attention)
            loss = self._taught(activations, labels)
        check_bounds("the loss", loss, place, sides=("client",))
        up = down = 0
        if self._every is not None and self._seen % self._every == 0:
            answered = self._answer_every > 0 and self.crossed % self._answer_every == 0
            made = activations.detach().requires_grad_(answered)
            up, down, gradient = self._exchange(stream, made, labels, key, place, visit)
            if gradient is not None:
                align(self._part.beside, made, labels, gradient, lambda number: self._forward(key.at("align", number)))
                with self._forward(key.at("aligned")):
                    loss = nn.functional.cross_entropy(self._part.beside(activations), labels)
                check_bounds("the loss", loss, place, sides=("client",))
        self._seen += 1
        loss.backward()
        if self._answer_every:
            self._part.beside.zero_grad(set_to_none=True)
        return float(loss.detach()), up, down

    def _taught(self, activations: Tensor, labels: Tensor) -> Tensor:
        """Return the net's mean loss on what the front made."""

        def summed(some: Tensor, their: Tensor) -> Tensor:
            return nn.functional.cross_entropy(self._part.beside(some), their) * (len(some) / len(labels))

        return torch.stack([*in_chunks(summed, self._step.chunk, activations, labels)]).sum()

    @contextmanager
    def _forward(self, key: Key) -> Iterator[None]:
        device = self._step.device
        with keyed_rng(key, device, self._draws), autocast(self._step.precision, device):
            yield

    def _exchange(
        self, stream: Stream | None, made: Tensor, labels: Tensor, key: Key, place: Place, visit: Visit | None
    ) -> tuple[int, int, Tensor | None]:
        """Send what the front `made`; return the bytes up and down, and its gradient where it asks for one."""
        assert stream is not None
        step, gradient = self._step, None
        numbered = place._replace(step=self.crossed + 1)  # the server counts what it sees
        with torch.set_grad_enabled(made.requires_grad):
            smashed, _, packed = step.reduced(made, labels, key, numbered, visit)
        reply = stream.exchange(packed.buffer)
        if made.requires_grad:
            came, frame = step.answer(reply, smashed, packed, visit)
            (gradient,) = torch.autograd.grad(smashed, made, came)
            self._losses.append(float(frame.meta["loss"]))
        else:
            self._losses.append(float(step.cut.unpack_taken(reply).meta["loss"]))
        return packed.total, len(reply), gradient

    @property
    def crossed(self) -> int:
        """How many mini-batches have gone up."""
        return len(self._losses)

    @property
    def loss(self) -> float | None:
        """The mean loss of the whole model on what went up; None where nothing did."""
        return sum(self._losses) / self.crossed if self._losses else None


class FrozenStep:
    """One exchange for a front that stays as it is: smashed data and targets go up as another `step` packs them, and
    nothing is learned here. The front evaluates, so that the same image always makes the same activations."""

    def __init__(self, step: SplitStep) -> None:
        self._step = step

    def __call__(
        self, stream: Stream | None, images: Tensor, labels: Tensor, key: Key, place: Place, visit: Visit | None = None
    ) -> tuple[float, int, int]:  # fmt: skip
        """Exchange one mini-batch; return the loss and the bytes up and down. Raises as `SplitStep` does."""
        assert stream is not None
        with torch.no_grad():
            _, _, packed = self._step.smashed(images, labels, key, place, visit)
        reply = stream.exchange(packed.buffer)
        return self._read(self._step.cut, reply), packed.total, len(reply)

    def _read(self, cut: Cut, reply: bytes) -> float:
        return float(cut.unpack_taken(reply).meta["loss"])


class SparseStep:
    """Exchanges of which the first of `every` so many (0: none) brings the gradient, as another `step` has it, and the
    others their loss alone: the front learns nothing from these. Made anew for each round."""

    def __init__(self, step: SplitStep, every: int) -> None:
        self._step, self._quiet, self._every = step, FrozenStep(step), every
        self._seen = 0

    def __call__(
        self, stream: Stream | None, images: Tensor, labels: Tensor, key: Key, place: Place, visit: Visit | None = None
    ) -> tuple[float, int, int]:  # fmt: skip
        """Exchange one mini-batch; return the loss and the bytes up and down. Raises as `SplitStep` does."""
        answered = self._every > 0 and self._seen % self._every == 0
        self._seen += 1
        return (self._step if answered else self._quiet)(stream, images, labels, key, place, visit)


class StoredStep(FrozenStep):
    """One exchange, across a `cut` of its own, for what the server keeps, to train on later: there is no loss yet, and
    0 is told."""

    def __init__(self, step: SplitStep, cut: Cut) -> None:
        super().__init__(step.across(cut))

    def _read(self, cut: Cut, reply: bytes) -> float:
        cut.unpack_stored(reply)
        return 0.0


class PrivateStep(SplitStep):
    """Two exchanges: smashed data go up, the activations at the second cut come down; through the tail and the loss,
    which stay here with the labels, their gradient goes up, and the one at the first cut comes down."""

    def __call__(
        self, stream: Stream | None, images: Tensor, labels: Tensor, key: Key, place: Place, visit: Visit | None = None
    ) -> tuple[float, int, int]:  # fmt: skip
        """Exchange one mini-batch; return the loss and the bytes up and down. Raises as `SplitStep` does."""
        assert stream is not None
        with torch.set_grad_enabled(learns(self.part, place)):
            smashed, targets, packed = self.smashed(images, labels, key, place, visit)
        down = stream.exchange(packed.buffer)
        lengths = self.cut.lengths(packed)
        features = self.cut.unpack_features(down, len(targets), lengths).requires_grad_()
        seen, told = self.part.features_beside, 0.0
        for share, draw, (some, meant) in portions(key.at("tail"), self.chunk, features, targets):
            with keyed_rng(draw, self.device, self.draws), autocast(self.precision, self.device), seen.watching():
                loss = nn.functional.cross_entropy(self.part.beside(some), meant)
            check_bounds("the loss", loss, place)
            (share * (loss + seen.beside(meant, *place))).backward()
            told += share * float(loss.detach())
        assert features.grad is not None
        answer = self.cut.pack_backward(features.grad, key.at("rounding"), place, lengths)
        reply = stream.exchange(answer.buffer)
        self._learned(reply, smashed, packed, visit)
        return told, packed.total + answer.total, len(down) + len(reply)


def step_of(federation: Federation) -> type[WholeStep] | type[SplitStep]:
    """Return what a client does with a mini-batch to learn from it."""
    if not federation.splits:
        return WholeStep
    return PrivateStep if federation.private else SplitStep


class Anchor:
    """Remembers the weights w0 of a module as they are now; `pull` adds the gradient of mu/2 ||w - w0||^2 to each
    parameter that has one. With mu 0 it keeps nothing and does nothing."""

    def __init__(self, module: nn.Module, mu: float) -> None:
        self._mu = mu
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad] if mu else []
        self._starts = [(parameter, parameter.detach().clone()) for parameter in trained]

    @torch.no_grad()
    def pull(self) -> None:
        """Add mu (w - w0) to the gradients."""
        for parameter, start in self._starts:
            if parameter.grad is not None:  # else it is still where it was
                parameter.grad.add_(parameter - start, alpha=self._mu)
