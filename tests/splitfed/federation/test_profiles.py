"""Which clients are alike: how many of each kind there are, and what a scenario may say of them."""

from collections import Counter
from pathlib import Path

import pytest
from helpers import small
from hypothesis import given
from hypothesis import strategies as st

from splitfed.errors import ScenarioError
from splitfed.federation.profiles import Profile, dealt
from splitfed.link.settings import LteLink
from splitfed.scenario import Scenario
from splitfed.seeds import Key
from splitfed.server.cohort.attendance import Attendance


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
