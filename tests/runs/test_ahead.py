"""Clients that are ahead of the server's answers: against a plain loop that keeps old weights, and against nothing
being ahead."""

from collections import deque
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers import PLAIN, small, table
from models import newest
from torch import nn

from splitfed import Scenario, simulate
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.errors import ScenarioError
from splitfed.model.build import build, pixel_stats, split
from splitfed.model.forward import keyed_rng
from splitfed.seeds import Key

ADAM = "training.client.optimiser={kind: adam, lr: 3e-3}"
SGD = "training.client.optimiser={kind: sgd, lr: 0.05, momentum: 0.9}"
ALONE = ["federation.clients=1", "federation.rounds=2", "federation.local_epochs=2"]


def behind(scenario: Scenario, ahead: int) -> dict[str, torch.Tensor]:
    """Train one client's front and the back as said: each mini-batch passes through a whole copy of the front, made
    when it goes out, whose gradient moves the front of today when `ahead` later ones have gone out too."""
    torch.set_num_threads(1)
    key, training, federation = Key(scenario.seed), scenario.training, scenario.federation
    data = load(scenario.data, scenario.model.image_size, federation.clients, key.at("data"))
    front, back = split(build(scenario.model, len(data.classes), key=key.at("model")).train(), scenario.model.cut)
    mean, std = pixel_stats(scenario.model)
    server = training.server.optimiser.build(list(back.parameters()), training.server.weight_decay)
    drops = bool(scenario.model.args.get("pos_drop_rate"))
    for number in range(1, federation.rounds + 1):
        client = training.client.optimiser.build(list(front.parameters()), training.client.weight_decay)
        under_way: deque[tuple[nn.Module, torch.Tensor, torch.Tensor]] = deque()

        def come(under_way=under_way, client=client) -> None:
            copy, sent, gradient = under_way.popleft()
            sent.backward(gradient)
            for today, then in zip(front.parameters(), copy.parameters(), strict=True):
                today.grad = then.grad
            if training.client.clip is not None:
                nn.utils.clip_grad_norm_(front.parameters(), training.client.clip)
            client.step()
            client.zero_grad()

        shuffled = batches(
            data.train, data.partitions[0], training.batch_size, key.at("batches", number, 0), mean=mean, std=std,
            epochs=federation.local_epochs,
        )  # fmt: skip
        for step, batch in enumerate(shuffled, 1):
            copy = deepcopy(front)
            with keyed_rng(key.at("step", number, 0, step, "dropout"), torch.device("cpu"), drops):
                sent = copy(batch.images)
            arrived = sent.detach().requires_grad_()
            nn.functional.cross_entropy(back(arrived), batch.labels).backward()
            server.step()
            server.zero_grad()
            under_way.append((copy, sent, arrived.grad))
            if len(under_way) > ahead:
                come()
        while under_way:
            come()
    return {**front.state_dict(), **back.state_dict()}


@pytest.mark.parametrize("ahead", [1, 2, 100])
@pytest.mark.parametrize(
    "changes",
    [[ADAM], [SGD], [ADAM, "training.client.clip=0.1", "training.client.weight_decay=0.01"],
     [SGD, "model.args.pos_drop_rate=0.3"]],
    ids=["adam", "sgd", "clip", "dropout"],
)  # fmt: skip
def test_gradients_are_of_the_weights_then_and_move_those_of_today(ahead, changes, tmp_path):
    scenario = small(*PLAIN, *ALONE, f"training.ahead={min(ahead, 64)}", *changes)
    found, expected = newest(simulate(scenario, runs=tmp_path).folder), behind(scenario, ahead)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
