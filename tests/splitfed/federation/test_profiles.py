"""Which clients are alike: how many of each kind there are, and what a scenario may say of them."""

from collections import Counter
from pathlib import Path

import pytest
from helpers import DEEPER, small, table
from hypothesis import given
from hypothesis import strategies as st

from splitfed import estimate, simulate
from splitfed.clients.settings import Settings
from splitfed.errors import RunError, ScenarioError
from splitfed.federation.profiles import Profile, dealt
from splitfed.link.settings import LteLink
from splitfed.scenario import Scenario
from splitfed.scenario.sections import Terms
from splitfed.seeds import Key
from splitfed.server.cohort.attendance import Attendance
from splitfed.server.control.terms import ClientTerms


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 60), st.integers(0, 9))
def test_each_profile_has_its_share_to_one_client(parts: list[int], clients: int, seed: int) -> None:
    profiles = {f"p{place}": Profile(share=part / sum(parts)) for place, part in enumerate(parts)}
    held = dealt(profiles, clients, Key(seed))
    assert len(held) == clients
    for name, profile in profiles.items():
        assert abs(Counter(held)[name] - profile.share * clients) < 1
    assert dealt(profiles, clients, Key(seed)) == held


def test_who_is_of_a_profile_is_drawn() -> None:
    profiles = {"phone": Profile(share=0.5), "hospital": Profile(share=0.5)}
    assert len({dealt(profiles, 10, Key(seed)) for seed in range(20)}) > 10
    assert dealt({}, 3, Key(0)) == ("", "", "")


def test_what_is_written_out_reads_as_the_same() -> None:
    one = small("federation.profiles={phone: {share: 0.6, link: lte, device: {flops: 5GFLOPS, memory: 2GB}},"
                " hospital: {share: 0.4}}", "link=fibre")  # fmt: skip
    assert Scenario.parse(one.to_yaml()) == one
    phone = one.federation.profiles["phone"]
    assert isinstance(phone.link, LteLink)
    assert (phone.device.flops, phone.device.memory) == (5e9, 2_000_000_000)
    assert one.timed
    assert not small("federation.profiles={phone: {share: 1}}").timed


@pytest.mark.parametrize(
    ("profiles", "why"),
    [
        ("{phone: {share: 0}}", "federation.profiles.phone.share: must be greater than 0, not 0"),
        ("{phone: {}}", "federation.profiles.phone.share: is missing"),
        ("{phone: {share: 1, lnik: lte}}", "federation.profiles.phone.lnik: unknown key, did you mean 'link'?"),
        ("{phone: {share: 1, link: let}}", "federation.profiles.phone.link: unknown kind 'let'"),
        ("{phone: {share: 1, link: {kind: lte, up: 5MB}}}", "federation.profiles.phone.link.up: '5MB' is no rate"),
        ("{phone: {share: 1, device: {flops: 5}}}", "phone.device.flops: must be a number of operations a second from"),
        ("{Phone 1: {share: 1}}", "federation.profiles"),
    ],
)
def test_a_mistake_is_one_line(profiles: str, why: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        small(f"federation.profiles={profiles}")
    (problem,) = caught.value.problems
    assert why in problem
    assert "\n" not in problem


def test_a_trace_and_a_device_do_not_both_tell_what_a_mini_batch_takes(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    changes = [f"federation.availability={{kind: trace, file: {path}}}",
               "federation.profiles={phone: {share: 1, device: {flops: 5GFLOPS}}}"]  # fmt: skip
    path.write_text("client,late\n0,3\n")
    Attendance(small(*changes), tmp_path / "one")
    path.write_text("client,step_seconds\n0,3\n")
    with pytest.raises(ScenarioError, match=r"federation\.availability: its step_seconds and device\.flops of"):
        Attendance(small(*changes), tmp_path / "other")


COMPRESSED = (
    "federation.profiles={phone: {share: 0.5, compression: {reducer: {kind: topk, ratio: 0.1}, smashed: {codec: "
    "float16}, front_weights: {codec: {kind: uniform, bits: 8}}}}, hospital: {share: 0.5}}"
)
LOOSE = [f"compression.{role}.lossless=none" for role in ("smashed", "targets", "cut_gradient", "front_weights")]


def test_a_profile_says_only_what_is_another() -> None:
    one = small(COMPRESSED, "compression.smashed.lossless={kind: zstd, level: 7}")
    assert Scenario.parse(one.to_yaml()) == one
    phone, hospital = one.compression_under(Terms("phone")), one.compression_under(Terms("hospital"))
    assert hospital == one.compression
    assert (phone.smashed.codec.kind, phone.smashed.lossless) == ("float16", one.compression.smashed.lossless)
    assert phone.cut_gradient == one.compression.cut_gradient
    # What all have may change later, and is the profile's too where that says nothing of it.
    later = one.with_(["compression.cut_gradient.codec=float16", "compression.smashed.codec=bfloat16"])
    assert later.compression_under(Terms("phone")).cut_gradient.codec.kind == "float16"
    assert later.compression_under(Terms("phone")).smashed.codec.kind == "float16"


def sent(folder: Path, *roles: str) -> dict[str, dict[str, int]]:
    """Return the bytes of each role, by direction and by client."""
    found: dict[str, dict[str, int]] = {}
    for row in table(folder / "ledger.csv"):
        if row["role"] in roles and row["round"] != "0":
            of = found.setdefault(f"{row['direction']}/{row['role']}", {})
            of[row["client"]] = of.get(row["client"], 0) + int(row["sent_bytes"])
    return found


@pytest.mark.parametrize("mode", ["sfl-v1", "psl"])
def test_each_client_sends_as_its_profile_says(mode: str, tmp_path: Path) -> None:
    plan = small(COMPRESSED, *LOOSE, "federation.clients=4", f"federation.mode={mode}", "data.partition=iid")
    result = simulate(plan, runs=tmp_path)
    kinds = {str(client): name for client, name in enumerate(plan.dealt_profiles())}
    assert sorted(kinds.values()) == ["hospital", "hospital", "phone", "phone"]
    found = sent(result.folder, "smashed", "cut_gradient", "side", "front_weights")
    alone = simulate(small(*LOOSE, "federation.clients=4", "data.partition=iid"), runs=tmp_path)
    plain = sent(alone.folder, "smashed", "cut_gradient", "front_weights")
    for client, kind in kinds.items():
        assert (client in found["up/side"]) == (kind == "phone")
        for role in ("up/smashed", "down/cut_gradient", "up/front_weights", "down/front_weights"):
            ratio = found[role][client] / plain[role][client]
            assert ratio == 1 if kind == "hospital" else ratio < 0.5, (role, client)


def test_the_estimate_has_each_profile_and_their_mean(tmp_path: Path) -> None:
    plan = small(COMPRESSED, *LOOSE, "federation.clients=4", "federation.mode=sfl-v1", "data.partition=iid")
    plan = plan.with_(["federation.profiles.phone.compression.reducer={kind: discard_tokens, kept_tokens: 0.5}"])
    found, run = estimate(plan), simulate(plan, runs=tmp_path)
    sizes = sent(run.folder, "smashed", "cut_gradient", "targets", "front_weights")
    each = dict.fromkeys(plan.dealt_profiles(), 0)
    for client, kind in enumerate(plan.dealt_profiles()):
        each[kind] += sum(of[str(client)] for of in sizes.values()) // 4  # two clients of each, two rounds
    for kind, size in each.items():
        assert found.each[Terms(kind)] == pytest.approx(size, rel=0.02, abs=1500)  # with envelopes
    cut = sum(int(row["sent_bytes"]) for row in table(run.folder / "ledger.csv") if row["plane"] == "data")
    assert found.round.cut.sent == pytest.approx(cut / 2, rel=0.01)


UNTOLD = {("control", "envelope"), ("control", "metrics"), ("data", "envelope")}  # what Flower adds, and counts


PHONE = "federation.profiles.phone"
TAIL = [f"compression.{role}.lossless=none" for role in ("tail_smashed", "tail_gradient")]
WEIGHTS = "{front_weights: {codec: {kind: uniform, bits: 8}}}"


@pytest.mark.parametrize(
    "changes",
    [
        [COMPRESSED, *LOOSE, "federation.mode=sfl-v1"],
        [COMPRESSED, *LOOSE, *TAIL, *DEEPER, "federation.labels=private",
         f"{PHONE}.compression.tail_smashed.codec=float16"],
        ["federation.mode=fl", "training.server={}", f"{PHONE}={{share: 0.5, compression: {WEIGHTS}}}",
         "federation.profiles.hospital.share=0.5", LOOSE[-1]],
        [COMPRESSED, *LOOSE, *DEEPER, f"{PHONE}.cut=1"],
    ],
    ids=["shared", "private", "fl", "uneven"],
)  # fmt: skip
def test_a_client_evaluates_as_its_profile_says(changes: list[str], tmp_path: Path) -> None:
    plan = small("data.partition=iid", "federation.clients=4", "evaluation.held_out=0.25", *changes)
    if plan.federation.mode != "fl":
        plan = plan.with_([f"{PHONE}.compression.reducer={{kind: discard_tokens, kept_tokens: 0.5}}"])
    found, told = estimate(plan).round, simulate(plan, runs=tmp_path).totals
    foretold = {place: sizes for place, sizes in found.sums.items() if (place[0], place[2]) not in UNTOLD}
    real = {place: sizes for place, sizes in told.sums.items() if (place[0], place[2]) not in UNTOLD}
    assert ("data", "up", "evaluation") in real or plan.federation.mode == "fl"
    assert foretold.keys() == real.keys()
    for place, sizes in real.items():
        each = (sizes.raw, sizes.reduced, sizes.coded, sizes.sent)
        guess = (getattr(foretold[place], name) for name in ("raw", "reduced", "coded", "sent"))
        assert [2 * one for one in guess] == pytest.approx(each, abs=4), place  # halves of bytes


def test_an_operating_point_is_of_rounds_that_train(tmp_path: Path) -> None:
    points = f"{{fine: {{utility: 0}}, coarse: {{compression: {WEIGHTS}, utility: 1}}}}"
    control = f"control={{kind: drift_plus_penalty, target: {{kind: all_bytes, bytes: 1GB}}, points: {points}}}"
    plan = small("evaluation.held_out=0.25", "federation.rounds=1", LOOSE[-1], control)
    run = simulate(plan, runs=tmp_path)
    found, whole = sent(run.folder, "front_weights"), run.totals.select(role="front_weights", direction="up").raw
    for client, coarse in found["up/front_weights"].items():
        assert 3 * coarse < whole  # of three clients
        assert found["down/front_weights"][client] == coarse + whole // 3  # to be trained, and to be evaluated


@pytest.mark.parametrize(
    ("profiles", "profile", "why"),
    [
        (COMPRESSED, None, "say with --profile which this client is of: phone, hospital"),
        (COMPRESSED, "tablet", "--profile tablet: the server's scenario has the profiles phone, hospital"),
        ("federation.profiles={}", "phone", "--profile phone: the server's scenario has no profiles: leave it out"),
        (COMPRESSED, "phone", None),
        ("federation.profiles={}", None, None),
    ],
)
def test_a_client_says_which_it_is(profiles: str, profile: str | None, why: str | None) -> None:
    settings, plan = Settings(0, profile=profile), small(profiles, "engine=deployment")
    if why is None:
        settings.check_profile(plan)
        return
    with pytest.raises(RunError) as error:
        settings.check_profile(plan)
    assert why in str(error.value)
    settings.check_profile(small(profiles))  # a simulation deals them


def test_in_a_simulation_profiles_are_dealt_whatever_a_client_says() -> None:
    plan = small(COMPRESSED, "federation.clients=2")
    terms = ClientTerms(plan, None, {0: "tablet"})
    assert {terms.of(0), terms.of(1)} == {Terms("phone"), Terms("hospital")}
    deployed = ClientTerms(small(COMPRESSED, "federation.clients=2", "engine=deployment"), None, said := {})
    said[1] = "phone"
    assert (deployed.of(0), deployed.of(1)) == (Terms(), Terms("phone"))
