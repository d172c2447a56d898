"""Clients that say of which profile they are, a controller that goes by what their exchanges measure, and what a client
has of its own or computes in its own way, for real."""

import re
from pathlib import Path

import pytest
from deployed import deployment
from helpers import ADC, DEEPER, small, table
from outcomes import outcome, same

from splitfed import Scenario, simulate

PROFILES = (
    "federation.profiles={phone: {share: 0.5, compression: {reducer: {kind: topk, ratio: 0.1}}}, "
    "hospital: {share: 0.5}}"
)
CONTROL = (
    "control={kind: drift_plus_penalty, target: {kind: seconds_per_round, seconds: 1ms}, v: 0.01, points: {"
    "fine: {utility: 1}, coarse: {compression: {reducer: {kind: adc, ratio: 0.2}}, utility: 0}, "
    "mute: {gradient_every: null, utility: 0}}}"
)


def scenario(*more: str):
    return small("federation.clients=2", "federation.rounds=3", "federation.mode=sfl-v1", *more)


@pytest.mark.long
def test_profiles_and_points_in_a_deployment(tmp_path: Path) -> None:
    plan = scenario(PROFILES, CONTROL, "engine=deployment")
    with deployment(tmp_path) as here:
        server = here.serve(plan)
        stranger = here.join(1, "--threads", 1, "--profile", "tablet")
        assert stranger.end() == 2
        assert "--profile tablet: the server's scenario has the profiles phone, hospital" in stranger.text
        clients = [
            here.join(number, "--threads", 1, "--profile", kind) for number, kind in enumerate(["hospital", "phone"])
        ]
        assert server.end() == 0, server.text
        assert [client.end() for client in clients] == [0, 0], [client.text for client in clients]
        assert "Mbit/s" in clients[0].text
        (folder,) = here.runs
    rows, ledger = table(folder / "control.csv"), table(folder / "ledger.csv")
    assert [(row["round"], row["client"]) for row in rows] == [(r, c) for r in "123" for c in "01"]
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert [row["point"] for row in rows[:2]] == ["fine", "fine"]
    assert float(rows[-1]["queue"]) > 1
    # No round is so short: the hospital leaves the dear point, which for the phone is the cheapest.
    assert [row["point"] == "fine" for row in rows] == [True, True, False, True, False, True]
    for row in rows:
        mine = [one for one in ledger if (one["round"], one["client"]) == (row["round"], row["client"])]
        sides = any(one["role"] == "side" for one in mine)
        assert sides == (
            row["client"] == "1" and row["point"] != "coarse"
        )  # the phone's own reducer, but at that point
        assert any(one["role"] == "cut_gradient" for one in mine) == (row["point"] != "mute")


@pytest.mark.slow
def test_ray_chooses_as_one_process_does(tmp_path: Path) -> None:
    plan = scenario(
        PROFILES, CONTROL.replace("1ms", "300ms"), "link={kind: fixed, up: 1Mbit, down: 4Mbit}", "federation.rounds=4"
    )
    runs = [
        simulate(plan.with_([f"engine={{kind: {kind}, threads: 1}}"]), runs=tmp_path / kind).folder
        for kind in ("inline", "ray")
    ]
    assert table(runs[0] / "control.csv") == table(runs[1] / "control.csv")


UNEVEN = (
    *DEEPER,
    "federation.profiles={phone: {share: 0.5, cut: 1, compression: {smashed: {codec: float16}, front_weights: {codec: "
    "bfloat16}}}, hospital: {share: 0.5, cut: 3}}",
)


@pytest.mark.long
def test_actors_take_fronts_of_any_depth(tmp_path: Path) -> None:
    plan = scenario(*UNEVEN, *ADC, "federation.clients=4", "evaluation.held_out=0.2")
    one = simulate(plan, runs=tmp_path / "inline").folder
    other = simulate(plan.with_(["engine={kind: ray, threads: 1}"]), runs=tmp_path / "ray").folder
    same(one, other)
    assert outcome(one)["model"] == outcome(other)["model"]


@pytest.mark.long
def test_who_joins_holds_the_front_of_its_profile(tmp_path: Path) -> None:
    plan = scenario(*UNEVEN, *ADC, "federation.mode=psl", "evaluation.held_out=0.2")
    repeats(plan, tmp_path)


def repeats(plan: Scenario, folder: Path) -> None:
    """Check that two clients of a deployment, with their profiles if there are some, come to what a simulation does."""
    one = simulate(plan, runs=folder / "inline").folder
    kinds = [["--profile", kind] for kind in plan.dealt_profiles()] if plan.federation.profiles else [[], []]
    with deployment(folder) as here:
        server = here.serve(plan.with_(["engine={kind: deployment, threads: 1}"]))
        clients = [here.join(number, "--threads", 1, *kind) for number, kind in enumerate(kinds)]
        assert server.end() == 0, server.text
        assert [client.end() for client in clients] == [0, 0], [client.text for client in clients]
        (other,) = here.runs
    same(one, other)
    assert outcome(one)["model"] == outcome(other)["model"]


OWN = ["federation.clients=2", "federation.rounds=2", "evaluation.held_out=0.2", "federation.local_norms=true"]


@pytest.mark.slow
def test_norms_stay_and_features_are_made_up(tmp_path: Path) -> None:
    plan = small(*DEEPER, *OWN, "model.exits={blocks: [1, 2]}", "training.client.fraug={}")
    repeats(plan, tmp_path)


@pytest.mark.slow
def test_a_client_takes_the_chunk_that_its_memory_bears(tmp_path: Path) -> None:
    """One is too small for the scenario's mini-batch, says which chunk would fit, and joins with that."""
    profiles = "federation.profiles={phone: {share: 0.5, device: {memory: 220kB}}, hospital: {share: 0.5}}"
    plan = small(*DEEPER, *OWN, profiles)
    kinds = plan.dealt_profiles()
    with deployment(tmp_path) as here:
        server, phone = here.serve(plan.with_(["engine={kind: deployment, threads: 1}"])), kinds.index("phone")
        large = here.join(phone, "--threads", 1, "--profile", "phone")
        assert large.end(60) == 2, large.text
        found = re.search(r"0\.2 MB by profile phone, is less than the .* to train: --chunk (\d+) here", large.text)
        assert found, large.text
        chunk = int(found[1])
        clients = [here.join(n, "--threads", 1, "--profile", kinds[n], "--chunk", chunk) for n in range(2)]
        assert server.end() == 0, server.text
        assert [client.end() for client in clients] == [0, 0], [client.text for client in clients]
        (other,) = here.runs
    one = simulate(plan.with_([f"training.client.chunk={chunk}"]), runs=tmp_path / "inline").folder
    same(one, other)
    assert outcome(one)["model"] == outcome(other)["model"]
