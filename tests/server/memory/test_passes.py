"""Runs whose last phase fills memory and goes over it."""

import hashlib
import shutil
from pathlib import Path

import pytest
from helpers import few, small, table
from outcomes import outcome

from splitfed import simulate
from splitfed.clients import worker
from splitfed.data.batches import batches
from splitfed.errors import Diverged, RunError, ScenarioError
from splitfed.run.observer import Observer
from splitfed.run.summary import Summary
from splitfed.server.back.passes import Passes
from splitfed.server.cohort.attendance import Attendance
from splitfed.server.memory.store import Store

COPIES = [
    "compression.smashed={codec: {kind: uniform, bits: 4}, delta: {kind: uniform, bits: 2}, skip: 0.999}",
    "compression.cut_gradient={codec: {kind: uniform, bits: 4}, delta: true}",
]
ALIGNED = "phases=[{kind: gradient, rounds: 1}, {kind: local, rounds: 1, upload_every: 1, align_every: 2}, frozen]"
MEMORY = ["federation.rounds=5", "phases=[{kind: gradient, rounds: 1}, frozen]", "memory={disk: 1GB}"]


class Impatient(Observer):
    """Interrupts a run in the middle of a round."""

    when = 0

    def progress(self, round: int, share: float) -> None:
        if round == self.when and share > 0.4:
            raise KeyboardInterrupt


def phases(folder: Path) -> list[str]:
    return [row["phase"] for row in table(folder / "metrics.csv")]


@pytest.mark.parametrize("mode", few(["sl", "sfl-v1", "sfl-v2", "psl"], quick=2))
def test_each_image_crosses_once_and_passes_send_nothing(mode, tmp_path):
    plan = small(
        *MEMORY, f"federation.mode={mode}", "data.augment=flip", "data.variants=2", "federation.local_epochs=3"
    )
    folder = simulate(plan, runs=tmp_path, observers=()).folder
    assert phases(folder) == ["gradient", "frozen", "memory", "memory", "memory"]
    rows, metrics = table(folder / "ledger.csv"), table(folder / "metrics.csv")
    labels = [int(row["raw_bytes"]) for row in rows if (row["round"], row["role"]) == ("2", "targets")]
    assert sum(labels) == 8 * 2 * 96  # each of the images, as it is and as its mirror image
    assert {row["round"] for row in rows} == {"0", "1", "2"}
    assert len({row["total_bytes"] for row in metrics[1:]}) == 1
    assert [row["clients"] for row in metrics] == ["3", "3", "0", "0", "0"]
    assert [row["examples"] for row in metrics[2:]] == ["192"] * 3
    assert metrics[1]["train_loss"] == ""
    assert metrics[1]["eval_loss"] == metrics[0]["eval_loss"]  # what is kept has taught nothing yet
    losses = [float(row["train_loss"]) for row in metrics[2:]]
    assert losses == sorted(losses, reverse=True)
    assert not (folder / "memory").exists()  # nothing is kept longer than it is of use


def test_of_two_variants_one_is_kept_and_which_is_drawn_by_image(tmp_path, monkeypatch):
    drawn = []

    def watched(*args, variant=None, **how):
        drawn.extend([] if variant is None else [variant])
        return batches(*args, variant=variant, **how)

    monkeypatch.setattr(worker, "batches", watched)
    plan = small(*MEMORY, "data.augment=flip", "data.variants=2", "memory.variants=1")
    folder = simulate(plan, runs=tmp_path, observers=()).folder
    rows = [row for row in table(folder / "ledger.csv") if (row["round"], row["role"]) == ("2", "targets")]
    assert sum(int(row["raw_bytes"]) for row in rows) == 8 * 96
    assert [row["examples"] for row in table(folder / "metrics.csv")[2:]] == ["96"] * 3
    assert len(drawn) == 3  # one for each client
    assert 24 < sum(int(shown.sum()) for shown in drawn) < 72
    assert {int(number) for shown in drawn for number in shown} == {0, 1}


@pytest.mark.parametrize("more", few([
    ["federation.mode=sfl-v1", "federation.cohort=2", "federation.rounds=6"],
    ["compression.reducer={kind: adc, ratio: 0.4}", "memory.store=float16"],
    ["data.augment=flip", "data.variants=2", "memory.variants=1", "federation.cohort=2", "federation.rounds=6"],
    ["compression.reducer={kind: bottleneck, width: 8}", "evaluation={held_out: 0.2}", "memory.drop_tokens=0.25"],
    [*COPIES, "federation.cohort=2", "federation.rounds=6", "phases=[{kind: gradient, rounds: 2}, frozen]"],
    [*COPIES, "data.augment=flip", "data.variants=2", "checkpoints.keep=3", ALIGNED, "federation.rounds=6"],
    ["compression.reducer={kind: c3sl, r: 2}", "memory.smoothing=0.1", "memory.mix=0.4", "model.adapter=norms"],
], quick=2))  # fmt: skip
def test_an_interrupted_run_goes_on_wherever_it_was(more, tmp_path):
    plan = small(*MEMORY, *more)
    expected = outcome(simulate(plan, runs=tmp_path / "whole", observers=()).folder)
    watching, folder = Impatient(), None
    for watching.when in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            simulate(*([] if folder else [plan]), runs=tmp_path / "cut", resume=folder, observers=(watching,))
        (folder,) = (tmp_path / "cut").iterdir()
    simulate(resume=folder, observers=())
    assert outcome(folder) == expected


def kept(folder: Path) -> tuple[list[int], set[int]]:
    """Return the rounds after which the server has copies of samples, and those of which clients have them."""
    here = [int(path.parent.name[6:]) for path in (folder / "checkpoints").glob("*/cache.safetensors")]
    return sorted(here), {int(path.stem[7:]) for path in (folder / "clients").glob("*/copies-*")}


@pytest.mark.parametrize("mode", few(["sl", "sfl-v1", "sfl-v2", "psl"], quick=2))
def test_copies_of_samples_are_dropped_when_the_front_settles(mode, tmp_path):
    """Rounds that fill memory send samples as if they had never crossed."""
    two = ["phases=[{kind: gradient, rounds: 2}, frozen]", f"federation.mode={mode}"]
    folder = simulate(small(*MEMORY, *COPIES, *two, "checkpoints.keep=9"), runs=tmp_path / "9", observers=()).folder
    assert kept(folder) == ([1, 2], {1, 2})  # as long as the run may go on from there
    alone = simulate(small(*MEMORY, *COPIES, *two, "checkpoints.keep=1"), runs=tmp_path / "1", observers=()).folder
    assert kept(alone) == ([], set())
    rows = [row for row in table(folder / "ledger.csv") if row["plane"] == "data"]
    roles = {round: {row["role"] for row in rows if row["round"] == round} for round in "123"}
    assert roles["2"] == {"smashed", "targets", "ids", "cut_gradient", "envelope"}
    assert roles["3"] == {"smashed", "targets", "envelope"}
    coded = {
        round: sum(int(row["coded_bytes"]) for row in rows if (row["round"], row["role"]) == (round, "smashed"))
        for round in "123"
    }
    assert coded["3"] == coded["1"] > coded["2"]  # whole, in the bits of what crosses for the first time
    assert phases(folder) == ["gradient", "gradient", "frozen", "memory", "memory"]


def test_who_is_lost_sends_the_rest_later(tmp_path):
    gone = "federation.availability={kind: drawn, dropout: 0.5}"
    plan = small(*MEMORY, gone, "federation.rounds=16", "data.limit=240", "seed=1")
    folder = simulate(plan, runs=tmp_path, observers=()).folder
    rows = [row for row in table(folder / "ledger.csv") if row["role"] == "targets" and row["round"] != "1"]
    assert phases(folder).count("frozen") > 1
    assert sum(int(row["raw_bytes"]) for row in rows) == 8 * 240  # nothing twice
    assert len({row["round"] for row in rows}) > 1
    seen = [int(row["examples"]) for row in table(folder / "metrics.csv") if row["phase"] == "memory"]
    assert seen == sorted(seen)
    assert seen[-1] == 240


@pytest.mark.parametrize(("mode", "sizes"), [("sl", [16] * 6), ("sfl-v1", [16] * 6), ("psl", [48] * 2)])
def test_a_pass_trains_the_one_back_in_steps_as_large_as_those_before(mode, sizes, tmp_path, monkeypatch):
    """A joint step of three clients has three mini-batches; with a back for each client, that which is made of them."""
    train, found = Passes.train, {True: [], False: []}

    def watched(self, trainer, batches, *given):
        (alone, *_) = {batch.frame.client == -1 for batch in batches}
        found[alone].append((id(trainer), sum(len(batch.targets) for batch in batches)))
        return train(self, trainer, batches, *given)

    monkeypatch.setattr(Passes, "train", watched)
    simulate(small(*MEMORY, f"federation.mode={mode}", "memory.passes=1"), runs=tmp_path, observers=())
    assert [size for _, size in found[True]] == [size for _, size in found[False]] == sizes
    trainers = [{trainer for trainer, _ in found[alone]} for alone in (True, False)]
    assert len(trainers[0]) == 1
    assert trainers[0].isdisjoint(trainers[1]) == (mode == "sfl-v1")


def test_as_many_passes_as_asked_end_a_run(tmp_path):
    folder = simulate(small(*MEMORY, "memory.passes=2"), runs=tmp_path, observers=()).folder
    assert phases(folder) == ["gradient", "frozen", "memory", "memory"]
    assert Summary.read(folder).stopped == "memory"


def test_a_pass_that_diverges_is_dropped_whole(tmp_path):
    plan = small(*MEMORY, "training.server.optimiser={kind: sgd, lr: 1e12}", "phases=[frozen]")
    with pytest.raises(Diverged):
        simulate(plan, runs=tmp_path, observers=())
    (folder,) = tmp_path.iterdir()
    assert phases(folder) == ["frozen", "memory"]  # the second in a row ends the run
    assert table(folder / "metrics.csv")[1]["train_loss"] == ""


def test_damaged_memory_is_told_when_the_run_goes_on(tmp_path):
    watching = Impatient()
    watching.when = 4
    with pytest.raises(KeyboardInterrupt):
        simulate(small(*MEMORY), runs=tmp_path, observers=(watching,))
    (folder,) = tmp_path.iterdir()
    (path, *_) = sorted((folder / "memory").iterdir())
    whole = shutil.copy(path, tmp_path.parent / f"{tmp_path.name}-whole")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=rf"{path}: memory is damaged"):
        simulate(resume=folder, observers=())
    shutil.copy(whole, path)
    simulate(resume=folder, observers=())
    assert phases(folder)[-1] == "memory"


def test_only_who_is_there_is_remembered(tmp_path, monkeypatch):
    """A client that leaves is forgotten, and sends anew when it comes back."""
    present = Attendance.present
    monkeypatch.setattr(
        Attendance,
        "present",
        lambda self, round, there: present(self, round, there) - ({0} if round in (3, 4) else set()),
    )
    folder = simulate(
        small(*MEMORY, "federation.rounds=7", "memory.keep=joined"), runs=tmp_path / "runs", observers=()
    ).folder
    rows = table(folder / "metrics.csv")
    assert phases(folder) == ["gradient", "frozen", "memory", "memory", "frozen", "memory", "memory"]
    assert [row["examples"] for row in rows[2:]] == ["64", "64", "32", "96", "96"]


def test_the_last_phase_must_have_room_for_it():
    with pytest.raises(ScenarioError, match="all clients send their images in 3 rounds of the last phase"):
        small(*MEMORY, "federation.cohort=1", "federation.rounds=4")


def test_a_full_store_trains_on_what_fits(tmp_path, caplog):
    folder = simulate(small(*MEMORY, "memory.disk=20kB"), runs=tmp_path, observers=()).folder
    seen = {int(row["examples"]) for row in table(folder / "metrics.csv") if row["phase"] == "memory"}
    assert seen.pop() < 96
    assert not seen
    assert sum("memory is full" in record.message for record in caplog.records) == 1


def test_memory_is_on_disk_before_its_round_is(tmp_path, monkeypatch):
    """Whatever dies between the two, the checkpoint names what is there."""
    saved, close = [], Store.close
    hashed, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: hashed.append(file.name) or digest(file, kind))

    def closing(self):
        close(self)
        saved.append([segment.sha256 for segment in self._segments])

    monkeypatch.setattr(Store, "close", closing)
    simulate(small(*MEMORY), runs=tmp_path, observers=())
    assert all(len(sha256) == 64 for sha256 in saved[0])
    assert len(saved[0]) == 3
    assert len([name for name in hashed if "memory" in str(name)]) == 3  # each once, whatever rounds come after


def test_a_spent_budget_ends_what_is_sent_and_not_the_passes(tmp_path):
    spent = ["phases=[frozen]", "federation.cohort=1", "budget={kind: cut_bytes, bytes: 1}"]
    folder = simulate(small(*MEMORY, *spent), runs=tmp_path, observers=()).folder
    assert phases(folder) == ["frozen", "memory", "memory", "memory", "memory"]
    assert Summary.read(folder).stopped == "rounds"
