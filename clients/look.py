"""A client's part in federated evaluation: the front runs on the images that the client holds out, and the server says
how many the back got right."""

from pathlib import Path

import torch
from torch import Tensor

from splitfed.batches import batches
from splitfed.channel import Invitation
from splitfed.clients.dial import Reach, connect
from splitfed.clients.worker import Worker, end
from splitfed.errors import WireError
from splitfed.look import Looks, Seen, mean
from splitfed.precision import autocast


def look(
    worker: Worker, client: int, round: int, weights: dict[str, Tensor], invitation: Invitation, reach: Reach,
    states: Path,
) -> tuple[float, float, int]:  # fmt: skip
    """Evaluate the front with these `weights` on a client's held-out images, against the split server that invites it;
    return mean loss, accuracy, and the number of images.

    Nothing of the client's training changes. Raises WireError where it holds out none, or the server's replies are not
    what was asked for, and CodecError for numbers that cannot be sent.
    """
    scenario, rows = worker.scenario, worker.holding.held_out(client)
    if not len(rows):
        raise WireError(f"client {client} is asked to evaluate, but holds out no images")
    worker.load(weights, states, client)
    looks = Looks(worker.cut, worker.front.encoder)
    found: list[Seen] = []
    step = up = down = 0
    worker.held.eval()
    try:
        with connect(invitation, client, round, reach, looks.most_bytes) as stream:
            for batch in batches(
                worker.holding.images, rows, scenario.training.batch_size, worker.key, shuffle=False, epochs=1,
                workers=scenario.data.workers, mean=worker.mean, std=worker.std,
            ):  # fmt: skip
                step += 1
                with torch.inference_mode(), autocast(scenario.training.precision, worker.device):
                    smashed = worker.front.encoder(worker.front(batch.images.to(worker.device)))
                key = worker.key.at("evaluation", round, client, step)
                packed = looks.pack(smashed, batch.labels.to(worker.device), key, round, client, step)
                reply = stream.exchange(packed.buffer)
                found.append(looks.unpack_answer(reply, step, len(batch.labels)))
                up, down = up + packed.total, down + len(reply)
            end(stream, client, round, step + 1, up, down)
    finally:
        worker.held.train()
    return *mean(found, len(rows)), len(rows)
