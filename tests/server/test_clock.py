"""Simulated time of whole runs: by the bytes that the ledger has, on any engine, and through interruptions."""

from collections import defaultdict
from pathlib import Path

import pytest
from helpers import PLAIN, small, table
from outcomes import same

from splitfed import simulate
from splitfed.reports.costs.estimate import estimate
from splitfed.run.observer import Observer
from splitfed.scenario.sections import COMMON
from splitfed.server.back.passes import Passes
from splitfed.server.clock.clock import Clock
from splitfed.split.computing.operations import count

PLAIN_LINE = "link={kind: fixed, up: 1Mbit, down: 4Mbit}"
LTE = "link={kind: fixed, up: 5Mbit, down: 20Mbit, latency: 60ms, jitter: 9ms, loss: 2%}"


def by_client(folder: Path, round: int) -> dict[int, float]:
    """Return the seconds that a client's bytes of a round take at these rates, but for what surrounds messages."""
    seconds: dict[int, float] = defaultdict(float)
    for row in table(folder / "ledger.csv"):
        if int(row["round"]) == round and (row["plane"], row["role"]) != ("control", "envelope"):
            rate = 1e6 if row["direction"] == "up" else 4e6
            seconds[int(row["client"])] += 8 * int(row["sent_bytes"]) / rate
    return seconds


@pytest.mark.parametrize(
    ("changes", "joined"),
    [
        (["federation.mode=sl"], sum),  # in turn
        (["federation.mode=sfl-v1"], max),
        (["federation.mode=sfl-v1", "federation.wave=1"], sum),
        (["federation.mode=sfl-v1", "federation.labels=private", "model.args.depth=3"], max),
        (["phases=[{kind: local, rounds: 1, upload_every: 2}, frozen]"], max),
    ],
)
def test_a_round_lasts_as_long_as_its_bytes_need(changes: list[str], joined, tmp_path: Path) -> None:
    result = simulate(small(PLAIN_LINE, *changes), runs=tmp_path)
    first, second = (joined(by_client(result.folder, round).values()) for round in (1, 2))
    assert [row.simulated_seconds for row in result.rounds] == pytest.approx([first, first + second], rel=1e-9)
    assert result.summary.simulated_seconds == result.rounds[-1].simulated_seconds


def test_an_evaluation_takes_its_time_after_the_round(tmp_path: Path) -> None:
    changes = ["federation.mode=sl", "federation.clients=1", "evaluation={held_out: 0.3}"]
    result = simulate(small(PLAIN_LINE, *changes), runs=tmp_path)
    (seconds,) = by_client(result.folder, 1).values()
    assert result.rounds[0].simulated_seconds == pytest.approx(seconds, rel=1e-9)


def test_what_is_sent_does_not_depend_on_the_link(tmp_path: Path) -> None:
    runs = [simulate(small(*changes), runs=tmp_path) for changes in ([], [LTE], [LTE.replace("5Mbit", "1Mbit")])]
    assert len({(run.folder / "ledger.csv").read_text() for run in runs}) == 1
    assert runs[0].summary.simulated_seconds is None
    assert len({run.summary.test_loss for run in runs}) == 1
    fast, slow = (run.summary.simulated_seconds for run in runs[1:])
    assert fast is not None
    assert slow is not None
    assert 0 < fast < slow


def test_who_is_not_through_by_the_deadline_is_given_up(tmp_path: Path) -> None:
    """Lines differ so much that some are not through when half of the time is over that all need."""
    lines = "link={kind: drawn, up: {kind: lognormal, median: 1Mbit, sigma: 2}, down: 4Mbit}"
    free = simulate(small(lines), runs=tmp_path)
    assert free.rounds[0].simulated_seconds is not None
    held = simulate(small(lines, f"federation.deadline={free.rounds[0].simulated_seconds / 2:.4f}"), runs=tmp_path)
    assert [row.lost for row in held.rounds] != [0, 0]
    assert held.summary.simulated_seconds == pytest.approx(free.rounds[0].simulated_seconds, rel=1e-3)


class _Stops(Observer):
    def progress(self, round: int, share: float) -> None:
        if round == 3 and share > 0.5:
            raise KeyboardInterrupt


def test_a_resumed_run_has_the_same_time(tmp_path: Path) -> None:
    """Its recording goes on where it was, from the run's own copy."""
    recording = tmp_path / "lte"
    recording.write_text("0.3 8\n0.7 1\n2 0.5\n2.2 9\n")
    plan = small(f"link={{kind: trace, up: {recording}, down: {recording}, latency: 20ms, loss: 1%}}",
                 "federation.rounds=4", "federation.mode=sl")  # fmt: skip
    whole = simulate(plan, runs=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, runs=tmp_path / "stopped", observers=[_Stops()])
    (folder,) = (tmp_path / "stopped").iterdir()
    recording.write_text("1\n")
    resumed = simulate(resume=folder)
    times = [row.simulated_seconds for row in whole.rounds]
    assert [row.simulated_seconds for row in resumed.rounds] == times
    assert len(set(times)) == 4


def test_who_is_ahead_waits_for_its_line_alone(tmp_path: Path) -> None:
    """Of twelve mini-batches each waits for a round trip, or they do together; what goes up takes its time anyhow. A
    plan is made by the same rules: it foretells what comes, but for the lossless stage."""
    line = "link={kind: fixed, up: 1Mbit, down: 1Gbit, latency: 100ms}"
    changes = [line, *PLAIN, "federation.clients=1", "federation.rounds=1", "federation.local_epochs=2"]
    in_turn, one = (simulate(small(*changes, f"training.ahead={ahead}"), runs=tmp_path) for ahead in (0, 12))
    steps = 12
    up = [row for row in table(one.folder / "ledger.csv") if row["direction"] == "up" and row["plane"] == "data"]
    least = sum(8 * int(row["sent_bytes"]) for row in up) / 1e6
    seconds = [run.summary.simulated_seconds or 0.0 for run in (in_turn, one)]
    assert seconds[0] - seconds[1] == pytest.approx((steps - 1) * 0.2, rel=0.1)
    assert 0 < seconds[1] - least < 4.5  # messages and the stream's opening take 14 round trips, 2.8 s
    assert estimate(small(*changes, "training.ahead=12")).simulated[COMMON][0] == pytest.approx(seconds[1], rel=1e-3)


def test_a_deadline_gives_up_who_is_ahead_with_what_is_answered(tmp_path: Path) -> None:
    lines = "link={kind: drawn, up: {kind: lognormal, median: 1Mbit, sigma: 2}, down: 4Mbit}"
    changes = [lines, "training.ahead=1", "federation.local_epochs=3"]
    free = simulate(small(*changes), runs=tmp_path)
    half = (free.rounds[0].simulated_seconds or 0.0) / 2
    held = simulate(small(*changes, f"federation.deadline={half:.4f}"), runs=tmp_path)
    assert [row.lost for row in held.rounds] != [0, 0]
    assert held.summary.simulated_seconds == pytest.approx(2 * half, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [pytest.param(0, marks=pytest.mark.long), 2])
def test_ray_tells_the_same_time(ahead: int, tmp_path: Path) -> None:
    changes = [LTE, "federation.server.link={up: 6Mbit}", "evaluation={held_out: 0.3}", f"training.ahead={ahead}"]
    one, other = (
        simulate(small(*changes, f"engine={{kind: {kind}, threads: 1}}"), runs=tmp_path) for kind in ("inline", "ray")
    )
    same(one.folder, other.folder)
    assert [row.simulated_seconds for row in one.rounds] == [row.simulated_seconds for row in other.rounds]


SPEEDS = ["federation.profiles={all: {share: 1, device: {flops: 5MFLOPS}}}", "federation.server.device.flops=20MFLOPS"]


@pytest.mark.parametrize(
    ("changes", "client", "server"),
    [
        (["federation.mode=sl"], lambda o: o.client, lambda o: o.server),
        (["federation.mode=sl", "federation.labels=private", "model.args.depth=3"],
         lambda o: o.client, lambda o: o.server),
        (["federation.mode=fl", "federation.wave=1", "training.server={}"], lambda o: o.client, lambda o: 0.0),
        (["federation.mode=sl", "phases=[frozen]"], lambda o: o.front_forward + o.reducing, lambda o: o.server),
    ],
)  # fmt: skip
def test_computing_takes_what_its_operations_need(changes: list[str], client, server, tmp_path: Path) -> None:
    """Where bytes take no time, and one client computes after another."""
    scenario = small(*SPEEDS, *changes)
    found = simulate(scenario, runs=tmp_path)
    operations, images = count(scenario, 10), found.rounds[0].examples
    assert found.rounds[0].simulated_seconds == pytest.approx(
        images * (client(operations) / 5e6 + server(operations) / 20e6), rel=1e-9
    )


def test_clients_at_once_wait_for_each_other_at_the_server_alone(tmp_path: Path) -> None:
    """Three clients of two mini-batches; the server takes ten times as long for one as a client, so that it is busy
    from the first on, but for the half of a step that the first of them goes on alone at the end."""
    scenario = small(
        "federation.profiles={all: {share: 1, device: {flops: 5GFLOPS}}}", "federation.server.device.flops=1MFLOPS"
    )
    found, operations = simulate(scenario, runs=tmp_path), count(scenario, 10)
    images = found.rounds[0].examples
    assert found.rounds[0].simulated_seconds == pytest.approx(images * operations.server / 1e6, rel=1e-3)


def test_an_evaluation_computes_forward_alone(tmp_path: Path) -> None:
    one = small(*SPEEDS, "federation.clients=1", "evaluation={held_out: 0.3}")
    found, operations = simulate(one, runs=tmp_path), count(one, 10)
    held_out = int(table(found.folder / "clients.csv")[0]["examples"])
    trained = found.rounds[0].examples * (operations.client / 5e6 + operations.server / 20e6)
    evaluated = held_out * (operations.front_forward / 5e6 + operations.back_forward / 20e6)
    assert found.rounds[0].simulated_seconds == pytest.approx(trained + evaluated, rel=1e-9)


@pytest.mark.parametrize("slow", ["phone", "hospital"])
def test_a_profile_has_a_link_and_a_device_of_its_own(slow: str, tmp_path: Path) -> None:
    kinds = {"phone": "{kind: fixed, up: 9Mbit, down: 9Mbit}", "hospital": "{kind: fixed, up: 9Mbit, down: 9Mbit}"}
    kinds[slow] = "{kind: fixed, up: 1Mbit, down: 4Mbit}"
    profiles = ", ".join(f"{name}: {{share: 0.5, link: {link}}}" for name, link in kinds.items())
    scenario = small("federation.clients=4", "federation.mode=sfl-v1", f"federation.profiles={{{profiles}}}")
    found = simulate(scenario, runs=tmp_path)
    held = Clock(scenario, tmp_path).work.profile
    assert sorted(held) == ["hospital", "hospital", "phone", "phone"]
    seconds = by_client(found.folder, 1)
    slowest = max(seconds[client] for client, name in enumerate(held) if name == slow)
    assert found.rounds[0].simulated_seconds == pytest.approx(slowest, rel=1e-9)


@pytest.mark.parametrize("vanishes", [None, 2])
def test_the_back_takes_mini_batches_in_the_order_of_simulated_time(vanishes, tmp_path: Path, monkeypatch) -> None:
    """Of three clients, each of which computes a mini-batch in a time of its own, and where bytes take none."""
    seconds = {0: 3.1, 1: 1.0, 2: 1.3}
    trace = tmp_path / "trace.csv"
    lines = [f"{one},1,{took},{vanishes if vanishes and one == 1 else ''}" for one, took in seconds.items()]
    trace.write_text("\n".join(["client,round,step_seconds,vanishes_after", *lines, ""]))
    taken = []
    train = Passes.train
    monkeypatch.setattr(
        Passes, "train", lambda passes, trainer, batches, *more: (
            taken.extend(one.frame.client for one in batches), train(passes, trainer, batches, *more))[1],
    )  # fmt: skip
    scenario = small(
        "federation.order=arrival",
        "federation.rounds=1",
        "federation.local_epochs=null",
        "federation.local_steps=6",
        f"federation.availability={{kind: trace, file: {trace}}}",
    )
    found = simulate(scenario, runs=tmp_path / "one")
    steps = dict.fromkeys(seconds, 6) | ({1: vanishes} if vanishes else {})
    due = [((step + 1) * took, one) for one, took in seconds.items() for step in range(steps[one])]
    assert taken == [one for _, one in sorted(due)]
    again = simulate(scenario, runs=tmp_path / "other")
    same(found.folder, again.folder)
