"""Phases of a run: which round is in which, what a frozen front sends and keeps, and weights that clients load."""

import hashlib
from pathlib import Path

import pytest
import torch
from helpers import few, small, table
from models import newest
from outcomes import outcome
from safetensors.torch import load_file, save_file

from splitfed import simulate
from splitfed.clients.settings import Settings
from splitfed.errors import ModelError, RunError
from splitfed.federation.phases import Frozen, Gradient, phase_of
from splitfed.model.build import build
from splitfed.run.checkpoint import Checkpoints
from splitfed.run.observer import Observer
from splitfed.scenario.places import with_value
from splitfed.seeds import Key
from splitfed.server.weights.strategy import Aggregation

MODES = ["sl", "sfl-v1", "sfl-v2", "psl"]
PHASES = "phases=[{kind: gradient, rounds: 2}, frozen]"
FOUR = ["federation.rounds=4", "checkpoints.keep=9", PHASES]


def sums(folder: Path, **chosen: str) -> dict[tuple[str, ...], int]:
    """Return the bytes sent by round, direction and role, of the rows that are `chosen`."""
    found: dict[tuple[str, ...], int] = {}
    for row in table(folder / "ledger.csv"):
        if all(row[name] == value for name, value in chosen.items()):
            place = row["round"], row["direction"], row["role"]
            found[place] = found.get(place, 0) + int(row["sent_bytes"])
    return found


def front(folder: Path, round: int) -> dict[str, torch.Tensor]:
    state = load_file(Checkpoints(folder).path(round) / "model.safetensors")
    return {n: t for n, t in state.items() if not n.startswith(("blocks.1", "norm", "head"))}


def back(folder: Path, round: int) -> torch.Tensor:
    return load_file(Checkpoints(folder).path(round) / "model.safetensors")["head.weight"]


def test_a_round_is_in_one_phase():
    phases = [Gradient(rounds=2), Frozen(rounds=1), Gradient()]
    assert [phase_of(phases, round).first for round in range(1, 7)] == [1, 1, 3, 4, 4, 4]
    assert [phase_of(phases, round).frozen for round in range(1, 7)] == [False, False, True, False, False, False]
    assert not phase_of((), 5).frozen
    assert phase_of([Gradient(rounds=2), Frozen(rounds=1)], 9).frozen  # beyond the end it is the last


@pytest.mark.parametrize("mode", few(MODES, quick=2))
def test_a_frozen_front_stays_and_neither_gradients_nor_weights_cross(mode, tmp_path):
    folder = simulate(small(*FOUR, f"federation.mode={mode}"), runs=tmp_path, observers=()).folder
    assert [row["phase"] for row in table(folder / "metrics.csv")] == ["gradient", "gradient", "frozen", "frozen"]
    assert all(tensor.equal(front(folder, 2)[name]) for r in (3, 4) for name, tensor in front(folder, r).items())
    assert not front(folder, 1)["cls_token"].equal(front(folder, 2)["cls_token"])
    assert not back(folder, 3).equal(back(folder, 2))
    assert not back(folder, 4).equal(back(folder, 3))
    sent = sums(folder)
    assert {round for round, _, role in sent if role == "cut_gradient"} == {"1", "2"}
    assert {round for round, _, role in sent if role == "smashed"} == {"1", "2", "3", "4"}
    weights = {(round, direction) for round, direction, role in sent if role == "front_weights"}
    assert weights == {("1", "up"), ("1", "down"), ("2", "up"), ("2", "down"), ("3", "down")}
    assert sums(folder, round="3", client="0")["3", "down", "front_weights"] > 0
    losses = [float(row["train_loss"]) for row in table(folder / "metrics.csv")]
    assert all(0 < loss < 5 for loss in losses)


@pytest.mark.parametrize("more", ["federation.mode=sfl-v1", "federation.mode=psl"])
def test_a_frozen_round_teaches_the_back_what_a_learning_one_would(more, tmp_path):
    """A front whose learning rate is 0 stays as it is too."""
    still = ["federation.rounds=1", "training.client.optimiser.lr=1e-30", more]
    learning = simulate(small(*still), runs=tmp_path / "learning", observers=()).folder
    frozen = simulate(small(*still, "phases=[frozen]"), runs=tmp_path / "frozen", observers=()).folder
    assert back(learning, 1).equal(back(frozen, 1))


def test_while_the_front_is_frozen_no_strategy_is_asked_and_clients_have_no_optimiser(tmp_path, monkeypatch):
    asked: list[int] = []
    for name in ("configure", "aggregate"):
        whole = getattr(Aggregation, name)

        def watched(self, round, *given, whole=whole):
            asked.append(round)
            return whole(self, round, *given)

        monkeypatch.setattr(Aggregation, name, watched)
    adam = "federation.strategy={kind: FedAdam, eta: 0.01}"
    folder = simulate(small(*FOUR, adam, "training.client_state=keep"), runs=tmp_path, observers=()).folder
    assert set(asked) == {1, 2}
    kept = {path.stem for path in (folder / "clients/000000").glob("*.safetensors") if path.stem.isdecimal()}
    assert kept == {"000001", "000002"}


def test_differences_go_on_where_the_front_settles(tmp_path):
    delta = "compression.front_weights={codec: {kind: uniform, bits: 8}, delta: {kind: uniform, bits: 4}}"
    folder = simulate(small(*FOUR, delta), runs=tmp_path, observers=()).folder
    down = {round: n for (round, way, role), n in sums(folder).items() if (way, role) == ("down", "front_weights")}
    assert down.keys() == {"1", "2", "3"}
    assert down["3"] < 0.7 * down["1"]


@pytest.mark.parametrize("frozen", few([1, 2]))
def test_differences_go_on_where_the_front_learns_again(frozen, tmp_path):
    """Nobody lacks anything after the frozen phase: not a round starts again. Of one round it is built upon."""
    phases = f"phases=[{{kind: gradient, rounds: 2}}, {{kind: frozen, rounds: {frozen}}}, gradient]"
    delta = "compression.front_weights={codec: {kind: uniform, bits: 8}, delta: {kind: uniform, bits: 4}}"
    plan = small(f"federation.rounds={3 + frozen}", "checkpoints.keep=9", phases, delta)
    folder = simulate(plan, runs=tmp_path, observers=()).folder
    assert not table(folder / "wasted.csv")
    coded = [int(row["coded_bytes"]) for row in table(folder / "ledger.csv") if row["role"] == "front_weights"
             and row["direction"] == "down" and row["round"] in ("1", str(3 + frozen))]  # fmt: skip
    assert len(coded) == 6
    assert set(coded[3:]) == ({coded[0]} if frozen > 1 else {max(coded[3:])})
    assert (max(coded[3:]) < 0.7 * coded[0]) == (frozen == 1)


LEARNS_AGAIN = "phases=[{kind: gradient, rounds: 1}, {kind: frozen, rounds: 1}, gradient]"


@pytest.mark.parametrize("more", few([
    [LEARNS_AGAIN, "compression.front_weights={codec: {kind: uniform, bits: 8}, delta: {kind: uniform, bits: 4}}"],
    [], ["model.adapter=norms"], ["federation.cohort=2", "evaluation={held_out: 0.2}"],
    ["compression.front_weights={codec: {kind: uniform, bits: 8}, delta: true}", "federation.cohort=2"],
    ["compression.reducer={kind: bottleneck, width: 8}"],
]))  # fmt: skip
def test_an_interrupted_run_goes_on_in_each_phase(more, tmp_path):
    class Impatient(Observer):
        def progress(self, round: int, share: float) -> None:
            if round == self.when and share > 0.4:
                raise KeyboardInterrupt

    plan = small("federation.rounds=4", PHASES, *more)
    expected = outcome(simulate(plan, runs=tmp_path / "whole", observers=()).folder)
    watching, folder = Impatient(), None
    for watching.when in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            simulate(*([] if folder else [plan]), runs=tmp_path / "cut", resume=folder, observers=(watching,))
        (folder,) = (tmp_path / "cut").iterdir()
    simulate(resume=folder, observers=())
    assert outcome(folder) == expected


def test_who_evaluates_a_frozen_front_has_it_already(tmp_path):
    folder = simulate(small(*FOUR, "evaluation={held_out: 0.2}"), runs=tmp_path, observers=()).folder
    sent = sums(folder)
    assert ("4", "up", "evaluation") in sent
    assert ("4", "down", "front_weights") not in sent


@pytest.fixture
def weights(tmp_path) -> str:
    path = tmp_path / "weights.safetensors"
    vit = build(small().model, 10, key=Key(77))
    save_file({name: tensor.contiguous() for name, tensor in vit.state_dict().items()}, path)
    return f"model.weights={path}"


LOAD = "compression.front_weights.initial=load"


@pytest.mark.parametrize("more", few([
    [], ["federation.mode=sl"], ["federation.mode=fl", "training.server={}"], ["model.adapter=norms"],
    ["model.adapter={kind: lora, rank: 2}"], ["federation.labels=private", "model.tail=0"],
    ["evaluation={held_out: 0.2}", "phases=[frozen]"],
]))  # fmt: skip
def test_weights_that_clients_load_are_those_that_are_sent(more, weights, tmp_path):
    """As float32 nothing is rounded on the way, so nothing else may change."""
    folders = {
        how: simulate(
            small(weights, f"compression.front_weights.initial={how}", *more), runs=tmp_path / how, observers=()
        ).folder
        for how in ("send", "load")
    }
    sent, loaded = sums(folders["send"], direction="down"), sums(folders["load"], direction="down")
    trained = "back_weights" if "federation.mode=fl" in more else "front_weights"
    assert sent["1", "down", trained] > 0
    if "federation.mode=sl" not in more:  # there the second client gets what the first has made of them
        assert ("1", "down", trained) not in loaded
    assert {n: t.tolist() for n, t in newest(folders["send"]).items()} == {
        n: t.tolist() for n, t in newest(folders["load"]).items()
    }


def test_who_comes_late_is_sent_the_difference_to_what_it_loads(weights, tmp_path):
    delta = (
        "compression.front_weights={initial: load, codec: {kind: uniform, bits: 8}, delta: {kind: uniform, bits: 4}}"
    )
    plan = small(weights, delta, "federation.rounds=5", "federation.cohort=1", "seed=2")
    folder = simulate(plan, runs=tmp_path, observers=()).folder
    rows = [r for r in table(folder / "ledger.csv") if (r["direction"], r["role"]) == ("down", "front_weights")]
    whole = sum(t.numel() for t in front(folder, 5).values())
    assert 1 < len(rows) < 5
    assert all(int(row["coded_bytes"]) < 0.9 * whole for row in rows)


def test_another_file_than_the_servers_is_refused(weights, tmp_path, monkeypatch):
    from splitfed.split.weights.initial import Initial

    check = Initial.check
    monkeypatch.setattr(Initial, "check", lambda self, sha256: check(self, "0" * 64))
    with pytest.raises(RunError, match=r"initial: the weights that this client has loaded and drawn are others"):
        simulate(small(weights, LOAD), runs=tmp_path, observers=())


def test_a_client_elsewhere_names_the_file_itself_and_another_is_refused(weights, tmp_path):
    path = Path(weights.removeprefix("model.weights="))
    deployed = small("model.weights=/elsewhere/deit.safetensors", LOAD, "engine=deployment")
    deployed = with_value(deployed, ("model", "fingerprint"), hashlib.sha256(path.read_bytes()).hexdigest())
    assert Settings(0, weights=path).with_weights(deployed).model.weights == str(path)
    with pytest.raises(RunError, match=r"deit.safetensors, on the server's machine.* say with --weights where"):
        Settings(0).with_weights(deployed)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ModelError, match="holds other weights than the run began with"):
        Settings(0, weights=path).with_weights(deployed)
