"""A run in which one client, or what comes of all, is finite and absurd: it goes on with the others, and no checkpoint
is spoilt."""

from dataclasses import replace

import pytest
import torch
from helpers import few, small, table

from splitfed import simulate
from splitfed.clients.worker import Worker
from splitfed.errors import Diverged
from splitfed.run.checkpoint import Checkpoints
from splitfed.run.tree import not_finite
from splitfed.server import app, rounds
from splitfed.server.weights.strategy import Aggregation
from splitfed.split.cut import Cut
from splitfed.split.evaluation import EvaluationCut

THREE = ["federation.rounds=3", "checkpoints.keep=9"]
PRIVATE = ["federation.labels=private", "model.tail=0"]


def liar(place) -> bool:
    return place.client == 1 and place.round >= 2


def spoil_smashed(monkeypatch, factor=1e20) -> None:
    honest = Cut.pack_step
    monkeypatch.setattr(Cut, "pack_step", lambda cut, plan, smashed, targets, examples, key, place, visit: honest(
        cut, plan, smashed * (factor if liar(place) else 1), targets, examples, key, place))  # fmt: skip


def spoil_gradient(monkeypatch) -> None:
    honest = Cut.pack_backward
    monkeypatch.setattr(Cut, "pack_backward", lambda cut, gradient, key, place, *rest: honest(
        cut, gradient + (1e20 if liar(place) else 0), key, place, *rest))  # fmt: skip


def spoil_reply(monkeypatch, change, who=(1,), rounds=(2, 3)) -> None:
    honest = Worker.train

    def train(worker, client, round, *more, **named):
        done = honest(worker, client, round, *more, **named)
        return change(done) if client in who and round in rounds else done

    monkeypatch.setattr(Worker, "train", train)


def huge_weights(done):
    return replace(done, weights={name: tensor + 1e30 for name, tensor in done.weights.items()})


def all_finite(folder) -> None:
    checkpoints = Checkpoints(folder)
    for round in checkpoints.rounds():
        assert list(not_finite(checkpoints.read(round).states)) == []


def runs(folder) -> list[dict[str, str]]:
    all_finite(folder)
    return table(folder / "metrics.csv")


@pytest.mark.parametrize(
    "changes",
    few(
        [["federation.mode=sl"], ["federation.mode=sfl-v1"], ["federation.mode=sfl-v2"], ["federation.mode=psl"]],
        quick=2,
    ),
    ids=lambda changes: changes[0],
)
def test_absurd_activations_are_as_if_their_client_had_vanished(changes, tmp_path, monkeypatch):
    trace = tmp_path / "trace.csv"
    trace.write_text("client,round,vanishes_after\n1,2,0\n1,3,0\n")
    gone = [f"federation.availability={{kind: trace, file: {trace}}}"]
    expected = runs(simulate(small(*THREE, *changes, *gone), runs=tmp_path / "gone").folder)
    spoil_smashed(monkeypatch)
    found = runs(simulate(small(*THREE, *changes), runs=tmp_path / "spoilt").folder)
    for key in ("train_loss", "eval_loss", "eval_accuracy", "clients", "lost"):
        assert [row[key] for row in found] == [row[key] for row in expected]


@pytest.mark.parametrize("mode", ["sl", "sfl-v1"])
def test_an_absurd_gradient_of_private_labels(mode, tmp_path, monkeypatch):
    spoil_gradient(monkeypatch)
    found = runs(simulate(small(*THREE, *PRIVATE, f"federation.mode={mode}"), runs=tmp_path).folder)
    assert [row["lost"] for row in found] == ["0", "1", "1"]


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        (huge_weights, ["federation.mode=fl", "training.server={}"]),
        (huge_weights, ["compression.front_weights.delta=true"]),
        (lambda done: replace(done, loss=1.7e308), []),
        (lambda done: replace(done, loss=-1e307), ["federation.strategy=QFedAvg"]),
    ],
    ids=["weights", "differences", "loss", "negative loss"],
)
def test_an_absurd_reply(change, changes, tmp_path, monkeypatch):
    spoil_reply(monkeypatch, change)
    if "QFedAvg" in str(changes):
        changes = ["federation.strategy={kind: QFedAvg, client_learning_rate: 0.1}"]
    found = runs(simulate(small(*THREE, *changes), runs=tmp_path).folder)
    assert [row["lost"] for row in found] == ["0", "1", "1"]
    assert all(float(row["eval_loss"]) < 3 for row in found)


def test_an_absurd_evaluation_is_left_out(tmp_path, monkeypatch):
    honest = EvaluationCut.pack
    monkeypatch.setattr(EvaluationCut, "pack", lambda cut, smashed, labels, key, place: honest(
        cut, smashed * (1e20 if liar(place) else 1), labels, key, place))  # fmt: skip
    folder = simulate(small(*THREE, "evaluation.held_out=0.2"), runs=tmp_path).folder
    assert [row["lost"] for row in runs(folder)] == ["0", "0", "0"]
    scores = table(folder / "clients.csv")
    assert [(row["round"], row["client"]) for row in scores] == [
        ("1", "0"), ("1", "1"), ("1", "2"), ("2", "0"), ("2", "2"), ("3", "0"), ("3", "2"),
    ]  # fmt: skip


def spoil_aggregate(monkeypatch, *rounds: int) -> None:
    """Let what a strategy makes of honest fronts be absurd."""
    honest = Aggregation.aggregate

    def aggregate(strategy, round, replies, arrays):
        made = honest(strategy, round, replies, arrays)
        if round in rounds:
            for name in made:
                made[name] = type(made[name])(made[name].numpy() * 1e30)
        return made

    monkeypatch.setattr(Aggregation, "aggregate", aggregate)


@pytest.mark.parametrize("mode", ["sfl-v1", "psl"])
def test_a_round_whose_aggregate_is_absurd_is_dropped_whole(mode, tmp_path, monkeypatch, caplog):
    """Model, optimiser and what the strategy keeps are as before it, its bytes are those of clients that were lost."""
    spoil_aggregate(monkeypatch, 2)
    folder = simulate(small(*THREE, f"federation.mode={mode}", "federation.strategy=FedAdam"), runs=tmp_path).folder
    found = runs(folder)
    assert [(row["clients"], row["lost"], row["train_loss"] == "") for row in found] == [
        ("3", "0", False), ("0", "3", True), ("3", "0", False),
    ]  # fmt: skip
    assert found[0]["eval_loss"] == found[1]["eval_loss"] != found[2]["eval_loss"]
    assert int(found[1]["cut_bytes"]) > int(found[0]["cut_bytes"])
    before, after = (Checkpoints(folder).read(round).states for round in (1, 2))
    assert before.keys() == after.keys() >= {"model", "optimiser", "strategy"}
    for name in ("model", "optimiser"):
        assert before[name].keys() == after[name].keys()
        assert all(torch.equal(tensor, after[name][key]) for key, tensor in before[name].items())
    assert str(before["strategy"]) == str(after["strategy"])
    assert caplog.text.count("round 2 is dropped") == 1


def test_a_second_dropped_round_ends_the_run_with_the_first_ones_line(tmp_path, monkeypatch):
    spoil_aggregate(monkeypatch, 2, 3)
    with pytest.raises(Diverged, match=r"^round 2: the training diverges, .* NaN or infinite: lower training"):
        simulate(small("federation.rounds=5", "checkpoints.keep=9"), runs=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert Checkpoints(folder).rounds() == [0, 1, 2]
    assert [row["clients"] for row in runs(folder)] == ["3", "0"]


@pytest.mark.parametrize("rounds", [1, 4])
def test_where_every_client_is_refused_the_run_ends(rounds, tmp_path, monkeypatch):
    spoil_reply(monkeypatch, huge_weights, who=(0, 1, 2), rounds=(1, 2, 3, 4))
    with pytest.raises(Diverged, match=r"^round 1, client 0: the training diverges, .*: lower training\.client"):
        simulate(small(f"federation.rounds={rounds}"), runs=tmp_path)


def test_one_whom_a_round_has_alone_does_not_end_the_run(tmp_path, monkeypatch):
    spoil_reply(monkeypatch, huge_weights, who=(1,), rounds=range(1, 7))
    changes = ["federation.rounds=6", "federation.cohort=1", "federation.local_epochs=null", "federation.local_steps=1"]
    found = runs(simulate(small(*changes), runs=tmp_path).folder)
    assert {row["clients"] for row in found} == {"0", "1"}


def test_in_a_deployment_one_who_is_drawn_alone_again_and_again_ends_it_for_nobody(tmp_path, monkeypatch):
    lent = app.runtime
    monkeypatch.setattr(app, "runtime", lambda: replace(lent(), waits=True))
    spoil_reply(monkeypatch, huge_weights, who=(0,), rounds=range(1, 7))
    folder = simulate(small("federation.clients=2", "federation.cohort=1", "federation.rounds=6"), runs=tmp_path).folder
    # The seed draws client 0 four times in a row: the other one stands in, and after three of them it is left out.
    assert [(row["clients"], row["lost"]) for row in runs(folder)] == [("1", "0")] * 6
    assert "round 3: client 0 is left out" in (folder / "log.txt").read_text()


def test_in_a_deployment_one_who_is_there_alone_is_waited_out(tmp_path, monkeypatch):
    lent, pauses = app.runtime, []
    monkeypatch.setattr(app, "runtime", lambda: replace(lent(), waits=True))
    monkeypatch.setattr(rounds.time, "sleep", pauses.append)
    honest, tries = Worker.train, []

    def train(worker, client, round, *more, **named):
        done = honest(worker, client, round, *more, **named)
        tries.append(round)
        return huge_weights(done) if len(tries) < 4 else done

    monkeypatch.setattr(Worker, "train", train)
    folder = simulate(small("federation.clients=1", "federation.rounds=2"), runs=tmp_path).folder
    assert [(row["clients"], row["lost"]) for row in runs(folder)] == [("1", "0")] * 2
    assert tries == [1, 1, 1, 1, 2]
    assert [pause for pause in pauses if pause >= 1] == [1, 2, 4]


def test_clipping_bounds_what_one_client_moves(tmp_path, monkeypatch):
    """A poisoned update is within bounds, and a hundred times as long as the clip."""
    far = lambda done: replace(done, weights={name: tensor + 10 for name, tensor in done.weights.items()})  # noqa: E731
    spoil_reply(monkeypatch, far, rounds=(2,))
    moved = {}
    for clip in ("null", "0.5"):
        scenario = small("federation.rounds=2", "checkpoints.keep=9", f"federation.clip.front_weights={clip}")
        folder = simulate(scenario, runs=tmp_path).folder
        one, two = (Checkpoints(folder).read(round).states["model"] for round in (1, 2))
        front = [name for name in one if name.startswith(("patch_embed", "blocks.0", "cls_token", "pos_embed"))]
        moved[clip] = float(torch.cat([(two[name] - one[name]).flatten() for name in front]).norm())
    assert moved["0.5"] <= 0.5
    assert moved["null"] > 50
