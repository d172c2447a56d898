"""With nothing lossy on the way, split federated training is whole-model training."""

import pytest
import torch
from helpers import PLAIN, small
from safetensors.torch import load_file
from torch import nn

from splitfed import simulate
from splitfed.data.batches import batches
from splitfed.data.dataset import load
from splitfed.model.build import build, pixel_stats
from splitfed.seeds import Key


def whole_model(scenario) -> dict[str, torch.Tensor]:
    """Train the unsplit model as a plain PyTorch user would: two optimisers, over the same parameters and batches, one
    client after another, and each begins with a front optimiser of its own."""
    torch.set_num_threads(1)  # as the scenario does; sums of several threads differ in their last bits
    key, training, federation = Key(scenario.seed), scenario.training, scenario.federation
    data = load(scenario.data, scenario.model.image_size, federation.clients, key.at("data"))
    vit = build(scenario.model, len(data.classes), key=key.at("model")).train()
    mean, std = pixel_stats(scenario.model)
    front_names = ("cls_token", "pos_embed", "patch_embed", *(f"blocks.{i}." for i in range(scenario.model.cut)))
    front = [p for name, p in vit.named_parameters() if name.startswith(front_names)]
    back = [p for name, p in vit.named_parameters() if not name.startswith(front_names)]
    heads = [vit.head.weight, vit.head.bias] if training.head_lr else []
    rest = [p for p in back if all(p is not head for head in heads)]
    server = training.server.optimiser.build([{"params": rest}, {"params": heads}], training.server.weight_decay)
    for number in range(1, federation.rounds + 1):
        factor = training.server.schedule.factor(number, federation.rounds)
        for group, lr in zip(server.param_groups, (training.server.optimiser.lr, training.head_lr or 0.0), strict=True):
            group["lr"] = lr * factor
        for one in torch.randperm(federation.clients, generator=key.at("cohort", number).generator()).tolist():
            client = training.client.optimiser.build(front, training.client.weight_decay)
            for batch in batches(
                data.train, data.partitions[one], training.batch_size, key.at("batches", number, one), mean=mean,
                std=std, augment=scenario.data.augment, workers=0, epochs=federation.local_epochs,
                steps=federation.local_steps,
            ):  # fmt: skip
                loss = nn.functional.cross_entropy(vit(batch.images), batch.labels)
                loss.backward()
                for side, parameters, optimiser in ((training.client, front, client), (training.server, back, server)):
                    if side.clip is not None:
                        nn.utils.clip_grad_norm_(parameters, side.clip)
                    optimiser.step()
                    optimiser.zero_grad()
    return vit.state_dict()


@pytest.mark.parametrize("mode", ["sl", "sfl-v1", "sfl-v2"])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["training.client.optimiser={kind: sgd, lr: 0.05, momentum: 0.9}",
         "training.server.optimiser={kind: sgd, lr: 0.02, momentum: 0.5, nesterov: true}"],
        ["training.client.clip=0.1", "training.server.clip=0.2", "training.server.weight_decay=0.01"],
        ["data.augment=flip", "federation.local_epochs=null", "federation.local_steps=7"],
        ["federation.rounds=3"],
        ["federation.rounds=3", "training.head_lr=1e-2", "training.server.schedule=cosine"],
    ],
    ids=["adam", "sgd", "clip", "steps", "rounds", "head"],
)  # fmt: skip
def test_one_client_equals_whole_model(mode, overrides, tmp_path):
    scenario = small(*PLAIN, "federation.clients=1", "federation.rounds=1", f"federation.mode={mode}", *overrides)
    assert_whole(scenario, tmp_path)


def test_split_learning_in_turn_equals_whole_model(tmp_path):
    """Whatever the number of clients: front and back see all mini-batches one after another."""
    assert_whole(small(*PLAIN, "federation.mode=sl", "training.client.clip=0.1"), tmp_path)


def assert_whole(scenario, runs) -> None:
    result = simulate(scenario, runs=runs)
    found = load_file(result.folder / "checkpoints" / f"round-{scenario.federation.rounds:06d}" / "model.safetensors")
    expected = whole_model(scenario)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_front_is_handed_on_past_a_client_whose_reply_is_refused(tmp_path, monkeypatch):
    """The next one goes on where the one before it stopped, and the last one's front is the round's."""
    from splitfed.clients.worker import Worker
    from splitfed.server.cohort import train as cohort
    from splitfed.server.weights.grid import refusal

    train, checked, order, began, ended = Worker.train, cohort.checked, [], {}, {}

    def trained(self, client, round, weights, *rest):
        order.append(client)
        began[client] = {name: tensor.clone() for name, tensor in weights.items()}
        done = train(self, client, round, weights, *rest)
        ended[client] = {name: tensor.clone() for name, tensor in done.weights.items()}
        return done

    def second_refused(reply, *known):
        return refusal(reply, "no") if len(order) == 2 else checked(reply, *known)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "train", trained)
        patch.setattr(cohort, "checked", second_refused)
        result = simulate(small(*PLAIN, "federation.mode=sl", "federation.rounds=1"), runs=tmp_path)
    first, second, third = order
    found = load_file(result.folder / "checkpoints" / "round-000001" / "model.safetensors")
    assert not all(torch.equal(ended[first][name], ended[second][name]) for name in ended[first])
    for name, tensor in ended[first].items():
        assert torch.equal(began[third][name], tensor), name
        assert torch.equal(found[name], ended[third][name]), name
