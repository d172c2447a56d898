"""Recordings: what passes when, against a slow reading of the same lines, and every mistake with its line."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitfed.errors import ScenarioError
from splitfed.link.trace import PACKET, Deliveries, Rates, read_recording

CHANCES = st.lists(st.integers(0, 40), min_size=1, max_size=8).map(sorted).filter(lambda found: found[-1] > 0)
PERIODS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=6).filter(
    lambda found: any(rate for _, rate in found)
)


@settings(max_examples=200, deadline=None)
@given(CHANCES, st.integers(0, 200), st.integers(0, 12 * PACKET))
def test_a_chance_carries_one_packet(chances: list[int], start: int, size: int) -> None:
    """Against the chances of all loops, one after another."""
    every = (loop * chances[-1] + chance for loop in range(1000) for chance in chances)
    later = (moment for moment in every if moment > start)
    for _ in range(max(1, -(-size // PACKET))):
        moment = next(later)
    assert Deliveries(chances).passed(start / 1000, size) == pytest.approx(moment / 1000)


@settings(max_examples=200, deadline=None)
@given(PERIODS, st.integers(0, 60), st.integers(1, 100))
def test_a_rate_holds_until_its_second(periods: list[tuple[int, int]], start: int, size: int) -> None:
    """Against the rate of every half second, of all loops."""
    halves = [float(rate) / 2 for length, rate in periods for _ in range(2 * length)]
    ends = [sum(length for length, _ in periods[: number + 1]) for number in range(len(periods))]
    left, half = float(size), 2 * start
    while left > halves[half % len(halves)]:
        left -= halves[half % len(halves)]
        half += 1
    moment = half / 2 + left / (2 * halves[half % len(halves)])
    found = Rates([float(end) for end in ends], [float(rate) for _, rate in periods])
    assert found.passed(float(start), size) == pytest.approx(moment)


def test_both_formats_are_read(tmp_path: Path) -> None:
    path = tmp_path / "lte.up"
    path.write_bytes(b"0\r\n 5\n5\n\n20\n")
    assert [read_recording(path).passed(0.0, packets * PACKET) for packets in (1, 2, 3, 5)] == [
        0.005, 0.005, 0.02, 0.025,
    ]  # fmt: skip
    path.write_bytes(b"0 3\n1.0 8\n2.0\t0\n4e0 16\n")
    found = read_recording(path)
    assert [found.passed(0.0, size) for size in (500_000, 1_000_000, 2_000_000, 5_000_000, 6_000_000)] == [
        0.5, 1.0, 2.5, 4.0, 5.0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "1: is empty"),
        (b"\n \r\n\n", "1: is empty"),
        (b"1\n7\n5\n", "3: 5 ms comes after 7 ms: put the lines in order"),
        (b"0\n0\n", "2: the last line is 0, so the recording lasts no time"),
        (b"1\n\x00\x01\n", "2: no text, but binary"),
        (b"\xff\xfe1\x00\n", "1: no text, but binary"),
        (b"1\n-2\n", "2: must be a whole number of milliseconds from 0 on, not '-2'"),
        (b"1\n2.5\n", "2: must be a whole number"),
        (b"1\n99999999999999999999\n", "2: must be a whole number"),
        (b"1\n2 3\n", "2: 2 numbers, where the lines before have one"),
        (b"1 2\n2\n", "2: 1 numbers, where the lines before have two"),
        (b"1 2 3\n", "1: 3 numbers, where a line has milliseconds, or seconds and Mbit/s"),
        (b"1 5\n1 6\n", "2: second 1 does not come after 1: put the lines in order"),
        (b"0 5\n", "1: the last second is 0"),
        (b"1 0\n2 0\n", "2: in all of these seconds not one byte passes"),
        (b"0 9\n2 0\n", "2: in all of these seconds not one byte passes"),
        (b"1 nan\n", "1: must be a number from 0 to 1e+06, not 'nan'"),
        (b"1 fast\n", "1: must be a number"),
        (b"-1 5\n", "1: must be a number from 0 to 1e+09, not '-1'"),
    ],
)
def test_what_is_no_recording_is_refused_with_its_line(text: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "lte.up"
    path.write_bytes(text)
    with pytest.raises(ScenarioError, match=f"^{re.escape(str(path))}:{re.escape(problem)}"):
        read_recording(path)
