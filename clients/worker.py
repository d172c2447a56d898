"""Trains a client's front: one worker a process, which loads client after client.

The loop is the whole of the client's side: front, reducer, codec, exchange, backward, update. Nothing of a client stays
in the worker; what must outlive a round is in `ClientState`.
"""

from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from splitfed.attention import ClsAttention
from splitfed.batches import batches
from splitfed.channel import Stream, connect
from splitfed.clients.state import ClientState
from splitfed.compression.reducer import View
from splitfed.control import FrontWire
from splitfed.cut import Cut
from splitfed.data import load
from splitfed.errors import WireError
from splitfed.models import build, pixel_stats, split
from splitfed.optim import pick_device, set_lr
from splitfed.optimiser_state import read_optimiser, write_optimiser
from splitfed.precision import autocast
from splitfed.randomness import draws, keyed_rng
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.wire import pack, unpack


@dataclass(frozen=True, slots=True)
class Trained:
    """What a client's round came to: new weights, and the means and sums that are reported."""

    weights: dict[str, Tensor]
    loss: float
    steps: int
    examples: int


class Worker:
    """A front with all that trains it, made once and loaded for each client."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.key = scenario, Key(scenario.seed)
        self.data = load(
            scenario.data, scenario.model.image_size, scenario.federation.clients, self.key.at("data")
        )  # fmt: skip
        classes = len(self.data.classes)
        self.device = pick_device(scenario.training.client.device)
        # Weights come from the server, so none are loaded here.
        vit = build(scenario.model, classes, pretrained=False, key=self.key.at("model"))
        self.front = split(vit, scenario.model.cut)[0].to(self.device).train()
        self.geometry = self.front.geometry(scenario.training.batch_size, classes)
        self.cut = Cut(scenario.compression, self.geometry, self.device)
        self.attention = ClsAttention(self.front) if self.cut.reducer.needs_attention else None
        self.wire = FrontWire(self.front.state_dict(), scenario.compression.front_weights)
        self.mean, self.std = pixel_stats(scenario.model)
        self._draws = draws(self.front)

    def train(self, client: int, round: int, weights: dict[str, Tensor], address: str, states: Path) -> Trained:
        """Train a client's front for a round, mini-batch by mini-batch, against the split server at `address`.

        Raises WireError where the server's replies are not what was asked for, and CodecError for numbers that cannot
        be sent.
        """
        training, federation = self.scenario.training, self.scenario.federation
        self.front.load_state_dict(weights)
        optimiser = training.client.optimiser_for(self.front)
        keep = ClientState(states, client) if training.client_state == "keep" else None
        if keep:
            write_optimiser(optimiser, keep.before(round))
        set_lr(optimiser, training.client.lr(round, federation.rounds))
        rows = self.data.partitions[client]
        losses, step, up, down = 0.0, 0, 0, 0
        with connect(address, client, round) as stream:
            for batch in batches(
                self.data.train, rows, training.batch_size, self.key.at("batches", round, client),
                augment=self.scenario.data.augment, workers=self.scenario.data.workers, mean=self.mean, std=self.std,
                steps=federation.local_steps, epochs=federation.local_epochs,
            ):  # fmt: skip
                step += 1
                images, labels = batch.images.to(self.device), batch.labels.to(self.device)
                loss, sent, received = self._step(stream, images, labels, client, round, step)
                training.client.step(optimiser, self.front)
                losses, up, down = losses + loss, up + sent, down + received
            _end(stream, client, round, step + 1, up, down)
        if keep:
            keep.save(round, read_optimiser(optimiser))
        return Trained(self.front.state_dict(), losses / max(1, step), step, len(rows))

    def _step(
        self, stream: Stream, images: Tensor, labels: Tensor, client: int, round: int, step: int
    ) -> tuple[float, int, int]:
        """Exchange one mini-batch and leave the front's gradients; return the loss and the bytes up and down."""
        key = self.key.at("step", round, client, step)
        precision = self.scenario.training.precision
        with keyed_rng(key.at("dropout"), self.device, self._draws), autocast(precision, self.device):
            activations = self.front(images)
        view = View(activations.detach(), self.geometry.prefix, self.attention.read if self.attention else _blind)
        with torch.no_grad():
            plan = self.cut.reducer.plan(view, key.at("plan"))
            targets = plan.targets(labels, self.geometry.classes)
        smashed = plan.reduce(activations)
        packed = self.cut.pack_step(plan, smashed, targets, len(labels), key.at("rounding"), round, client, step)
        reply = stream.exchange(packed.buffer)
        frame = self.cut.unpack_gradient(reply, smashed)
        smashed.backward(frame.tensors["cut_gradient"].to(smashed.dtype))
        return float(frame.meta["loss"]), packed.total, len(reply)


def _blind() -> Tensor:
    raise RuntimeError("a reducer that reads attention must set needs_attention")


def _end(stream: Stream, client: int, round: int, step: int, up: int, down: int) -> None:
    packed = pack("end", round, client, step, {}, {"up": up, "down": down})
    done = unpack(stream.exchange(packed.buffer), {"done": {}}, max_bytes=1 << 16)
    if done.step != step:
        raise WireError(f"the end of step {step} was answered with step {done.step}")


_workers: dict[str, Worker] = {}
_lock = Lock()


def worker_for(text: str) -> Worker:
    """Return this process's worker for a scenario (its YAML); only the latest one is kept."""
    with _lock:
        if text not in _workers:
            _workers.clear()
            _workers[text] = Worker(Scenario.parse(text))
        return _workers[text]
