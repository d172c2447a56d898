"""A run that is killed and resumed ends as the run that was never killed."""

import json
import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import ADC, few, run_in_child, small, table
from outcomes import data_rows, outcome
from safetensors.torch import load_file

from splitfed import Scenario, simulate
from splitfed.errors import RunError
from splitfed.run.observer import Observer
from splitfed.run.recovery import wasted_bytes
from splitfed.server.cohort.attendance import Attendance

# Children start from a process that has imported everything already.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["splitfed.simulation", "splitfed.server.app", "splitfed.clients.app"])


def scenario(mode: str, ahead: int = 0) -> Scenario:
    return small(
        *ADC, f"training.ahead={ahead}",
        "federation.rounds=6", f"federation.mode={mode}", "federation.cohort=2", "training.client_state=keep",
        "training.evaluate_every=2", "data.augment=flip", "evaluation={held_out: 0.2, every: 2, cohort: 2}",
    )  # fmt: skip


def start(runs: Path, text: str, resume: Path | None) -> "multiprocessing.process.BaseProcess":
    process = FORKSERVER.Process(target=run_in_child, args=(text, str(runs), str(resume) if resume else None))
    process.start()
    return process


def run_folder(runs: Path) -> Path | None:
    found = sorted(runs.glob("small-*"))
    return found[0] if found and (found[0] / "scenario.yaml").exists() else None


def written(folder: Path | None) -> int:
    """How far a run has come: bytes of `ledger.csv` and of the open round's rows."""
    try:
        paths = [*folder.glob("ledger.csv"), *folder.glob("open-*.csv")] if folder else []
        return sum(path.stat().st_size for path in paths)
    except FileNotFoundError:  # moved in between
        return 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "ahead"), [pytest.param("sfl-v1", 0, marks=pytest.mark.long), ("sfl-v2", 0), ("sfl-v1", 2)]
)
def test_killed_at_random_moments(mode, ahead, tmp_path):
    plan = scenario(mode, ahead)
    expected = outcome(simulate(plan, runs=tmp_path / "whole").folder)
    runs, chance, kills, folder = tmp_path / "killed", random.Random(mode), 0, None
    length = written(next(tmp_path.glob("whole/*")))
    runs.mkdir()
    while kills < 5:  # five in each mode
        process = start(runs, plan.to_yaml(), folder)
        moment = written(folder) + chance.uniform(0, length / 7)
        while process.is_alive() and written(run_folder(runs)) < moment:
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended, or failed, before it could be killed"
        kills, folder = kills + 1, run_folder(runs)
    simulate(resume=folder)
    found = outcome(folder)
    assert found["summary"] == expected["summary"]
    assert found["metrics"] == expected["metrics"]
    assert found["ledger"] == expected["ledger"]
    assert found["clients"] == expected["clients"] != {}
    assert found["model"] == expected["model"]
    summary = json.loads((folder / "summary.json").read_text())
    lost = wasted_bytes(folder)
    assert summary["bytes_wasted"] == lost > 0  # at least the queries of each new attempt
    assert summary["total_bytes"] == lost + sum(int(row["sent_bytes"]) for row in table(folder / "ledger.csv"))
    assert not list(folder.glob("open-*"))


class Interrupt(Exception):
    """Stands for whatever ends a process between two writes."""


@pytest.mark.parametrize("where", few(["commit", "save", "forget_open", "write"], quick=1))
def test_killed_between_two_writes(where, tmp_path, monkeypatch):
    """The moments that a random kill hardly meets: on either side of each file that ends a round."""
    from splitfed.run.checkpoint import Checkpoints
    from splitfed.run.ledger import Ledger
    from splitfed.run.summary import Summary

    plan = scenario("sfl-v2")
    expected = outcome(simulate(plan, runs=tmp_path / "whole").folder)
    for after in (False, True):
        owner = {"commit": Ledger, "save": Checkpoints, "forget_open": Ledger, "write": Summary}[where]
        original, calls = getattr(owner, where), []

        def dying(self, *args, original=original, calls=calls, after=after):
            calls.append(None)
            last = len(calls) == (1 if where == "write" else 3)
            if last and not after:
                raise Interrupt
            result = original(self, *args)
            if last:
                raise Interrupt
            return result

        runs = tmp_path / f"{where}-{after}"
        with monkeypatch.context() as patch:
            patch.setattr(owner, where, dying)
            patch.setattr(Ledger, "waste", lambda self: None)  # a killed process tidies nothing up
            with pytest.raises(Interrupt):
                simulate(plan, runs=runs)
        (folder,) = runs.iterdir()
        if where == "write" and after:
            with pytest.raises(RunError, match="is complete"):
                simulate(resume=folder)
        else:
            simulate(resume=folder)
        assert outcome(folder) == expected


@pytest.mark.parametrize("mode", few(["sfl-v1", "sfl-v2"]))
def test_ctrl_c_drops_the_open_round(mode, tmp_path):
    from splitfed.run.observer import Observer

    class Impatient(Observer):
        stopped = None

        def progress(self, round: int, share: float) -> None:
            if round == 3 and share > 0.5:
                raise KeyboardInterrupt

        def interrupted(self, folder, round, totals) -> None:
            self.stopped = (round, totals.total.sent)

    plan, observer = scenario(mode), Impatient()
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=tmp_path, observers=(observer,))
    (folder,) = tmp_path.glob("small-*")
    round, sent = observer.stopped
    assert round == 2
    assert sent == sum(int(row["sent_bytes"]) for row in table(folder / "ledger.csv"))
    lost = table(folder / "wasted.csv")
    assert {row["round"] for row in lost} == {"3"}
    assert wasted_bytes(folder) > 0
    simulate(resume=folder)
    expected = outcome(simulate(plan, runs=tmp_path / "whole").folder)
    assert outcome(folder) == expected


@pytest.mark.parametrize("mode", few(["sfl-v1", "sfl-v2"], quick=1))
def test_ctrl_c_while_the_round_is_evaluated(mode, tmp_path, monkeypatch):
    """Nothing of the round was kept yet, so all of it is dropped, and nothing is counted twice."""
    from splitfed.run.observer import Observer
    from splitfed.server.model import Model

    class Told(Observer):
        def interrupted(self, folder, round, totals) -> None:
            self.round, self.sent = round, totals.total.sent

    plan, told, validate, calls = scenario(mode), Told(), Model.validate, []

    def interrupted(self):
        calls.append(None)
        if len(calls) == 2:  # evaluated every second round: this is round 4
            raise KeyboardInterrupt
        return validate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            simulate(plan, runs=tmp_path, observers=(told,))
    (folder,) = tmp_path.glob("small-*")
    kept = table(folder / "ledger.csv")
    assert told.round == 3
    assert told.sent == sum(int(row["sent_bytes"]) for row in kept)
    assert {row["round"] for row in kept} == {"0", "1", "2", "3"}
    assert {row["round"] for row in table(folder / "wasted.csv")} == {"4"}
    simulate(resume=folder)
    assert outcome(folder) == outcome(simulate(plan, runs=tmp_path / "whole").folder)


@pytest.mark.parametrize("mode", few(["sfl-v1", "sfl-v2"]))
def test_ctrl_c_between_two_rounds(mode, tmp_path, monkeypatch):
    """The backs of the round before are settled, those of the next not handed out."""
    plan, sample = scenario(mode), Attendance.sample

    def interrupted(self, round, there):
        if round == 3:
            raise KeyboardInterrupt
        return sample(self, round, there)

    with monkeypatch.context() as patch:
        patch.setattr(Attendance, "sample", interrupted)
        with pytest.raises(KeyboardInterrupt):
            simulate(plan, runs=tmp_path)
    (folder,) = tmp_path.glob("small-*")
    assert {row["round"] for row in table(folder / "ledger.csv")} == {"0", "1", "2"}
    simulate(resume=folder)
    assert outcome(folder) == outcome(simulate(plan, runs=tmp_path / "whole").folder)


def test_a_different_scenario_is_refused(tmp_path):
    plan = small("federation.rounds=1")
    folder = simulate(plan, runs=tmp_path).folder
    (folder / "summary.json").unlink()
    with pytest.raises(RunError, match="different scenario"):
        simulate(plan.with_(["seed=1"]), resume=folder)
    assert simulate(plan, resume=folder).summary.rounds == 1


def test_a_folder_in_use_is_refused(tmp_path):
    from splitfed.run.folder import create, locked

    folder = create(small(), tmp_path)
    with locked(folder), pytest.raises(RunError, match="another process"):
        simulate(resume=folder)


def test_no_run_folder_and_no_scenario(tmp_path):
    with pytest.raises(RunError, match=r"no scenario\.yaml"):
        simulate(resume=tmp_path)
    with pytest.raises(RunError, match="nothing to simulate"):
        simulate()


def test_only_some_checkpoints_stay(tmp_path):
    folder = simulate(small("federation.rounds=4", "checkpoints.keep=3"), runs=tmp_path).folder
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        f"round-{number:06d}" for number in (2, 3, 4)
    ]
    assert torch.is_tensor(load_file(folder / "checkpoints/round-000004/optimiser.safetensors")["0/exp_avg"])


def test_a_run_of_0_1_goes_on(tmp_path):
    """Its checkpoints have the examples of clients beside the run's progress, and an optimiser's file always."""
    plan, folder = scenario("sfl-v1"), stopped_in_round_3(tmp_path)
    for state in folder.glob("checkpoints/*/state.json"):
        said = json.loads(state.read_text())
        states = said.pop("states")
        assert list(said.pop("files")) == ["optimiser.safetensors", "model.safetensors"]
        for new in ("own_sha256", "sha256", "wasted_bytes"):
            said.pop(new)
        examples = dict(states["roster"]["examples"])
        old = {"examples": [examples.get(client, 0) for client in range(3)], "aligned": states["alignment"]["aligned"]}
        state.write_text(json.dumps(said | old))
    simulate(resume=folder)
    whole = simulate(plan, runs=tmp_path / "whole").folder
    found, expected = outcome(folder), outcome(whole)
    # Clients are not told when they were last taken, as nobody wrote it down: what is sent to train is shorter.
    assert data_rows(folder) == data_rows(whole)
    assert (found["model"], found["clients"]) == (expected["model"], expected["clients"])


def test_what_clients_hold_in_a_run_of_0_1_is_refused_in_a_line(tmp_path):
    folder = stopped_in_round_3(tmp_path)
    for checkpoint in folder.glob("checkpoints/*"):
        (checkpoint / "held.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"splitfed 0\.1 began this run, .*: go on with that version, or start a new"):
        simulate(resume=folder)


def stopped_in_round_3(runs: Path) -> Path:
    class Impatient(Observer):
        def progress(self, round: int, share: float) -> None:
            if round == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(scenario("sfl-v1"), runs=runs, observers=(Impatient(),))
    (folder,) = runs.glob("small-*")
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "optimiser.safetensors", "state.json"])
def test_a_checkpoint_that_lacks_a_file_is_broken(name, tmp_path):
    """It would go on, from weights that nobody trained."""
    folder = stopped_in_round_3(tmp_path)
    (folder / "checkpoints/round-000002" / name).unlink()
    with pytest.raises(RunError, match="broken checkpoint"):
        simulate(resume=folder)


def test_a_budget_of_all_bytes_counts_what_earlier_attempts_wasted(tmp_path):
    """Two rounds fit exactly, as long as nothing is wasted; what the images weigh is what it was when the run began."""
    free = simulate(small("federation.rounds=4"), runs=tmp_path)
    second = free.rounds[1].total_bytes

    def interrupted(limit: int) -> Path:
        plan = small("federation.rounds=4", f"budget={{kind: total_bytes, bytes: {limit}}}")
        runs = tmp_path / str(limit)
        with pytest.raises(KeyboardInterrupt):
            simulate(plan, runs=runs, observers=(Stopping(after=1),))
        (folder,) = runs.iterdir()
        return folder

    folder = interrupted(second + 1)
    assert wasted_bytes(folder) > 1
    result = simulate(resume=folder)
    # One byte was left after two rounds, and waste has taken it.
    assert (result.summary.rounds, result.summary.stopped) == (2, "budget")
    assert result.summary.total_bytes == result.rounds[-1].total_bytes + result.summary.bytes_wasted
    assert result.summary.images_bytes == free.summary.images_bytes
    # With as much more to spend as is wasted, and a little, there is room for one round.
    result = simulate(resume=interrupted(second + result.summary.bytes_wasted + 1000))
    assert (result.summary.rounds, result.summary.stopped) == (3, "budget")


class Stopping(Observer):
    """Interrupts the round that comes after some rounds."""

    def __init__(self, after: int) -> None:
        self.after = after

    def progress(self, round: int, share: float) -> None:
        if round > self.after and share > 0.2:
            raise KeyboardInterrupt
