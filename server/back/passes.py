"""The passes of a back: forward on what clients send, backward to the gradient that they get, and the update between
two mini-batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from splitfed.errors import Diverged
from splitfed.model.forward import autocast, keyed_rng
from splitfed.seeds import Key
from splitfed.server.back.pools import Trainer
from splitfed.server.back.turns import Turns
from splitfed.split.cut import Arrived, Cut


class Passes:
    """Passes mini-batches through backs, in a scenario's `precision`; safe to call from threads.

    At most `at_once` mini-batches train at the same time, and as many are evaluated; on a GPU one. One trains where all
    train one `shared` back, too, and where the back `draws` random numbers: torch's global generator is seeded for it,
    by the mini-batch's own key.
    """

    def __init__(self, cut: Cut, precision: str, *, shared: bool, draws: bool, at_once: int) -> None:
        self._reducer, self._device, self._precision, self._draws = cut.reducer, cut.device, precision, draws
        at_once = at_once if cut.device.type == "cpu" else 1
        self._train_turns = Turns(1 if shared or draws else at_once)
        self._evaluate_turns = Turns(at_once)

    def train(self, trainer: Trainer, batches: Sequence[Arrived], key: Key) -> list[tuple[Tensor, float]]:
        """Update a back once, on one mini-batch or on several together, and return for each of them the gradient of its
        own mean loss with respect to what was sent, and that loss.

        What is minimised is the mean loss of all images: sum_i (n_i / N) CE_i, with n_i the images of mini-batch i and
        N those of all. The gradient of its own loss is that of this sum times N / n_i. Raises Diverged, and updates
        nothing, where a loss is not finite.
        """
        examples = [batch.examples for batch in batches]
        with self._train_turns:
            with self._forward(key):
                logits = _through(trainer.back, [self._restored(trainer, batch) for batch in batches])
                losses = [
                    nn.functional.cross_entropy(found, batch.targets)
                    for found, batch in zip(logits, batches, strict=True)
                ]
            for loss, batch in zip(losses, batches, strict=True):
                if not bool(loss.detach().isfinite()):  # before it becomes the back's, which all may share
                    raise Diverged(str(batch.frame.place), "the loss")
            _mean(losses, examples).backward()
            trainer.update()
        gradients = [
            _gradient(batch) if len(batches) == 1 else _gradient(batch) * (sum(examples) / batch.examples)
            for batch in batches
        ]
        return [(gradient, float(loss.detach())) for gradient, loss in zip(gradients, losses, strict=True)]

    def forward(self, trainer: Trainer, batch: Arrived, key: Key) -> Tensor:
        """Run a back on a mini-batch whose loss is the client's to tell, and return what it makes of it."""
        with self._train_turns, self._forward(key):
            return trainer.back(self._restored(trainer, batch))

    def backward(self, trainer: Trainer, batch: Arrived, features: Tensor, gradient: Tensor) -> Tensor:
        """Update a back by the gradient of what `forward` returned; return the gradient of what was sent."""
        with self._train_turns:
            features.backward(gradient.to(features.dtype))
            trainer.update()
        return _gradient(batch)

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
        return self._reducer.restore(
            batch.smashed.requires_grad_(), batch.side, batch.frame.meta, trainer.back.get_submodule("decoder")
        )


def _through(back: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """Run the back on inputs `[B_i, k_i, d]`, those of one shape but for the number of samples in one batch, and return
    the logits of each."""
    if len(inputs) == 1:
        return [back(inputs[0])]
    groups: dict[tuple, list[int]] = {}
    for place, restored in enumerate(inputs):
        groups.setdefault((restored.shape[1:], restored.dtype), []).append(place)
    logits: dict[int, Tensor] = {}
    for places in groups.values():
        whole = back(torch.cat([inputs[place] for place in places]))
        logits |= zip(places, whole.split([len(inputs[place]) for place in places]), strict=True)
    return [logits[place] for place in range(len(inputs))]


def _mean(losses: list[Tensor], examples: list[int]) -> Tensor:
    """Return the mean loss of mini-batches of so many examples each."""
    if len(losses) == 1:
        return losses[0]
    shares = torch.tensor([images / sum(examples) for images in examples], device=losses[0].device)
    return (torch.stack(losses) * shares).sum()


def _gradient(batch: Arrived) -> Tensor:
    assert batch.smashed.grad is not None
    return batch.smashed.grad
