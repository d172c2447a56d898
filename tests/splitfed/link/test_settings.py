"""What a scenario may say of links: quantities with units, kinds, and every mistake in one line."""

from pathlib import Path

import numpy as np
import pytest
from helpers import small

from splitfed.errors import RunError, ScenarioError
from splitfed.link.connection import Link
from splitfed.link.settings import DrawnLink, FixedLink, TraceLink
from splitfed.scenario import Scenario
from splitfed.scenario.places import resolved
from splitfed.seeds import Key
from splitfed.server.deployment.serve import deployed
from splitfed.split.mistakes import of_the_federation


@pytest.mark.parametrize(
    ("written", "bits"),
    [("5Mbit", 5e6), ("1.5 Gbit/s", 1.5e9), ("250kbps", 250e3), ("1e3kbit", 1e6), (" 5mbit ", 5e6), ("2000", 2000.0)],
)
def test_a_rate_has_a_unit_or_is_in_bits_a_second(written: str, bits: float) -> None:
    link = small(f"link={{kind: fixed, up: {written}, down: 20Mbit}}").link
    assert isinstance(link, FixedLink)
    assert (link.up, link.down, link.latency) == (bits, 20e6, 0.0)


def test_what_is_written_out_reads_as_the_same() -> None:
    one = small("link={kind: drawn, up: 5Mbit, down: {kind: lognormal, median: 20Mbit, sigma: 0.7}, latency: 60ms}")
    assert Scenario.parse(one.to_yaml()) == one
    two = small("link={kind: fixed, up: 5Mbit, down: 9Mbit, latency: 60ms, jitter: 900us, loss: 0.1%}")
    assert Scenario.parse(two.to_yaml()) == two
    assert isinstance(two.link, FixedLink)
    assert (two.link.jitter, two.link.loss) == (0.0009, 0.001)


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("{kind: fixed, up: 5MB, down: 9Mbit}", "link.up: '5MB' is no rate in bits a second: write 5Mbit"),
        ("{kind: fixed, up: 5, down: 9Mbit}", "link.up: must be a rate in bits a second from 1000 to 1e+12, not 5"),
        ("{kind: fixed, up: -5Mbit, down: 9Mbit}", "link.up: '-5Mbit' is no rate"),
        ("{kind: fixed, up: 1" + "0" * 400 + ", down: 9Mbit}", "is not a whole number that can be used"),
        ("{kind: fixed, up: .nan, down: 9Mbit}", "link.up: '.nan' is no rate"),
        ("{kind: fixed, up: true, down: 9Mbit}", "link.up: must be a number, not true"),
        ("{kind: fixed, up: 5Mbit}", "link.down: is missing"),
        ("{kind: fixed, up: 5Mbit, down: 9Mbit, latency: 60}", None),
        ("{kind: fixed, up: 5Mbit, down: 9Mbit, latency: 61}", "link.latency: must be a number of seconds from 0 to"),
        ("{kind: fixed, up: 5Mbit, down: 9Mbit, latency: 60 m}", "link.latency: '60 m' is no number of seconds: write"),
        ("{kind: fixed, up: 5Mbit, down: 9Mbit, jitter: 1ms}", "link.jitter: 0.001 s is more than the latency, 0 s"),
        ("{kind: fixed, up: 5Mbit, down: 9Mbit, loss: 30%}", "link.loss: must be a share of packets from 0 to 0.2"),
        ("{kind: drawn, up: {kind: uniform, low: 9Mbit, high: 5Mbit}, down: 9Mbit}", "low is 9e+06, more than high"),
        ("{kind: drawn, up: {kind: exponential, mean: 5Mbit}, down: 9Mbit}", "unknown kind 'exponential'"),
        ("{kind: trace, up: lte.up}", "link.down: is missing"),
        ("idael", "link: unknown kind 'idael', known: 'ideal', 'fixed', 'drawn', 'trace', 'lte'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(link: str, why: str | None) -> None:
    if why is None:
        small(f"link={link}")
        return
    with pytest.raises(ScenarioError) as caught:
        small(f"link={link}")
    (problem,) = caught.value.problems
    assert why in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (
            ["engine=deployment", "link={kind: fixed, up: 5Mbit, down: 9Mbit}"],
            "link: a deployment's clients have their",
        ),
        (["federation.server.link.up=1Gbit"], "federation.server.link: with an ideal link all bytes cross at once"),
    ],
)
def test_links_are_of_a_simulation(overrides: list[str], why: str) -> None:
    with pytest.raises(ScenarioError, match=why):
        small(*overrides)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("link=lte", r"^link: a deployment's"),
        ("federation.profiles={phone: {share: 1, link: lte}}", r"^federation\.profiles\.phone\.link: "),
    ],
)
def test_a_server_of_real_clients_assumes_nothing_of_them(change: str, why: str) -> None:
    with pytest.raises(RunError, match=why):
        deployed(small(change))


def test_a_link_is_drawn_for_each_client_and_stays() -> None:
    settings = DrawnLink.model_validate({
        "up": {"kind": "lognormal", "median": "5Mbit", "sigma": 0.7},
        "down": {"kind": "uniform", "low": 1e6, "high": 9e6},
        "latency": {"kind": "exponential", "mean": "60ms"}, "jitter": "20ms",
    })  # fmt: skip
    links = settings.open(Key(3), Path(), "link")
    found = [link for client in range(2000) if (link := links(client))]
    assert found[:9] == [links(client) for client in range(9)]
    logs = np.log([link.up.passed(0.0, 1.0) for link in found])
    assert (-logs.mean(), logs.std()) == (pytest.approx(np.log(5e6 / 8), abs=0.08), pytest.approx(0.7, abs=0.06))
    assert np.mean([link.latency for link in found]) == pytest.approx(0.06, abs=0.007)
    assert all(link.jitter <= link.latency for link in found)


def test_a_run_has_its_own_copy_of_a_recording(tmp_path: Path) -> None:
    (tmp_path / "up").write_text("1\n2\n")
    (tmp_path / "down").write_text("10 8\n")
    settings = TraceLink(up=str(tmp_path / "up"), down=str(tmp_path / "down"))
    first = settings.open(Key(3), tmp_path, "link")
    (tmp_path / "up").write_text("broken")
    again = settings.open(Key(3), tmp_path, "link")

    def passed(link: Link | None) -> tuple[float, float]:
        assert link is not None
        return link.up.passed(0.0, 4500), link.down.passed(0.0, 4500)

    assert [passed(first(client)) for client in range(4)] == [passed(again(client)) for client in range(4)]
    together = settings.model_copy(update={"begin": "together"}).open(Key(3), tmp_path, "link")
    assert [passed(together(client)) for client in (0, 1)] == [(0.003, 0.0045)] * 2


def test_a_recording_is_checked_with_its_scenario(tmp_path: Path) -> None:
    (tmp_path / "up").write_text("3\n2\n")
    scenario = small(f"link={{kind: trace, up: {tmp_path}/up, down: {tmp_path}/none}}")
    why = f"{tmp_path}/up:2: 2 ms comes after 3 ms: put the lines in order"
    assert list(of_the_federation(scenario)) == [("link.up", why)]
    link = f"{{kind: trace, up: {tmp_path}/up, down: {tmp_path}/none}}"
    scenario = small(f"federation.profiles={{phone: {{share: 1, link: {link}}}}}")
    assert list(of_the_federation(scenario)) == [("federation.profiles.phone.link.up", why)]


def test_recordings_of_all_links_are_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is told to go on from another folder reads the same files."""
    (tmp_path / "lte").write_text("1\n")
    monkeypatch.chdir(tmp_path)
    link = "{kind: trace, up: lte, down: lte}"
    full = resolved(small(f"link={link}", f"federation.profiles={{phone: {{share: 1, link: {link}}}}}"))
    for one in (full.link, full.federation.profiles["phone"].link):
        assert isinstance(one, TraceLink)
        assert (one.up, one.down) == (str(tmp_path / "lte"),) * 2
    fixed = small("federation.profiles={phone: {share: 1, link: fibre}}")
    assert resolved(fixed) == fixed
