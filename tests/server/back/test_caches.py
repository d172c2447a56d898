"""Copies of samples in whole runs: after each, those of server and clients are the same, bit for bit."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import PLAIN, few, small, table
from outcomes import outcome
from safetensors.torch import load_file

from splitfed import simulate
from splitfed.clients.state import ClientState, load_tensors, save_tensors
from splitfed.errors import Lacking
from splitfed.reports.costs.estimate import estimate
from splitfed.run.observer import Observer
from splitfed.server.model import Model, Seen

COPIES = (
    "compression.smashed={codec: {kind: uniform, bits: 3, rotation: true}, delta: {kind: uniform, bits: 2}}",
    "compression.cut_gradient={codec: {kind: uniform, bits: 4}, delta: true}",
)
FLIPS = ("data.augment=flip", "data.variants=2")


def copies(folder: Path, round: int) -> dict[str, torch.Tensor]:
    """Return the server's copies after a round."""
    return load_file(folder / f"checkpoints/round-{round:06d}/cache.safetensors")


def alike(folder: Path, round: int, taken: dict[int, int]) -> bool:
    """Tell whether clients have what the server has, each since the round in which it was last taken."""
    here = copies(folder, round)
    there = {
        f"{client}/{name}": tensor
        for client, last in taken.items()
        for name, tensor in load_file(folder / f"clients/{client:06d}/copies-{last:06d}.safetensors").items()
    }
    return here.keys() == there.keys() and all(there[name].equal(tensor) for name, tensor in here.items())


@pytest.mark.parametrize("more", few([
    ["federation.mode=sfl-v1", "compression.smashed.skip=0.9"],
    ["federation.mode=sfl-v2", "compression.reducer={kind: discard_tokens, kept_tokens: 0.6}"],
    ["federation.mode=sl", "compression.reducer={kind: bottleneck, width: 4}"],
    ["federation.mode=psl", "compression.reducer={kind: topk, ratio: 0.3}"],
    ["federation.labels=private", "model.tail=0", *FLIPS],
], quick=1))  # fmt: skip
def test_every_mode_leaves_the_same_copies_at_both_ends(more, tmp_path):
    folder = simulate(small(*COPIES, *more), runs=tmp_path).folder
    assert alike(folder, 2, dict.fromkeys(range(3), 2))
    here = copies(folder, 2)
    assert {name.split("/")[1] for name in here} == {"ids", "smashed", "cut_gradient"}
    assert all(tensor.isfinite().all() for tensor in here.values())
    ids = torch.cat([here[f"{client}/ids"] for client in range(3)])
    assert len(ids) == 96 if FLIPS[0] not in more else 96 < len(ids) < 192
    rows = [row for row in table(folder / "ledger.csv") if row["role"] == "ids"]
    assert {row["direction"] for row in rows} == {"up"}
    assert all(int(row["raw_bytes"]) == 0 < int(row["sent_bytes"]) for row in rows)


def test_samples_whose_gradient_never_came_are_kept_all_the_same(tmp_path):
    """Of the 6 mini-batches of 3 clients the first 3 come in a phase that is answered."""
    phases = "phases=[{kind: gradient, rounds: 1}, {kind: local, rounds: 3, upload_every: 1, align_every: 2}, frozen]"
    once = ("federation.local_epochs=null", "federation.local_steps=1", "federation.rounds=6", "checkpoints.keep=9")
    folder = simulate(small(*COPIES, *once, phases), runs=tmp_path).folder
    for round in range(1, 7):
        assert alike(folder, round, dict.fromkeys(range(3), round))
    resting = copies(
        simulate(small(*COPIES, *once, phases.replace("align_every: 2", "align_every: 0")), runs=tmp_path).folder, 6
    )
    assert len(resting["0/cut_gradient"]) == len(resting["0/cut_gradient/ids"]) < len(resting["0/smashed"])
    assert set(resting["0/cut_gradient/ids"].tolist()) < set(resting["0/ids"].tolist())


def test_an_estimate_counts_what_comes_for_the_first_time(tmp_path):
    plan = small(*COPIES, "federation.rounds=4")
    found, expected = simulate(plan, runs=tmp_path).totals, estimate(plan)
    for role in ("smashed", "cut_gradient"):
        assert 4 * expected.round.select(role=role).coded == found.select(role=role).coded
    ids = 4 * expected.round.select(role="ids").coded
    assert ids == pytest.approx(found.select(role="ids").coded, rel=0.3)  # it takes the first rows of a client


def test_few_bits_of_a_front_that_stands_still_come_near_whole_numbers(tmp_path):
    """The back then learns from what it would have seen in float32."""
    still = ("federation.rounds=6", "training.client.optimiser={kind: sgd, lr: 1e-12}")
    whole = simulate(small(*still), runs=tmp_path).summary.test_loss
    few = "compression.smashed.codec={kind: uniform, bits: 2}"
    without, with_delta = (
        abs(simulate(small(*still, few, *more), runs=tmp_path).summary.test_loss - whole)
        for more in ((), ("compression.smashed.delta=true",))
    )
    assert with_delta < without / 3


def test_of_a_front_that_stands_still_labels_and_ids_alone_go_up_again(tmp_path):
    """Each image is sent once after the front has settled; then it is known to be the same."""
    plan = small(
        "phases=[{kind: gradient, rounds: 1}, frozen]", "federation.rounds=4", "compression.smashed.skip=0.9999",
        "training.client.optimiser.lr=0.1", *PLAIN,
    )  # fmt: skip
    rows = [row for row in table(simulate(plan, runs=tmp_path).folder / "ledger.csv") if row["plane"] == "data"]
    up = [{row["role"] for row in rows if row["round"] == round and int(row["sent_bytes"])} for round in "234"]
    assert up[0] == {"smashed", "targets", "ids", "envelope"}
    assert up[1] == up[2] == {"targets", "ids", "envelope"}


class Impatient(Observer):
    """Stops the run in the middle of a round."""

    def progress(self, round: int, share: float) -> None:
        if round == 4 and share > 0.5:
            raise KeyboardInterrupt


def interrupted(plan, runs: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=runs, observers=(Impatient(),))
    (folder,) = runs.glob("small-*")
    return folder


LONG = (*COPIES, *FLIPS, "federation.rounds=6", "federation.cohort=2", "checkpoints.keep=3")


def test_a_run_that_is_interrupted_goes_on_exactly(tmp_path):
    plan = small(*LONG)
    whole = simulate(plan, runs=tmp_path / "whole").folder
    folder = interrupted(plan, tmp_path / "cut")
    simulate(resume=folder)
    assert outcome(folder) == outcome(whole)
    found, expected = copies(folder, 6), copies(whole, 6)
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


def test_an_older_checkpoint_finds_the_older_copies(tmp_path):
    plan = small(*LONG)
    whole, folder = simulate(plan, runs=tmp_path / "whole").folder, interrupted(plan, tmp_path / "cut")
    shutil.rmtree(folder / "checkpoints/round-000003")
    simulate(resume=folder)
    assert outcome(folder)["model"] == outcome(whole)["model"]


def test_a_client_that_lost_its_copies_begins_anew_and_so_does_the_server(tmp_path, caplog):
    folder = interrupted(small(*LONG, "federation.cohort=3"), tmp_path)
    for path in (folder / "clients/000001").glob("copies-*"):
        path.write_bytes(b"nothing")
    simulate(resume=folder)
    assert "round 4: client 1: " in caplog.text
    assert "the copies of this client's samples are gone" in caplog.text
    rows = [row for row in table(folder / "ledger.csv") if row["role"] == "smashed" and row["client"] == "1"]
    coded = {int(row["round"]): 0 for row in rows}
    for row in rows:
        coded[int(row["round"])] += int(row["coded_bytes"])
    assert 4 not in coded  # it was lost to this round
    assert coded[5] == coded[1] > coded[3]  # all for the first time
    assert alike(folder, 6, dict.fromkeys(range(3), 6))


def test_a_round_that_is_dropped_leaves_both_ends_as_they_were(tmp_path, monkeypatch, caplog):
    honest, calls = Model.validate, []

    def once_absurd(self):
        calls.append(None)
        return Seen(float("nan"), 0.0, {}) if len(calls) == 2 else honest(self)

    monkeypatch.setattr(Model, "validate", once_absurd)
    folder = simulate(small(*COPIES, "federation.rounds=3"), runs=tmp_path).folder
    assert "round 2 is dropped" in caplog.text
    assert alike(folder, 3, dict.fromkeys(range(3), 3))
    before, after = copies(folder, 2), load_file(folder / "clients/000000/copies-000002.safetensors")
    assert not before["0/smashed"].equal(after["smashed"])  # the client had gone on, and came back


def test_a_full_share_is_told_once(tmp_path, caplog):
    entry = 2 * 2 * 5 * 16  # both roles, float16
    folder = simulate(small(*COPIES, f"compression.cache.disk={3 * 2 * 10 * entry}"), runs=tmp_path).folder
    assert caplog.text.count("has room for 10 samples") == 1
    assert alike(folder, 2, dict.fromkeys(range(3), 2))
    assert all(len(copies(folder, 2)[f"{client}/ids"]) == 10 for client in range(3))


def test_what_a_client_keeps_is_what_the_server_may_ask_for(tmp_path):
    state, kept = ClientState(tmp_path, 0, keep=1), {4: {"smashed": torch.ones(2, 3, dtype=torch.float16)}}
    for round, trained in ((1, None), (2, 1), (3, 1), (4, 1), (5, 1)):  # four replies are lost
        state.save_copies(round, kept, trained)
    assert state.copies(1)[4]["smashed"].equal(kept[4]["smashed"])
    with pytest.raises(Lacking, match=r"copies-000002.*gone"):
        state.copies(2)
    path = tmp_path / "000000/copies-000001.safetensors"
    content = load_tensors(path)
    save_tensors(path, {"smashed": content["smashed"]})
    with pytest.raises(Lacking):
        state.copies(1)
    state.save_copies(6, {}, None)
    assert state.copies(6) == {}
