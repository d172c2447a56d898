"""Clients of a deployment that send what is within bounds, so that nothing goes on with what comes of it: the round
starts again without them, and no run ends for it."""

import sys
from dataclasses import replace

import pytest
import torch
from flwr.app import Error, Message
from helpers import few, small, table

from splitfed import simulate
from splitfed.clients.worker import Worker
from splitfed.engines.inline import InlineGrid
from splitfed.errors import Diverged, StrategyError
from splitfed.run.checkpoint import Checkpoints
from splitfed.run.tree import not_finite
from splitfed.server import app, rounds
from splitfed.server.cohort.refusals import Refusals
from splitfed.server.cohort.suspects import Suspects, standing
from splitfed.server.memory.memory import Memory
from splitfed.split.cut import Cut
from splitfed.wire.messages import DIVERGED

MOMENTUM = "federation.strategy={kind: FedAvgM, server_momentum: 0.9}"


@pytest.fixture
def pauses(monkeypatch):
    """Let a simulation go on as a deployment does, and return for how long it waits each time."""
    lent, deliver, pauses = app.runtime, InlineGrid.deliver, []
    monkeypatch.setattr(app, "runtime", lambda: replace(lent(), waits=True))

    def as_deployed(grid, message):
        try:
            return deliver(grid, message)
        except Diverged as error:
            return Message(Error(DIVERGED, str(error)), reply_to=message)

    def sleep(seconds):
        pauses.append(seconds)
        assert len(pauses) < 50

    monkeypatch.setattr(InlineGrid, "deliver", as_deployed)
    monkeypatch.setattr(rounds.time, "sleep", sleep)
    return pauses


def lie(monkeypatch, by, names="", who=(1,), since=2):
    """Let clients shift those of their weights whose names hold `names`, from a round on; return the tries."""
    honest, tries = Worker.train, []

    def train(worker, client, round, *more, **named):
        done = honest(worker, client, round, *more, **named)
        tries.append((round, client))
        if client not in who or round < since:
            return done
        return replace(done, weights={n: t + by if names in n else t for n, t in done.weights.items()})

    monkeypatch.setattr(Worker, "train", train)
    return tries


def run(tmp_path, *changes, rounds=6):
    folder = simulate(small(f"federation.rounds={rounds}", "checkpoints.keep=9", *changes), runs=tmp_path).folder
    for round in Checkpoints(folder).rounds():
        assert list(not_finite(Checkpoints(folder).read(round).states)) == []
    return table(folder / "metrics.csv"), (folder / "log.txt").read_text()


@pytest.mark.parametrize("mode", few(["sl", "sfl-v1", "sfl-v2", "psl", "fl"], quick=2))
def test_a_front_at_the_bound_costs_a_try_and_three_such_its_sender_the_run(mode, pauses, tmp_path, monkeypatch):
    lie(monkeypatch, 900)
    found, log = run(tmp_path, f"federation.mode={mode}", *(["training.server={}"] if mode == "fl" else []))
    assert all(int(row["clients"]) >= 1 for row in found)
    if mode != "fl":  # where nothing crosses a cut, it is bad and not absurd
        assert all(float(row["eval_loss"]) < 3 for row in found)
        assert [row["clients"] for row in found] == ["3"] + ["2"] * 5
        assert "round 4: client 1 is left out for the rest of the run" in log


@pytest.mark.parametrize("strategy", [MOMENTUM, "federation.strategy={kind: FedAdam, eta: 0.1}"])
def test_what_momentum_keeps_of_poison_ends_nothing(strategy, pauses, tmp_path, monkeypatch):
    """Each front is sound, and so is each aggregate at first: the strategy then carries them beyond the bound."""
    tries = lie(monkeypatch, 990, "cls_token")
    found, _ = run(tmp_path, strategy)
    assert [row["round"] for row in found] == list("123456")
    assert all(int(row["clients"]) >= 1 for row in found)
    assert len(tries) < 6 * 3 * 3


def test_whoever_poisons_alone_in_a_round_makes_way_for_another(pauses, tmp_path, monkeypatch):
    lie(monkeypatch, 900, since=1)
    found, log = run(tmp_path, "federation.cohort=1", rounds=8)
    assert [row["clients"] for row in found] == ["1"] * 8
    assert all(float(row["eval_loss"]) < 3 for row in found)
    assert "client 1 is left out for the rest of the run" in log
    assert max(pauses) < 1


def test_two_of_three_who_poison_are_found_out(pauses, tmp_path, monkeypatch):
    lie(monkeypatch, 900, who=(0, 2))
    found, log = run(tmp_path)
    assert [row["clients"] for row in found] == ["3"] + ["1"] * 5
    assert all(f"client {liar} is left out for the rest of the run" in log for liar in (0, 2))


STRICT = """
from flwr.serverapp.strategy import FedAvg

class Strict(FedAvg):
    most: float

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def aggregate_train(self, server_round, replies):
        if any(abs(a.numpy()).max() > self.most for reply in replies for a in reply.content["arrays"].values()):
            raise ValueError("a front out of all bounds")
        return super().aggregate_train(server_round, replies)
"""


@pytest.fixture
def strict(tmp_path, monkeypatch):
    (tmp_path / "strict.py").write_text(STRICT)
    monkeypatch.syspath_prepend(tmp_path)
    yield "federation.strategy={kind: 'strict:Strict', most: %g}"
    sys.modules.pop("strict", None)


def test_a_strategy_that_raises_at_poison_ends_nothing(strict, pauses, tmp_path, monkeypatch):
    lie(monkeypatch, 900)
    found, log = run(tmp_path, strict % 100)
    assert [row["clients"] for row in found] == ["3"] + ["2"] * 5
    assert "client 1 is left out for the rest of the run" in log


def test_a_strategy_that_raises_whoever_has_a_part_ends_the_run(strict, pauses, tmp_path):
    with pytest.raises(StrategyError, match=r"Strict: aggregate_train of round 1: ValueError: a front out of all"):
        run(tmp_path, strict % 1e-6)
    assert not [pause for pause in pauses if pause >= 1]


def test_gradients_that_break_a_back(pauses, tmp_path, monkeypatch):
    honest = Cut.pack_backward
    lies = lambda place: place.client == 1 and place.round >= 2  # noqa: E731
    monkeypatch.setattr(Cut, "pack_backward", lambda cut, gradient, key, place, *rest: honest(
        cut, torch.sign(gradient) * 3e3 if lies(place) else gradient, key, place, *rest))  # fmt: skip
    found, _ = run(
        tmp_path, "federation.labels=private", "model.tail=0", "federation.mode=sfl-v1",
        "training.server.optimiser={kind: sgd, lr: 0.1}",
    )  # fmt: skip
    assert [row["clients"] for row in found] == ["3"] + ["2"] * 5
    assert all(float(row["eval_loss"]) < 3 for row in found)


def test_where_nobody_else_is_there_the_run_waits_and_goes_one_checkpoint_back(pauses, tmp_path, monkeypatch):
    honest, tries = Worker.train, []

    def train(worker, client, round, *more, **named):
        done = honest(worker, client, round, *more, **named)
        tries.append(round)
        by = 900 if 2 < len(tries) < 6 else 0
        return replace(done, weights={name: tensor + by for name, tensor in done.weights.items()})

    monkeypatch.setattr(Worker, "train", train)
    found, log = run(tmp_path, "federation.clients=1", rounds=3)
    assert [row["clients"] for row in found] == ["1"] * 3
    assert tries == [1, 2, 3, 3, 3, 3]
    assert [pause for pause in pauses if pause >= 1] == [1, 2, 4]
    assert [log.count(f"with the model of round {round};") for round in range(3)] == [2, 1, 0]
    assert "for the rest of the run" not in log


def test_passes_over_memory_go_on_to_their_end(pauses, tmp_path, monkeypatch):
    def recall(memory, round, lr, on_step):
        raise Diverged(f"round {round}", "the loss is NaN or infinite")

    monkeypatch.setattr(Memory, "recall", recall)
    found, log = run(tmp_path, "phases=[{rounds: 1, kind: gradient}, {kind: frozen}]", "memory={disk: 2MB}", rounds=5)
    assert [row["phase"] for row in found] == ["gradient", "frozen", "memory", "memory", "memory"]
    assert log.count("is dropped") == 3


class FakeMemory:
    """Memory in which of each client this is the largest number."""

    def __init__(self, **most):
        self.most, self.store, self.forgotten = {int(name[1:]): number for name, number in most.items()}, self, []

    def largest(self):
        return self.most

    def forget(self, clients, round):
        self.forgotten += clients


def test_memory_forgets_who_stands_out():
    memory, refusals = FakeMemory(c0=3.0, c1=9e5, c2=4.0), Refusals()
    for round in (5, 6, 7):
        Suspects(refusals).forget(round, memory)
    assert memory.forgotten == [1, 1, 1]
    assert refusals.out == {1}
    for honest in (FakeMemory(c0=3.0, c1=20.0), FakeMemory(c0=9e5), FakeMemory()):
        Suspects(refusals).forget(8, honest)
        assert honest.forgotten == []


def test_standing_is_beside_the_middle_of_the_others():
    assert standing([{0: 1.0, 1: 50.0, 2: 2.0}], [0, 1, 2]) == {0: 0.5, 1: 50.0, 2: 2.0}
    assert standing([{0: 1.0, 1: 1.0}, {0: 8.0, 1: 2.0}], [0, 1, 2]) == {0: 4.0, 1: 1.0, 2: 0.0}
    assert standing([{4: 7.0}], [4]) == {4: 0.0}


@pytest.mark.parametrize("clients", [2, 3, 7, 16])
@pytest.mark.parametrize("liar", [0, 1])
def test_tries_are_few_even_where_nobody_stands_out(clients, liar):
    """A try is sound without the liar, or with nobody: halving comes upon it, whoever ranks first."""
    suspects, tries, everyone = Suspects(Refusals()), 0, set(range(clients))
    while liar in (there := everyone - suspects.out):
        suspects.blame(3, {client: 1 + client / 100 for client in there})
        tries += 1
        assert everyone - suspects.out, "nobody was left"
    assert tries <= 2 * clients.bit_length()


def test_where_none_is_sound_alone_all_have_been_tried():
    suspects, everyone, tries = Suspects(Refusals()), set(range(6)), 0
    while there := everyone - suspects.out:
        suspects.blame(3, dict.fromkeys(there, 1.0))
        tries += 1
        assert tries < 30
    suspects.acquit(3)
    assert suspects.out == set()
