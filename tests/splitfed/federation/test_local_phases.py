"""Local phases: an auxiliary net teaches the front at the client, what of it crosses, and what is left of it."""

from pathlib import Path

import pytest
import torch
from helpers import ADC, PLAIN, few, small, table
from hypothesis import given, settings
from hypothesis import strategies as st
from models import newest
from outcomes import outcome
from safetensors.torch import load_file, save_file

from splitfed import Scenario, simulate
from splitfed.clients.worker import Worker
from splitfed.errors import ModelError
from splitfed.model.build import build
from splitfed.run.checkpoint import Checkpoints
from splitfed.run.observer import Observer
from splitfed.seeds import Key
from splitfed.server.cohort.claims import Claims
from splitfed.split.assembly import check_model
from splitfed.split.mistakes import of_the_model

MODES = ["sl", "sfl-v1", "sfl-v2", "psl"]
ALL_UP = "phases=[{kind: local, upload_every: 1}]"
AMID = "phases=[{kind: gradient, rounds: 1}, {kind: local, rounds: 2, upload_every: 2}, frozen]"
DELTA = "compression.front_weights={codec: {kind: uniform, bits: 8}, delta: {kind: uniform, bits: 4}}"
ALIGNED = "phases=[{kind: gradient, rounds: 1}, {kind: local, rounds: 3, upload_every: 1, align_every: 2}, gradient]"
COPIES = [
    f"compression.{role}={{codec: {{kind: uniform, bits: 4}}, delta: true}}" for role in ("smashed", "cut_gradient")
]
STEPS = ["federation.local_epochs=null", "federation.rounds=1"]


def run(runs: Path, *more: str) -> Path:
    return simulate(small(*more), runs=runs, observers=()).folder


def sent(folder: Path, plane: str = "data") -> dict[tuple[str, ...], int]:
    """Return the bytes sent by round, direction and role."""
    found: dict[tuple[str, ...], int] = {}
    for row in table(folder / "ledger.csv"):
        if row["plane"] == plane:
            place = row["round"], row["direction"], row["role"]
            found[place] = found.get(place, 0) + int(row["sent_bytes"])
    return found


def model(folder: Path, round: int) -> dict[str, torch.Tensor]:
    return load_file(Checkpoints(folder).path(round) / "model.safetensors")


def auxiliary(folder: Path, round: int) -> Path:
    return Checkpoints(folder).path(round) / "auxiliary.safetensors"


@pytest.mark.parametrize("optimiser", ["{kind: adam, lr: 1e-3}", "{kind: sgd, lr: 0.05, momentum: 0.9}"])
def test_with_one_client_a_copy_of_the_back_teaches_what_the_back_would(optimiser, tmp_path):
    """Without anything lossy between them the two see the same 20 mini-batches."""
    same = [f"training.client.optimiser={optimiser}", f"training.server.optimiser={optimiser}", *PLAIN, *STEPS]
    same += ["federation.clients=1", "federation.local_steps=20", "model.args.depth=3"]
    split = newest(run(tmp_path / "split", *same))
    local = newest(run(tmp_path / "local", *same, "phases=[{kind: local, blocks: 2, upload_every: 1}]"))
    assert all(tensor.equal(local[name]) for name, tensor in split.items())
    fewer = newest(run(tmp_path / "fewer", *same, ALL_UP))  # a net of one block is another
    assert not fewer["cls_token"].equal(split["cls_token"])


def test_with_several_the_first_step_of_the_first_is_the_same(tmp_path, monkeypatch):
    train, fronts = Worker.train, []

    def watched(self, *given, **more):
        found = train(self, *given, **more)
        fronts.append({name: t.clone() for name, t in found.weights.items() if not name.startswith("aux")})
        return found

    monkeypatch.setattr(Worker, "train", watched)
    for more in ([], [ALL_UP]):
        run(tmp_path / str(len(more)), *PLAIN, *STEPS, "federation.local_steps=1", *more)
    split, local = fronts[:3], fronts[3:]
    assert all(tensor.equal(local[0][name]) for name, tensor in split[0].items())
    assert not all(tensor.equal(local[1][name]) for name, tensor in split[1].items())  # the back has gone on


@pytest.mark.parametrize("mode", few(MODES, quick=2))
def test_few_go_up_and_nothing_comes_down(mode, tmp_path):
    """Each client has 2 mini-batches, of 16 images."""
    up = {}
    for kind in ("gradient", "local"):
        folder = run(
            tmp_path / kind,
            *PLAIN,
            "federation.rounds=4",
            f"federation.mode={mode}",
            *([AMID] if kind == "local" else []),
        )
        up[kind] = {role: sent(folder).get(("2", "up", role), 0) for role in ("smashed", "targets")}
    assert up["local"] == {role: size // 2 for role, size in up["gradient"].items()}
    assert {role for round, way, role in sent(folder) if (round, way) == ("2", "down")} == {"envelope"}
    weights = {place for place in sent(folder, "control") if place[2] == "aux_weights"}
    assert weights == {(round, way, "aux_weights") for round in "23" for way in ("up", "down")}
    assert [row["phase"] for row in table(folder / "metrics.csv")] == ["gradient", "local", "local", "frozen"]


@pytest.mark.parametrize(("mode", "more"), few([
    ("sl", ["compression.reducer={kind: bottleneck, width: 8}"]), ("sfl-v1", ADC), ("sfl-v2", ["model.adapter=norms"]),
    ("psl", ["compression.reducer={kind: topk, ratio: 0.3}", "training.precision=bfloat16"]),
], quick=1))  # fmt: skip
def test_gradients_come_down_for_the_steps_to_which_nets_are_fitted_and_no_others(mode, more, tmp_path):
    """Each client has 8 mini-batches, of which 4 go up."""
    steps = ["federation.local_epochs=null", "federation.local_steps=8", f"federation.mode={mode}", *more]
    for every, answered in ((1, {"1", "2", "3", "4"}), (2, {"1", "3"}), (9, {"1"}), (0, set())):
        phases = f"phases=[{{kind: local, rounds: 1, upload_every: 2, align_every: {every}}}, frozen]"
        rows = table(run(tmp_path / str(every), *steps, phases) / "ledger.csv")
        down = [row for row in rows if row["role"] == "cut_gradient"]
        assert {(row["round"], row["direction"]) for row in down} == ({("1", "down")} if every else set())
        assert {row["step"] for row in down} == answered
        assert all(int(row["sent_bytes"]) > 0 for row in down)
        assert len([row for row in rows if (row["round"], row["role"]) == ("1", "smashed")]) == 4 * 3


def test_a_net_learns_from_the_servers_gradients_alone(tmp_path, monkeypatch):
    """Where nothing is fitted, it stays the copy of the back that it was."""
    aligned = "phases=[{kind: local, rounds: 1, align_every: 1}, {kind: local, align_every: 1}]"
    plan = [aligned, "checkpoints.keep=9", "training.client.optimiser.lr=1e-2"]
    learned = run(tmp_path / "learned", *plan)
    monkeypatch.setattr("splitfed.clients.steps.align", lambda *_: [])
    still = run(tmp_path / "still", *plan)
    for folder, same in ((learned, False), (still, True)):
        net, back = load_file(auxiliary(folder, 1)), model(folder, 0)
        assert net["aux1.head.weight"].equal(back["head.weight"]) == same
        assert not model(folder, 1)["cls_token"].equal(back["cls_token"])  # the front learns all the same
    assert not model(learned, 1)["cls_token"].equal(model(still, 1)["cls_token"])


@pytest.mark.parametrize("mode", few(MODES, quick=2))
def test_both_sides_learn_and_the_net_is_dropped_at_the_end(mode, tmp_path):
    folder = run(tmp_path, AMID, "federation.rounds=4", f"federation.mode={mode}", "checkpoints.keep=9")
    models = {round: model(folder, round) for round in range(5)}
    for name in ("cls_token", "head.weight"):
        assert not models[3][name].equal(models[2][name])
    assert models[4]["cls_token"].equal(models[3]["cls_token"])
    assert [auxiliary(folder, round).exists() for round in range(5)] == [False, False, True, True, False]
    net = load_file(auxiliary(folder, 3))
    assert sum(name.endswith("blocks.1.norm1.weight") for name in net) == 1
    (head,) = [tensor for name, tensor in net.items() if name.endswith("head.weight")]
    assert head.shape == models[3]["head.weight"].shape
    assert not head.equal(models[3]["head.weight"])  # it has learned by itself
    rows = table(folder / "metrics.csv")
    assert all(0 < float(row["train_loss"]) < 5 for row in rows)
    assert not any(name.startswith("aux") for name in models[3])


def test_all_of_the_net_is_trained_whatever_is_of_the_front(tmp_path):
    folder = run(tmp_path, "phases=[local]", "model.adapter=norms", "checkpoints.keep=9")
    net, before = load_file(auxiliary(folder, 1)), model(folder, 0)
    assert not any(tensor.equal(before[name.removeprefix("aux1.")]) for name, tensor in net.items())
    assert model(folder, 1)["blocks.0.attn.qkv.weight"].equal(before["blocks.0.attn.qkv.weight"])


def test_with_null_nothing_goes_up_and_the_back_rests(tmp_path):
    quiet = "phases=[{kind: local, rounds: 1, upload_every: null}, frozen]"
    folder = run(tmp_path, quiet, "checkpoints.keep=9")
    assert {role for round, _, role in sent(folder) if round == "1"} == {"envelope"}
    before, after = model(folder, 0), model(folder, 1)
    assert before["head.weight"].equal(after["head.weight"])
    assert not before["cls_token"].equal(after["cls_token"])
    first = table(folder / "metrics.csv")[0]
    assert 0 < float(first["train_loss"]) < 5  # the clients' own
    assert ("2", "up", "smashed") in sent(folder)


def test_a_net_of_the_same_shape_goes_whole_beside_differences(tmp_path):
    """Of another phase's nothing is left, while the front goes on as differences."""
    folder = run(
        tmp_path, "federation.rounds=5", DELTA,
        "phases=[{kind: local, rounds: 2}, {kind: gradient, rounds: 1}, {kind: local}]",
    )  # fmt: skip
    crossed = sent(folder, "control")
    net = {round: crossed[str(round), "down", "aux_weights"] for round in (1, 2, 4, 5)}
    front = {round: crossed[str(round), "down", "front_weights"] for round in range(1, 6)}
    assert max(net[2], net[5]) < 0.7 * min(net[1], net[4])
    assert max(front[round] for round in range(2, 6)) < 0.7 * front[1]


@pytest.mark.parametrize("more", few([
    [*ADC, "federation.mode=sfl-v1"],
    [DELTA, "federation.cohort=2", "training.client_state=keep", "evaluation={held_out: 0.2}"],
    ["federation.strategy={kind: FedAdam, eta: 0.01}", "federation.mode=psl", "training.client_state=keep"],
    ["federation.mode=sl", "model.adapter=norms"],
    ["compression.reducer={kind: bottleneck, width: 8}", DELTA],
    [ALIGNED, "federation.mode=psl", "model.args.proj_drop_rate=0.1", "training.client_state=keep", *COPIES],
], quick=5))  # fmt: skip
def test_an_interrupted_run_goes_on_in_each_phase(more, tmp_path):
    class Impatient(Observer):
        when = 0

        def progress(self, round: int, share: float) -> None:
            if round == self.when and share > 0.4:
                raise KeyboardInterrupt

    phases = (
        "phases=[{kind: gradient, rounds: 1}, {kind: local, rounds: 2, upload_every: 2}, {kind: local, rounds: 1}, "
        "gradient]"
    )
    plan = small("federation.rounds=5", phases, *more)
    expected = outcome(simulate(plan, runs=tmp_path / "whole", observers=()).folder)
    watching, folder = Impatient(), None
    for watching.when in (2, 3, 4, 5):
        with pytest.raises(KeyboardInterrupt):
            simulate(*([] if folder else [plan]), runs=tmp_path / "cut", resume=folder, observers=(watching,))
        (folder,) = (tmp_path / "cut").iterdir()
    simulate(resume=folder, observers=())
    assert outcome(folder) == expected


@pytest.mark.parametrize("more", [[], ["federation.mode=sl"], ["compression.front_weights.delta=true"]])
def test_who_loads_the_model_makes_the_first_net_itself(more, tmp_path):
    weights, vit = tmp_path / "weights.safetensors", build(small().model, 10, key=Key(77))
    save_file({name: tensor.contiguous() for name, tensor in vit.state_dict().items()}, weights)
    given = [f"model.weights={weights}", "federation.rounds=3", "federation.cohort=1", ALL_UP, *more]
    folders = {how: run(tmp_path / how, f"compression.front_weights.initial={how}", *given) for how in ("send", "load")}
    crossed = {how: sent(folder, "control") for how, folder in folders.items()}
    for role in ("front_weights", "aux_weights"):
        assert ("1", "down", role) in crossed["send"]
        assert ("1", "down", role) not in crossed["load"]
        assert ("2", "down", role) in crossed["load"]
    if "delta" not in str(more):  # as float32 nothing is rounded on the way
        assert all(tensor.equal(newest(folders["load"])[n]) for n, tensor in newest(folders["send"]).items())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.none() | st.integers(1, 8))
def test_what_is_planned_to_cross_is_counted_mini_batch_by_mini_batch(images, batch, epochs, every):
    plan = small(f"training.batch_size={batch}", f"federation.local_epochs={epochs}")
    sizes = [min(batch, images - first) for _ in range(epochs) for first in range(0, images, batch)]
    taken = [size for number, size in enumerate(sizes) if every and number % every == 0]
    assert Claims(plan, [images]).planned(images, every) == (len(taken), sum(taken))


def test_a_claim_weighs_only_as_far_as_it_shows():
    """Where not all images cross, who says it has more is believed up to a bound."""
    claims = Claims(small("federation.clients=3"), [10, 10, 10])
    assert claims.weights({0: 10, 1: 10, 2: 5000}) == {0: 10, 1: 10, 2: 5000}
    assert claims.weights({0: 10, 1: 10, 2: 5000}, 2) == {0: 10, 1: 10, 2: 100}


@pytest.mark.parametrize(("depth", "way"), [(2, "set blocks to 1"), (4, "set blocks to 3 or less")])
def test_a_net_is_no_larger_than_the_back(depth, way):
    plan = small(f"model.args.depth={depth}", f"phases=[{{kind: local, blocks: {depth}}}]")
    ((key, why),) = of_the_model(plan)
    assert key == "phases"
    assert why.endswith(f"of {depth} blocks, and the back has {depth - 1}: {way}")
    with pytest.raises(ModelError, match="phases: phase 1 has an auxiliary net"):
        check_model(plan)
    assert not list(of_the_model(Scenario.parse(plan.to_yaml(), overrides=[ALL_UP])))
