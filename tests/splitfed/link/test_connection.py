"""A connection in simulated time: slow start and loss against the textbook's formulas, idle windows, jitter."""

import math

import pytest

from splitfed.link.connection import SEGMENT, Link, Steady, Way
from splitfed.seeds import Key

MBIT = 1e6


def way(rate: float, latency: float, **more: float) -> Way:
    line = Steady(rate)
    return Way(line, Link(line, line, latency, **more), Key(1))


@pytest.mark.parametrize(
    ("mbit", "kilobytes", "seconds"), [(10, 100, 0.170), (50, 100, 0.134), (10, 800, 0.734), (50, 800, 0.331)]
)
def test_a_window_doubles_each_round_trip_until_the_line_is_full(mbit: int, kilobytes: int, seconds: float) -> None:
    """25 ms each way. By hand: ten packets, twenty, forty, ... a round trip each, then as the line is fast."""
    gone, after = way(mbit * MBIT, 0.025).send(0.0, kilobytes * 1000)
    assert gone + after == pytest.approx(seconds, abs=0.001)


@pytest.mark.parametrize("mbit", [1, 10, 50, 1000])
def test_frames_that_follow_each_other_take_as_long_as_one(mbit: int) -> None:
    """None of them waits for an answer: together they have the window that one of them all would have."""
    whole, pieces, now = way(mbit * MBIT, 0.025).send(0.0, 210_000)[0], way(mbit * MBIT, 0.025), 0.0
    for _ in range(30):
        now = pieces.send(now, 7_000, follows=True)[0]
    assert now == pytest.approx(whole, rel=1e-9)


def test_without_latency_the_line_alone_counts() -> None:
    assert way(8 * MBIT, 0.0).send(3.0, 1_000_000) == (pytest.approx(4.0), 0.0)


def test_a_window_that_has_grown_stays_until_it_rests() -> None:
    """100 kB are 70 packets, so that it has 79; it halves for each quarter of a second, the timeout, without one."""
    one = way(1000 * MBIT, 0.025)
    first = sum(one.send(0.0, 100_000))
    assert sum(one.send(first + 0.1, 79 * SEGMENT)) - first - 0.1 == pytest.approx(0.025, abs=0.001)
    again = sum(one.send(first + 5, 100_000)) - first - 5
    assert again == pytest.approx(first, abs=1e-9)


def test_a_window_grows_only_where_it_is_used() -> None:
    fresh, used = way(1000 * MBIT, 0.025), way(1000 * MBIT, 0.025)
    for number in range(20):
        used.send(0.1 * number, 3 * SEGMENT)
    assert sum(used.send(2.0, 100_000)) - 2.0 == pytest.approx(sum(fresh.send(0.0, 100_000)), abs=1e-9)


@pytest.mark.parametrize("joined", [True, False])
def test_who_receives_a_frame_does_not_rest(joined: bool) -> None:
    """The answer takes a second, which is four timeouts; then 79 packets go at once, or in four bursts."""
    up, down = way(1000 * MBIT, 0.025), way(MBIT, 0.025)
    if joined:
        up.join(down)
    up.send(0.0, 100_000)
    there = sum(down.send(0.2, 125_000))
    took = sum(up.send(there, 79 * SEGMENT)) - there
    assert took == pytest.approx(0.025 if joined else 0.175, abs=0.001)


@pytest.mark.parametrize(("loss", "latency"), [(0.02, 0.1), (0.01, 0.03)])
def test_frames_there_and_back_go_no_faster_than_one_long_transfer(loss: float, latency: float) -> None:
    """A window does not grow while it waits for the answer: a frame takes its share of the formula's time."""
    took = []
    for seed in range(6):
        line = Steady(5 * MBIT)
        link = Link(line, line, latency, loss=loss)
        up, down = (Way(line, link, Key(seed).at(way)) for way in ("up", "down"))
        up.join(down)
        now = 0.0
        for _ in range(60):
            for one in (up, down):
                now = sum(one.send(now, 104_000))
        took.append(now / 120)
    window = 1.22 / math.sqrt(loss)
    assert sum(took) / 6 == pytest.approx(104_000 / SEGMENT / window * 2 * latency, rel=0.15)


@pytest.mark.parametrize(("loss", "trip"), [(0.01, 0.05), (0.001, 0.05), (0.1, 0.05), (0.01, 0.2)])
def test_loss_bounds_a_long_transfer_as_the_formula_of_reno_says(loss: float, trip: float) -> None:
    size = 5_000_000 if loss >= 0.01 else 20_000_000
    gone, after = way(1000 * MBIT, trip / 2, loss=loss).send(0.0, size)
    assert size / (gone + after) == pytest.approx(1.22 * SEGMENT / (trip * math.sqrt(loss)), rel=0.25)


def test_jitter_is_drawn_frame_by_frame_around_the_latency() -> None:
    one, same = (way(MBIT, 0.05, jitter=0.02) for _ in range(2))
    late = [one.send(float(moment), 100)[1] for moment in range(400)]
    assert late == [same.send(float(moment), 100)[1] for moment in range(400)]
    assert 0.03 <= min(late) < 0.031 < 0.069 < max(late) <= 0.07
    assert sum(late) / 400 == pytest.approx(0.05, abs=0.003)  # five standard errors
