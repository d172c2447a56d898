"""The whole model as the server holds it: what is aggregated of the clients, the back, and how well they do."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from splitfed.data.batches import batches, count_batches
from splitfed.data.dataset import FederatedData
from splitfed.data.images import Images
from splitfed.errors import RunError
from splitfed.model.build import pixel_stats
from splitfed.model.exits.heads import exits_of, watching
from splitfed.model.forward import autocast
from splitfed.model.optim import pick_device
from splitfed.model.parts import Parts, whole_state
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.split.assembly import assemble
from splitfed.split.auxiliary import first_round
from splitfed.split.bounds import check_bounds, check_number, largest, most_norm
from splitfed.split.client_part import ClientPart
from splitfed.split.computing.compiled import compile_blocks
from splitfed.split.weights.initial import HeldByPhase


class Model:
    """The parts of a scenario's model on the server's device, with the reducer's own layers in them, and `whole`, the
    same as it is evaluated. Where clients' cuts differ, `parts` share the blocks between the first cut and the last, so
    that what is loaded into the front is in the back too. `held` is what each client has of them, or who has most;
    `held_by` says it for each cut. Raises ModelError where the model cannot be built or the reducer does not go with
    it."""

    def __init__(self, scenario: Scenario, data: FederatedData) -> None:
        self.scenario, self.data = scenario, data
        self.device = pick_device(scenario.training.server.device)
        self.parts = assemble(scenario, len(data.classes), cuts=scenario.cuts)
        self.parts = self.parts.to(self.device, scenario.training.precision)
        self.front, self.back = self.parts.front, self.parts.back.train()
        self.whole = self.parts.at(scenario.model.cut)
        self.held_by = {cut: HeldByPhase(scenario, self.parts.at(cut)) for cut in scenario.fronts}
        self.held = self.held_by[scenario.cuts[1]]
        self.client_part, self.auxiliary = self.held.plain.part, AuxiliaryNet(scenario, self.held)
        self.geometry = self.front.geometry(scenario.training.batch_size, len(data.classes))
        self.mean, self.std = pixel_stats(scenario.model)
        self.notes = list[str]()
        if scenario.training.server.compile:
            took = compile_blocks(list(self.back.blocks), "server", self.geometry, scenario.training.precision)
            self.notes.append(f"the blocks of the back were compiled in {took:.0f} s")

    def state_dict(self) -> dict[str, Tensor]:
        """Return all weights under timm's names."""
        return whole_state(*self.parts)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over all weights, by copy. Raises RunError where what is frozen of the clients' part is other than it
        was, for they have that already."""
        frozen = {name: tensor.clone() for name, tensor in self.client_part.frozen().items()}
        for part in self.parts:
            part.load_state_dict({name: state[name] for name in part.state_dict()})
        if any(not tensor.equal(frozen[name]) for name, tensor in self.client_part.frozen().items()):
            key = "federation.local_norms" if self.scenario.federation.local_norms else "model.adapter"
            raise RunError(
                f"{key}: what clients were sent once is not what this run began with, and they have that: "
                "bring the file of model.weights back as it was, or start a new run"
            )

    def largest(self) -> float:
        """Return the magnitude of the largest of all weights; NaN where one is NaN."""
        weights = (*self.state_dict().values(), *self.auxiliary.weights().values())
        return largest(tensor for tensor in weights if tensor.is_floating_point())

    def arrays(self, round: int | None = None) -> ArrayRecord:
        """Return the weights that clients are handed out in a round, or without one to evaluate, for a message of
        Flower's."""
        part = self.client_part if round is None else self.auxiliary.open(round)
        return ArrayRecord({name: Array(tensor.cpu().numpy()) for name, tensor in part.travelling(round).items()})

    def load_part(self, round: int, weights: dict[str, Tensor]) -> None:
        """Take over what came back from the clients in a round, by copy."""
        self.held.at(round).part.load_travelling(weights)

    def steps(self, examples: list[int]) -> int:
        """Return how often clients of so many examples are heard of in a round: with each mini-batch, or once
        each where none crosses."""
        if not self.scenario.federation.splits:
            return len(examples)
        federation, batch = self.scenario.federation, self.scenario.training.batch_size
        return max(1, sum(count_batches(n, batch, federation.local_steps, federation.local_epochs) for n in examples))

    def _evaluate(self, images: Images) -> "Seen":
        training = self.scenario.training
        return evaluate(
            self.whole, images, training.eval_batch_size, self.mean, self.std, self.device,
            training.precision, self.scenario.data.workers,
        )  # fmt: skip

    def look(self, where: str) -> None:
        """Try whether the model can go on: pass some validation images, as a client and the server would a mini-batch.
        Raises Diverged where activations at the cut, the loss or the back's gradient are absurd; nothing is learned."""
        training, images = self.scenario.training, self.data.validation
        rows = torch.arange(min(training.batch_size, len(images)))
        (batch,) = batches(
            images, rows, len(rows), Key(0), augment="none", mean=self.mean, std=self.std, epochs=1, shuffle=False
        )
        front, back, tail = self.whole
        with evaluating(self.whole), autocast(training.precision, self.device):
            with torch.no_grad():
                smashed = front.encoder(front(batch.images.to(self.device)))
            logits = tail(back(back.decoder(smashed)))
            loss = nn.functional.cross_entropy(logits.float(), batch.labels.to(self.device))
        check_number("the loss on validation images", float(loss.detach()), where)
        if not self.scenario.federation.splits:
            return
        check_bounds("smashed", smashed, where)
        learns = [one for one in back.parameters() if one.requires_grad]
        gradients = torch.autograd.grad(loss, learns, allow_unused=True) if learns else ()
        norm = float(get_total_norm([one for one in gradients if one is not None]))
        check_number("the norm of the gradient", norm, where, most_norm(training.server.clip))

    def validate(self) -> "Seen":
        """Return how the model does on the validation split."""
        return self._evaluate(self.data.validation)

    def test(self) -> "Seen":
        """Return how the model does on the test split; read it once, at the end."""
        return self._evaluate(self.data.test)

    def keep_exits(self, folder: Path, round: int) -> None:
        """Write the exits that are trained with the model, as they are after a round, beside a run's checkpoints, for
        use without the run's data; nothing where there are none. Raises WriteError."""
        if not exits_of(*self.parts):
            return
        from splitfed.inference.exits import keep
        from splitfed.inference.run_model import RunModel

        classes = list(self.data.classes)
        model = RunModel(folder, self.scenario, round, self.whole, classes, self.mean, self.std, self.device)
        with evaluating(self.whole):
            keep(model, self.data.validation)


class Seen(NamedTuple):
    """How a model does on some images: mean loss, accuracy (a share in [0, 1]), and that of the exits that are trained
    with it, by block."""

    loss: float
    accuracy: float
    exits: Mapping[int, float]


class AuxiliaryNet:
    """The auxiliary net that teaches clients' fronts in the round that is open, if one does. Its state is the run's."""

    def __init__(self, scenario: Scenario, held: HeldByPhase) -> None:
        self._scenario, self._held = scenario, held
        self._round = 0  # the last that was open, or one of the same phase

    def open(self, round: int) -> ClientPart:
        """Begin a round: a phase that begins has a net that is a copy of the back as it is now, and one that has ended
        has none any more. Return what clients hold."""
        self._round = round
        return self._held.at(round).part

    def weights(self) -> dict[str, Tensor]:
        """Return the net's tensors; nothing where there is none."""
        if not self._round or not self._scenario.phase(self._round).local:
            return {}
        return self._held.at(self._round).part.beside.state_dict()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the net's tensors, whose names tell its phase; nothing where there is none."""
        return self.weights()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what an earlier attempt's `state_dict` returned; without a net the next phase makes one."""
        self._held.forget()
        self._round = first_round(state)
        if self._round:
            self._held.at(self._round).part.beside.load_state_dict(state)


@contextmanager
def evaluating(parts: Parts) -> Iterator[None]:
    """Have the parts in evaluation mode, and afterwards as they were."""
    was_training = [part.training for part in parts]
    for part in parts:
        part.eval()
    yield
    for part, training in zip(parts, was_training, strict=True):
        part.train(training)


def evaluate(
    parts: Parts, images: Images, batch_size: int, mean: tuple[float, ...], std: tuple[float, ...],
    device: torch.device, precision: str, workers: int = 0,
) -> Seen:  # fmt: skip
    """Return how a model does on all images."""
    model = parts.whole()
    loss, right, of_exits = 0.0, 0, Counter[int]()
    rows = torch.arange(len(images))
    with evaluating(parts), torch.inference_mode():
        for batch in batches(
            images, rows, batch_size, Key(0), augment="none", workers=workers, mean=mean, std=std, epochs=1,
            shuffle=False,
        ):  # fmt: skip
            labels = batch.labels.to(device)
            with autocast(precision, device), watching(parts.front, parts.back) as seen:
                logits = model(batch.images.to(device))
                said = [(one.blocks, one([seen[block] for block in one.blocks])) for one in exits_of(*parts)]
            for blocks, answers in said:
                of_exits.update({
                    block: int((answer.argmax(1) == labels).sum())
                    for block, answer in zip(blocks, answers, strict=True)
                })  # fmt: skip
            loss += float(nn.functional.cross_entropy(logits.float(), labels, reduction="sum"))
            right += int((logits.argmax(1) == labels).sum())
    of_each = {block: number / len(images) for block, number in sorted(of_exits.items())}
    return Seen(loss / len(images), right / len(images), of_each)
