"""Who trains which back: one shared, or copies that are averaged."""

import pytest
import torch
from torch import nn

from splitfed.model.optim import read_optimiser
from splitfed.model.optim_settings import SideConfig
from splitfed.server.back.pools import PerClient, Shared, Trainer

SIDE = SideConfig.model_validate({"optimiser": {"kind": "adam", "lr": 0.01}})


def trainer() -> Trainer:
    torch.manual_seed(0)
    return Trainer(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), SIDE)


def teach(one: Trainer, seed: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        one.back(torch.randn(5, 3, generator=generator)).pow(2).sum().backward()
        one.update()


def weights(one: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in one.back.state_dict().items()}


def test_copies_are_averaged_by_examples():
    """Against copies trained apart and averaged by hand: weights, Adam's moments and its step count."""
    pool, lessons = PerClient(trainer()), {0: (10, 2), 1: (30, 5), 2: (20, 1)}
    pool.open_round(0.01, [0, 1, 2, 9])
    for client, (examples, steps) in lessons.items():
        copy = pool.open(client)
        teach(copy, client, steps)
        pool.commit(client, copy, examples)
    pool.close_round()

    apart = {}
    for client, (_, steps) in lessons.items():
        apart[client] = trainer()
        teach(apart[client], client, steps)
    for name, tensor in weights(pool.trainer).items():
        mean = sum(weights(apart[c])[name].double() * n for c, (n, _) in lessons.items()) / 60
        torch.testing.assert_close(tensor, mean.float(), rtol=1e-6, atol=1e-7)
    found = read_optimiser(pool.trainer.optimiser)
    for number, moments in found.items():
        for name, tensor in moments.items():
            mean = (
                sum(read_optimiser(apart[c].optimiser)[number][name].double() * n for c, (n, _) in lessons.items()) / 60
            )
            torch.testing.assert_close(tensor, mean.float(), rtol=1e-6, atol=1e-12)
    assert found[0]["step"] == pytest.approx((10 * 2 + 30 * 5 + 20 * 1) / 60)


def test_one_copy_is_taken_over_bit_for_bit():
    pool, alone = PerClient(trainer()), trainer()
    for round in range(3):
        pool.open_round(0.01, [0, 1, 2, 9])
        copy = pool.open(0)
        teach(copy, round, 4)
        pool.commit(0, copy, 37)
        pool.close_round()
        teach(alone, round, 4)
    assert all(torch.equal(weights(pool.trainer)[name], tensor) for name, tensor in weights(alone).items())


def test_every_client_starts_from_the_same_back():
    pool = PerClient(trainer())
    pool.open_round(0.01, [0, 1, 2, 9])
    first = pool.open(0)
    before = weights(first)
    teach(first, 0, 3)
    pool.commit(0, first, 5)
    second = pool.open(1)
    assert second is first  # one copy serves all who train one after another
    assert all(torch.equal(weights(second)[name], tensor) for name, tensor in before.items())
    assert read_optimiser(second.optimiser) == {}


def test_a_lost_client_does_not_count():
    pool, alone = PerClient(trainer()), PerClient(trainer())
    for each in (pool, alone):
        each.open_round(0.01, [0, 1, 2, 9])
    lost = pool.open(9)
    teach(lost, 9, 3)
    pool.drop(9, lost)
    for each in (pool, alone):
        copy = each.open(0)
        teach(copy, 0, 2)
        each.commit(0, copy, 4)
        each.close_round()
    expected = weights(alone.trainer)
    assert all(torch.equal(weights(pool.trainer)[name], tensor) for name, tensor in expected.items())


def test_a_round_without_clients_changes_nothing():
    pool = PerClient(trainer())
    before = weights(pool.trainer)
    pool.open_round(0.01, [0, 1, 2, 9])
    pool.close_round()
    assert all(torch.equal(weights(pool.trainer)[name], tensor) for name, tensor in before.items())


def test_clients_that_train_at_once_have_copies_of_their_own():
    pool = PerClient(trainer())
    pool.open_round(0.01, [0, 1, 2, 9])
    assert pool.open(0) is not pool.open(1)


def test_a_shared_back_is_one_and_keeps_what_it_learnt():
    pool = Shared(trainer())
    pool.open_round(0.02, [0, 1])
    one, two = pool.open(0), pool.open(1)
    assert one is two is pool.trainer
    assert one.optimiser.param_groups[0]["lr"] == 0.02
    teach(one, 0, 1)
    learnt = weights(one)
    pool.drop(0, one)
    pool.close_round()
    assert all(torch.equal(weights(pool.trainer)[name], tensor) for name, tensor in learnt.items())


def test_the_average_does_not_depend_on_who_finishes_first():
    """To the last bit, with a client lost and another that never began; copies that came early were waiting."""
    outcomes = []
    for order in ([0, 1, 3], [3, 1, 0], [1, 3, 0]):
        pool = PerClient(trainer())
        pool.open_round(0.01, [0, 1, 2, 3, 4])
        copies = {client: pool.open(client) for client in (0, 1, 3, 4)}
        for client, copy in copies.items():
            teach(copy, client, client + 1)
        pool.drop(4, copies[4])
        for client in order:
            pool.commit(client, copies[client], 7 * client + 3)
        pool.close_round()  # nobody has heard of 2
        outcomes.append(weights(pool.trainer))
    for other in outcomes[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in outcomes[0].items())


def test_a_copy_is_free_again_as_soon_as_its_turn_has_come():
    pool = PerClient(trainer())
    pool.open_round(0.01, [0, 1, 2])
    early, first = pool.open(1), pool.open(0)
    pool.commit(1, early, 5)
    assert pool.open(2) not in (early, first)  # the early copy still waits to be added
    pool.drop(0, None)
    assert pool.open(2) is early
