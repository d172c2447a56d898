"""The passes of a back: forward on what clients send, backward to the gradient that they get, and the update between
two mini-batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor, nn

from splitfed.errors import Diverged
from splitfed.model.adaptive.alast import Tally, adaptives
from splitfed.model.exits.heads import exits_of, watching
from splitfed.model.forward import autocast, keyed_rng
from splitfed.scenario.sections import Clip
from splitfed.seeds import Key
from splitfed.server.back.pools import Trainer
from splitfed.server.back.turns import Turns
from splitfed.split.bounds import check_bounds, check_number, shortened
from splitfed.split.cut import Arrived, Cut

# Changes inputs of the back and their targets, by a key.
Alter = Callable[[Tensor, Tensor, Key], tuple[Tensor, Tensor]]
# The gradient of what was sent, None where none was asked for, and the loss; or why there is neither.
Trained = tuple[Tensor | None, float]
Outcome = Trained | Diverged


class Passes:
    """Passes mini-batches through backs, in a scenario's `precision`; safe to call from threads.

    At most `at_once` mini-batches train at the same time, and as many are evaluated; on a GPU one. One trains where all
    train one `shared` back, too, and where the back `draws` random numbers: torch's global generator is seeded for it,
    by the mini-batch's own key. `clip` says how long may be what clients send.
    """

    def __init__(
        self, cut: Cut, precision: str, *, shared: bool, draws: bool, at_once: int, clip: Clip | None = None
    ) -> None:  # fmt: skip
        self._reducer, self._device, self._precision, self._draws = cut.reducer, cut.device, precision, draws
        self._clip, self._round = clip or Clip(), 0
        self.tally, self._counting = Tally(), Lock()
        at_once = at_once if cut.device.type == "cpu" else 1
        self._train_turns = Turns(1 if shared or draws else at_once)
        self._evaluate_turns = Turns(at_once)

    def open(self, round: int) -> None:
        """Begin a round: whether exits learn in it is said by its number."""
        self._round = round
        self.tally = Tally()

    def train(
        self, trainer: Trainer, batches: Sequence[Arrived], key: Key, alter: Alter | None = None
    ) -> list[Outcome]:  # fmt: skip
        """Update a back once, on one mini-batch or on several together, and return for each of them the gradient of its
        own mean loss with respect to what was sent, if it is to be answered with that, and that loss.

        What is minimised is the mean loss of all images: sum_i (n_i / N) CE_i, with n_i the images of mini-batch i and
        N those of all, and the losses of the back's exits, if they learn, join those of the model without being told.
        The gradient of its own loss is that of this sum times N / n_i. The outcome of a mini-batch
        whose loss or gradient is not finite, or absurd, is a Diverged: it teaches the back nothing, and the others are
        trained as if it had not come. `alter` changes what the back sees of a mini-batch that comes alone.
        """
        with self._train_turns:
            try:
                return list(self._update(trainer, batches, key, alter))
            except Diverged as error:
                if len(batches) == 1:
                    return [error]
            # Each alone tells which of them it is; this is rare, and may take its time.
            spoilt = {place: why for place, one in enumerate(batches) if (why := self._error(trainer, one, key))}
            good = [batch for place, batch in enumerate(batches) if place not in spoilt]
            try:
                trained = iter(self._update(trainer, good, key) if good else ())
            except Diverged as error:
                return [spoilt.get(place, error) for place in range(len(batches))]
            return [spoilt.get(place) or next(trained) for place in range(len(batches))]

    def _update(
        self, trainer: Trainer, batches: Sequence[Arrived], key: Key, alter: Alter | None = None
    ) -> list[Trained]:  # fmt: skip
        """Update a back on all of these mini-batches, or raise Diverged and leave it as it was."""
        everyone = sum(batch.examples for batch in batches)
        losses = self._accumulate(trainer, batches, key, alter)
        self._count(trainer, batches[0])
        trainer.update()
        gradients = [
            None if not batch.answered
            else _gradient(batch) if len(batches) == 1
            else _gradient(batch) * (everyone / batch.examples)
            for batch in batches
        ]  # fmt: skip
        return list(zip(gradients, losses, strict=True))

    def _accumulate(
        self, trainer: Trainer, batches: Sequence[Arrived], key: Key, alter: Alter | None = None
    ) -> list[float]:  # fmt: skip
        """Leave the back the gradient of these mini-batches, and return their losses; or raise Diverged and leave it
        none."""
        _begin(trainer, batches[0], key)  # of a back that adapts no others come with it
        with self._forward(key):
            inputs, targets = [self._restored(trainer, batch) for batch in batches], [one.targets for one in batches]
            if alter is not None:
                inputs[0], targets[0] = alter(inputs[0], targets[0], key.at("alter"))
            exits = next((one for one in exits_of(trainer.back) if one.learn(self._round)), None)
            found = _through(trainer, [one.frame.client for one in batches], inputs, watch=exits is not None)
            losses = [nn.functional.cross_entropy(one.logits, meant) for one, meant in zip(found, targets, strict=True)]
            more = [exits.loss(one.seen, meant) for one, meant in zip(found, targets, strict=True)] if exits else []
        told = [float(loss.detach()) for loss in losses]
        for loss, batch in zip(told, batches, strict=True):
            check_number("the loss", loss, batch.frame.place)  # before it becomes the back's, which all may share
        for one, batch in zip(more, batches, strict=exits is not None):
            check_number("the loss of the exits", float(one.detach()), batch.frame.place)
        whole = [loss + one for loss, one in zip(losses, more, strict=True)] if exits else losses
        _mean(whole, [batch.examples for batch in batches]).backward()
        trainer.check(batches[0].frame.place, [batch.smashed for batch in batches])
        return told

    def _error(self, trainer: Trainer, batch: Arrived, key: Key) -> Diverged | None:
        """Return why a mini-batch cannot be trained on, None where it can; nothing is learned of it."""
        try:
            self._accumulate(trainer, [batch], key)
        except Diverged as error:
            return error
        finally:
            trainer.clear()
        return None

    def forward(self, trainer: Trainer, batch: Arrived, key: Key) -> Tensor:
        """Run a back on a mini-batch whose loss is the client's to tell, and return what it makes of it. Raises
        Diverged where that is absurd."""
        with self._train_turns, self._forward(key):
            _begin(trainer, batch, key)
            features = trainer.behind(batch.frame.client)(self._restored(trainer, batch))
        check_bounds("tail_smashed", features, batch.frame.place)
        return features

    def backward(self, trainer: Trainer, batch: Arrived, features: Tensor, gradient: Tensor) -> Tensor | None:
        """Update a back by the gradient of what `forward` returned; return the gradient of what was sent, if it is to
        be answered with that. Raises Diverged, and updates nothing, where one of the two is absurd."""
        check_bounds("tail_gradient", gradient, batch.frame.place)
        gradient = shortened(gradient, self._clip.tail_gradient)
        with self._train_turns:
            if features.requires_grad:  # else nothing here learns from this mini-batch
                features.backward(gradient.to(features.dtype))
            trainer.check(batch.frame.place, [batch.smashed])
            self._count(trainer, batch)
            trainer.update()
        return _gradient(batch) if batch.answered else None

    def _count(self, trainer: Trainer, batch: Arrived) -> None:
        """Count what became of a mini-batch in a back whose blocks have budgets."""
        for one in adaptives(trainer.back):
            with self._counting:
                self.tally.add(one, batch.answered, int(batch.frame.meta["left"]))

    def evaluate(self, back: nn.Module, smashed: Tensor) -> Tensor:
        """Run a back, as it is, on what no reducer has touched, and return what it makes of it."""
        with self._evaluate_turns, torch.no_grad(), autocast(self._precision, self._device):
            return back(back.get_submodule("decoder")(smashed))

    @contextmanager
    def _forward(self, key: Key) -> Iterator[None]:
        with keyed_rng(key.at("dropout"), self._device, self._draws), autocast(self._precision, self._device):
            yield

    def _restored(self, trainer: Trainer, batch: Arrived) -> Tensor:
        """Turn what a client sent into the input of the back, differentiably."""
        batch.smashed.grad = None
        smashed, decoder = batch.smashed.requires_grad_(batch.answered), trainer.back.get_submodule("decoder")
        reducer = batch.reducer or self._reducer
        if batch.lengths is not None:  # a row is no sample yet
            return shortened(reducer.restore(smashed, batch.side, batch.frame.meta, decoder), self._clip.smashed)
        smashed = shortened(smashed, self._clip.smashed)
        return reducer.restore(smashed, batch.side, batch.frame.meta, decoder)


def _begin(trainer: Trainer, batch: Arrived, key: Key) -> None:
    """Let the back's budgets, if it has any, decide how a mini-batch passes through it."""
    for one in adaptives(trainer.back):
        one.begin(*batch.frame.place, key.at("adaptive"))


@dataclass(frozen=True, slots=True)
class _Made:
    """The logits `[B, classes]` of a mini-batch, and what the back's exits see of it, by block, where they learn."""

    logits: Tensor
    seen: Mapping[int, Tensor]


def _through(trainer: Trainer, clients: list[int], inputs: list[Tensor], *, watch: bool) -> list[_Made]:
    """Run the back on these clients' inputs `[B_i, k_i, d]`, in one batch those that enter it at one place and are of
    one shape but for the number of samples, and return what it makes of each."""
    if len(inputs) == 1:
        return [_run(trainer.behind(clients[0]), inputs[0], watch=watch)]
    groups: dict[tuple, list[int]] = {}
    for place, (client, restored) in enumerate(zip(clients, inputs, strict=True)):
        groups.setdefault((trainer.enters(client), restored.shape[1:], restored.dtype), []).append(place)
    made: dict[int, _Made] = {}
    for places in groups.values():
        back = trainer.behind(clients[places[0]])
        whole = _run(back, torch.cat([inputs[place] for place in places]), watch=watch)
        sizes = [len(inputs[place]) for place in places]
        logits, seen = whole.logits.split(sizes), {block: one.split(sizes) for block, one in whole.seen.items()}
        for number, place in enumerate(places):
            made[place] = _Made(logits[number], {block: one[number] for block, one in seen.items()})
    return [made[place] for place in range(len(inputs))]


def _run(back: nn.Module, inputs: Tensor, *, watch: bool) -> _Made:
    if not watch:
        return _Made(back(inputs), {})
    with watching(back) as seen:
        return _Made(back(inputs), seen)


def _mean(losses: list[Tensor], examples: list[int]) -> Tensor:
    """Return the mean loss of mini-batches of so many examples each."""
    if len(losses) == 1:
        return losses[0]
    shares = torch.tensor([images / sum(examples) for images in examples], device=losses[0].device)
    return (torch.stack(losses) * shares).sum()


def _gradient(batch: Arrived) -> Tensor:
    assert batch.smashed.grad is not None
    return batch.smashed.grad
