"""A client's part in federated evaluation: the model as it is runs on the images that the client holds out.

The server's part of it runs there and says how many it got right; where labels are private it returns what the tail
goes on from. A client that holds the whole model needs nobody.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from splitfed.clients.connect import Reach
from splitfed.clients.worker import Worker, end
from splitfed.data.batches import Batch, batches
from splitfed.errors import WireError
from splitfed.model.forward import autocast, in_chunks, join_chunks
from splitfed.split.evaluation import Evaluated, EvaluationCut, evaluated, mean
from splitfed.wire.channel import Invitation, Stream
from splitfed.wire.frame import Place


def evaluate_held_out(
    worker: Worker, client: int, round: int, weights: dict[str, Tensor], invitation: Invitation, reach: Reach,
    states: Path,
) -> tuple[float, float, int]:  # fmt: skip
    """Evaluate with these `weights` on a client's held-out images, against the split server that invites it; return
    mean loss, accuracy, and the number of images.

    Nothing of the client's training changes. Raises WireError where it holds out none, or the server's replies are not
    what was asked for, Diverged for a loss or activations that are not finite, and CodecError for what else cannot be
    sent.
    """
    scenario, rows = worker.scenario, worker.holding.held_out(client)
    if not len(rows):
        raise WireError(f"client {client} is asked to evaluate, but holds out no images")
    worker.load(weights, states, client, worker.own(states, client, round + 1))  # this round's too
    cut = EvaluationCut(worker.cuts.under(worker.terms(client)), worker.front.encoder)
    found: list[Evaluated] = []
    step = up = down = 0
    worker.part.eval()
    try:
        with worker.stream(invitation, client, round, reach) as stream:
            for batch in batches(
                worker.holding.images, rows, scenario.training.batch_size, worker.key, shuffle=False, epochs=1,
                workers=scenario.data.workers, mean=worker.mean, std=worker.std,
            ):  # fmt: skip
                step += 1
                made, sent, received = _one(worker, cut, stream, batch.to(worker.device), Place(round, client, step))
                made.check(f"the evaluation of {Place(round, client, step)}", len(batch.labels))
                found.append(made)
                up, down = up + sent, down + received
            if stream is not None:
                end(stream, Place(round, client, step + 1), up, down)
    finally:
        worker.part.train()
    return *mean(found, len(rows)), len(rows)


def _one(
    worker: Worker, cut: EvaluationCut, stream: Stream | None, batch: Batch, place: Place
) -> tuple[Evaluated, int, int]:  # fmt: skip
    """Return what the model makes of a mini-batch, and the bytes up and down."""

    @torch.no_grad()
    def run(module: nn.Module, inputs: Tensor) -> Tensor:
        with autocast(worker.scenario.training.precision, worker.device):
            return join_chunks([*in_chunks(module, worker.chunk, inputs)])

    smashed = run(worker.front.encoder, run(worker.front, batch.images))
    if stream is None:
        return evaluated(run(worker.part.beside, smashed), batch.labels), 0, 0
    key = worker.key.at("evaluation", *place)
    packed = cut.pack(smashed, batch.labels, key, place)
    reply = stream.exchange(packed.buffer)
    if worker.cut.private:
        features = cut.unpack_features(reply, place.step, len(batch.labels), cut.lengths(smashed, key))
        return evaluated(run(worker.part.beside, features), batch.labels), packed.total, len(reply)
    return cut.unpack_answer(reply, place.step, len(batch.labels)), packed.total, len(reply)
