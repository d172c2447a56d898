"""Rounds in which clients come late, vanish, or are too slow: what is trained, what is counted, and how it goes on."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from deployed import deployment
from helpers import few, small, table
from models import newest
from outcomes import data_rows, outcome
from safetensors.torch import load_file

from splitfed import Scenario, compare, simulate
from splitfed.engines.ray.cluster import connected
from splitfed.errors import RunError
from splitfed.run.observer import Observer
from splitfed.run.recovery import wasted_bytes
from splitfed.seeds import Key
from splitfed.server.back.session import SplitSession

# Six clients with two mini-batches each.
MODES = pytest.mark.parametrize("mode", few(["sl", "sfl-v1", "sfl-v2", "psl"], quick=2))


def plan(*overrides: str, trace: str = "", folder: Path | None = None) -> Scenario:
    """Return a scenario of six clients; with a `trace`, its lines after client, round, away, late, step_seconds and
    vanishes_after are written below the folder."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trace.csv").write_text("client,round,away,late,step_seconds,vanishes_after\n" + trace)
        overrides = (f"federation.availability={{kind: trace, file: '{folder / 'trace.csv'}'}}", *overrides)
    return small("federation.clients=6", "data.limit=192", "federation.rounds=1", *overrides)


def sent(folder: Path) -> dict[tuple[int, int], int]:
    """Bytes of the data plane by round and client, as the ledger has them."""
    found: dict[tuple[int, int], int] = defaultdict(int)
    for row in table(folder / "ledger.csv"):
        if row["plane"] == "data":
            found[int(row["round"]), int(row["client"])] += int(row["sent_bytes"])
    return dict(found)


def steps(folder: Path, round: int = 1) -> dict[int, int]:
    """How many mini-batches each client sent in a round."""
    found: dict[int, int] = defaultdict(int)
    for row in table(folder / "ledger.csv"):
        if int(row["round"]) == round and row["role"] == "smashed":
            found[int(row["client"])] += 1
    return dict(found)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@MODES
def test_a_third_vanishes_in_every_round_and_all_is_counted(mode, tmp_path, monkeypatch):
    crossed: dict[tuple[int, int], int] = defaultdict(int)
    handle = SplitSession.handle

    def counting(session, buffer):
        reply = handle(session, buffer)
        crossed[session.context.round, session.client] += len(buffer) + len(reply)
        return reply

    monkeypatch.setattr(SplitSession, "handle", counting)
    scenario = plan("federation.availability={kind: drawn, dropout: 0.3}", "federation.rounds=3",
                    f"federation.mode={mode}", "federation.strategy=FedAvg")  # fmt: skip
    result = simulate(scenario, runs=tmp_path)
    drawn = scenario.federation.availability.open(Key(0).at("availability"), 6, tmp_path)
    expected = {(round, client): drawn.presence(round, client, 2).vanishes_after
                for round in (1, 2, 3) for client in range(6)}  # fmt: skip
    lost = [sum(expected[row.round, client] is not None for client in range(6)) for row in result.rounds]
    assert [row.lost for row in result.rounds] == lost
    assert sum(lost) == result.summary.lost > 2
    assert [row.clients for row in result.rounds] == [6 - number for number in lost]
    assert [row.examples for row in result.rounds] == [32 * (6 - number) for number in lost]
    assert 0 <= result.summary.test_accuracy <= 1
    for round in (1, 2, 3):
        trained = {client: 2 if expected[round, client] is None else expected[round, client] for client in range(6)}
        assert steps(result.folder, round) == {client: number for client, number in trained.items() if number}
    assert sent(result.folder) == {pair: number for pair, number in crossed.items() if number}
    assert sum(crossed.values()) == result.summary.cut_bytes
    total = sum(int(row["sent_bytes"]) for row in table(result.folder / "ledger.csv"))
    assert total == result.summary.total_bytes  # nothing was wasted
    log = (result.folder / "log.txt").read_text()
    assert f"  {lost[0]} lost\n" in log
    assert "is lost" not in log
    # Each mini-batch takes a second; clients in turn wait for each other.
    seconds = [2.0] * 3 if mode != "sl" else [float(sum(steps(result.folder, round).values())) for round in (1, 2, 3)]
    assert [row.simulated_seconds for row in result.rounds] == [sum(seconds[: n + 1]) for n in range(3)]


@pytest.mark.parametrize("mode", few(["sl", "sfl-v1", "sfl-v2", "psl", "fl"], quick=2))
def test_what_a_client_taught_before_it_vanished(mode, tmp_path):
    """It stays in a shared back, and nowhere else: against a run in which the client was never there."""

    def run(name: str, trace: str):
        alone = ["training.server={}"] if mode == "fl" else []
        return simulate(plan(f"federation.mode={mode}", *alone, trace=trace, folder=tmp_path / name), runs=tmp_path)

    never, silent, taught = run("never", "4,,1,,,\n"), run("silent", "4,,,,,0\n"), run("taught", "4,,,,,1\n")
    one, same, other = (newest(result.folder) for result in (never, silent, taught))
    assert equal(one, same)
    assert equal(one, other) == (mode in ("sfl-v1", "fl"))
    if mode != "fl":  # where no mini-batch crosses
        assert [steps(result.folder).get(4, 0) for result in (never, silent, taught)] == [0, 0, 1]
    assert never.rounds[0].train_loss == silent.rounds[0].train_loss
    assert [result.rounds[0].lost for result in (never, silent, taught)] == [0, 1, 1]
    # It got the front's weights and said nothing but that it is gone.
    down = [
        row for row in table(silent.folder / "ledger.csv") if row["client"] == "4" and row["role"] == "front_weights"
    ]
    assert [row["direction"] for row in down] == ["down"]


@pytest.mark.parametrize("mode", ["sfl-v1", "sfl-v2"])
def test_the_fastest_of_more_are_taken(mode, tmp_path):
    # Finished after 8, 5, 14, 6, 2 and 26 seconds, but for 4, which vanishes.
    slow = "0,,,,4,\n1,,,1,2,\n2,,,4,5,\n3,,,4,1,\n4,,,,1,1\n5,,,20,3,\n"
    more = ["federation.cohort=3", "federation.oversample=2"]
    result = simulate(plan(f"federation.mode={mode}", *more, trace=slow, folder=tmp_path), runs=tmp_path)
    (row,) = result.rounds
    assert (row.clients, row.lost, row.simulated_seconds) == (3, 3, 8.0)
    assert steps(result.folder) == {0: 2, 1: 2, 3: 2, 4: 1}  # 2 was not through with its first, 5 had not begun
    answers = [
        row for row in table(result.folder / "ledger.csv") if row["role"] == "metrics" and row["direction"] == "up"
    ]
    assert {row["client"] for row in answers} == {"0", "1", "3"}


def test_who_is_too_late_for_the_deadline_is_given_up(tmp_path):
    slow = "0,,,,4,\n1,,,1,2,\n2,,,4,5,\n3,,,4,1,\n4,,,,1,1\n5,,,20,3,\n"
    scenario = plan("federation.mode=sfl-v1", "federation.deadline=7", trace=slow, folder=tmp_path)
    result = simulate(scenario, runs=tmp_path)
    (row,) = result.rounds
    assert (row.clients, row.lost, row.simulated_seconds) == (2, 4, 7.0)
    assert steps(result.folder) == {0: 1, 1: 2, 3: 2, 4: 1}


def test_in_turn_the_deadline_comes_before_somes_turn(tmp_path):
    """The front is handed on from the last who finished, as if nobody else had been sampled."""
    result = simulate(plan("federation.mode=sl", "federation.deadline=7", folder=tmp_path / "7"), runs=tmp_path)
    (row,) = result.rounds
    assert (row.clients, row.lost, row.simulated_seconds) == (3, 3, 7.0)
    order = torch.randperm(6, generator=Key(0).at("cohort", 1).generator()).tolist()
    assert steps(result.folder) == dict(zip(order, (2, 2, 2, 1), strict=False))
    heard = {row["client"] for row in table(result.folder / "ledger.csv") if row["round"] == "1"}
    assert heard == {str(client) for client in order[:4]}
    away = "".join(f"{client},,1,,,\n" for client in order[3:])
    three = simulate(plan("federation.mode=sl", trace=away, folder=tmp_path / "3"), runs=tmp_path)
    fronts = [{name: t for name, t in newest(one.folder).items() if "patch_embed" in name} for one in (result, three)]
    assert equal(*fronts)


def test_a_round_without_clients_is_one_without_training(tmp_path):
    """In the first all are away, in the second all vanish: what was sent is counted, and the run goes on."""
    gone = "".join(f"{client},1,1,,,\n{client},2,,,2,1\n" for client in range(6))
    scenario = plan("federation.mode=sfl-v1", "federation.rounds=3", "checkpoints.keep=9", trace=gone, folder=tmp_path)
    result = simulate(scenario, runs=tmp_path)
    away, vanished, trained = result.rounds
    assert [row.train_loss is None for row in result.rounds] == [True, True, False]
    assert [(row.clients, row.lost, row.examples) for row in result.rounds] == [(0, 0, 0), (0, 6, 0), (6, 0, 192)]
    assert away.cut_bytes == 0 < vanished.cut_bytes < trained.cut_bytes
    assert [row.simulated_seconds for row in result.rounds] == [0.0, 2.0, 4.0]
    assert away.eval_loss == vanished.eval_loss != trained.eval_loss
    assert table(result.folder / "metrics.csv")[0]["train_loss"] == ""
    models = [
        load_file(folder / "model.safetensors") for folder in sorted((result.folder / "checkpoints").iterdir())
    ]  # fmt: skip
    assert equal(models[0], models[1])
    assert equal(models[0], models[2])
    assert not equal(models[0], models[3])
    log = (result.folder / "log.txt").read_text()
    assert log.count("no client finished it; the front stays as it was") == 2
    assert wasted_bytes(result.folder) == 0


@MODES
def test_a_resumed_run_goes_by_the_trace_that_it_began_with(mode, tmp_path):
    """Its seconds go on too; clients keep their optimisers, but for those who vanished."""

    class Impatient(Observer):
        def progress(self, round: int, share: float) -> None:
            if round == 3 and share > 0.3:
                raise KeyboardInterrupt

    # What is measured from weights that a client was sent is whole again for one that was lost.
    kept = ["compression.front_weights={codec: {kind: uniform, bits: 8}, delta: true}"] if mode == "sfl-v1" else []
    unsteady = "0,2,,,2,1\n1,,,3,0.3,\n2,1,1,,,\n3,,,,5,\n4,4,,,,0\n5,3,,,,1\n"
    scenario = plan(
        f"federation.mode={mode}", "federation.cohort=3", "federation.oversample=1.5", "federation.rounds=4",
        "training.client_state=keep", "federation.deadline=11", *kept, trace=unsteady, folder=tmp_path,
    )  # fmt: skip
    whole = simulate(scenario, runs=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        simulate(scenario, runs=tmp_path / "part", observers=(Impatient(),))
    (tmp_path / "trace.csv").write_text("client,away\n0,1\n")
    (folder,) = (tmp_path / "part").iterdir()
    simulate(resume=folder)
    assert outcome(folder) == outcome(whole.folder)
    assert whole.summary.simulated_seconds == whole.rounds[-1].simulated_seconds > 0


def test_a_run_of_an_earlier_version_is_read_and_not_resumed(tmp_path):
    folder = simulate(plan(), runs=tmp_path).folder
    new = {"lost", "simulated_seconds"}
    rows = table(folder / "metrics.csv", *new)
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    for state in folder.glob("checkpoints/*/state.json"):  # which knew no SHA-256
        said = json.loads(state.read_text())
        del said["own_sha256"], said["sha256"], said["wasted_bytes"]
        said |= {"files": list(said["files"]), "metrics_bytes": (folder / "metrics.csv").stat().st_size}
        state.write_text(json.dumps(said))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({key: summary[key] for key in summary if key not in new}))
    assert [one.summary.lost for one in compare([folder]).grouped("time").groups[0].runs] == [0]
    with pytest.raises(
        RunError, match=r"--by simulated_time: .* has none, for want of a link or of federation.availability"
    ):
        compare([folder]).grouped("simulated_time")
    (folder / "summary.json").unlink()
    with pytest.raises(RunError, match="an earlier version of splitfed began this run"):
        simulate(resume=folder)


def test_runs_are_sorted_by_simulated_time(tmp_path):
    folders = []
    for name, late in (("slow", 50), ("fast", 1)):
        scenario = plan(f"name=run-{name}", trace=f"0,,,{late},,\n", folder=tmp_path / name)
        folders.append(simulate(scenario, runs=tmp_path).folder)
    assert [one.label for one in compare(folders).grouped("simulated_time").groups] == ["run-fast", "run-slow"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Start Ray once."""
    with connected(None, {}):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    "more",
    [
        ("federation.cohort=3", "federation.oversample=1.5"),
        ("federation.clients=24", "data.limit=768", "federation.rounds=2"),
    ],
    ids=["sampled", "24"],
)
def test_ray_does_the_same(more, tmp_path):
    scenario = plan(
        "federation.availability={kind: drawn, dropout: 0.3, away: 0.2, late: {kind: exponential, mean: 2}}",
        "federation.rounds=3", "federation.mode=sfl-v1", *more,
    )  # fmt: skip
    one = simulate(scenario, runs=tmp_path / "inline")
    other = simulate(scenario.with_(["engine.kind=ray"]), runs=tmp_path / "ray")
    assert one.summary.lost > 0
    assert data_rows(one.folder) == data_rows(other.folder)
    without = ("seconds", "total_bytes", "total_raw_bytes")
    assert table(one.folder / "metrics.csv", *without) == table(other.folder / "metrics.csv", *without)
    assert equal(newest(one.folder), newest(other.folder))


@pytest.mark.long
@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("federation.deadline=25", "it has not finished within 25 s"),
        ("federation.oversample=1.5", "2 others were first"),
    ],
)
def test_a_deployment_gives_up_who_is_slow(setting, why, tmp_path):
    """One client takes long after each mini-batch, and the round ends without it."""
    sleepy = (
        "import time\nfrom splitfed.clients.steps import SplitStep\nstep = SplitStep.__call__\n"
        "def slow(self, *a):\n    done = step(self, *a)\n    time.sleep(20)\n    return done\nSplitStep.__call__ = slow"
    )
    cohort = [] if "deadline" in setting else ["federation.cohort=2"]
    scenario = small(
        "federation.clients=3", *cohort, "federation.mode=sfl-v1", setting, "federation.rounds=1",
        "federation.local_epochs=3", "engine={kind: deployment, threads: 1}",
    )  # fmt: skip
    with deployment(tmp_path) as here:
        server = here.serve(scenario)
        for client in range(3):
            here.join(client, before=sleepy if client == 1 else "")
        assert server.end() == 0, server.text
        assert f"round 1: client 1 is given up: {why}" in server.text
        assert "Traceback" not in "".join(process.text for process in here.processes)
    (folder,) = here.runs
    (row,) = table(folder / "metrics.csv")
    assert (row["clients"], row["lost"], row["simulated_seconds"]) == ("2", "1", "")
    trained = steps(folder)
    assert (trained[0], trained[2]) == (6, 6)
    assert trained.get(1, 0) < 6
    assert sum(sent(folder).values()) == int(row["cut_bytes"])
