"""Clients at the same time: what they share, and how they wait for each other, against timelines worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitfed.link.clock import Course, Exchange, Site, Step
from splitfed.link.connection import Link, Steady
from splitfed.link.events import Events, Shared
from splitfed.seeds import Key

BYTE_A_SECOND = Link(Steady(8.0), Steady(8.0))


def course(
    late: float, steps: Sequence[tuple[float, int, float, int]] = (), *, order: int = 0, reply: int | None = 0,
    link: Link | None = None, after: float = 0.0,
) -> Course:  # fmt: skip
    made = [Step((Exchange(*one),), after) for one in steps]
    return Course(late, order, made, None, reply, link, Key(0))


def test_a_client_alone_adds_everything_up() -> None:
    """Order of 4 bytes, and twice: 3 seconds of the client, 5 bytes up, 2 seconds of the server, 1 byte down, and 1
    second of the client; a reply of 6 bytes. A byte takes a second."""
    one = course(10, [(3, 5, 2, 1)] * 2, order=4, reply=6, link=BYTE_A_SECOND, after=1)
    found = Site().together({7: one}, 0.0)[7]
    assert (found.steps, found.end) == ([26, 38], 44)
    assert Site().together({7: one}, 12.0)[7].end == 46  # its wave begins later than it


def test_a_connection_takes_four_round_trips_and_a_message_five() -> None:
    link = Link(Steady(8e9), Steady(8e9), latency=1.0)
    found = Site().together({0: course(0, [(0, 1, 0, 1)] * 2, order=1, reply=1, link=link)}, 0.0)[0]
    assert found.steps == pytest.approx([21, 23])  # 10 and 1 for the order, 8 to connect, and 2 there and back
    assert found.end == pytest.approx(34)


def test_the_server_computes_one_mini_batch_at_a_time() -> None:
    """Three come at 1, 1 and 2 seconds, and take 5 each."""
    courses = {0: course(0, [(1, 1, 5, 1)]), 1: course(0, [(1, 1, 5, 1)]), 2: course(0, [(2, 1, 5, 1)])}
    assert [one.end for one in Site().together(courses, 0.0).values()] == [6, 11, 16]


def worked_out(steps: Sequence[tuple[float, int, float, int]], ahead: int, after: float, latency: float) -> list[float]:
    """Return when a client alone is through with each mini-batch, where a byte takes a second each way: every stage
    takes a frame when it has it and is done with the one before."""
    now, gone, served, down_free = 18 * latency, 0.0, 0.0, 0.0  # 10 for the order, 8 to connect
    answered, through = list[float](), list[float]()
    for before, up, serve, down in steps:
        now += before
        gone = max(now, gone) + up
        served = max(gone + latency, served) + serve
        down_free = max(served, down_free) + down
        answered.append(down_free + latency)
        if len(answered) > ahead:
            now = max(now, answered[len(through)]) + after
            through.append(now)
    for moment in answered[len(through) :]:
        now = max(now, moment) + after
        through.append(now)
    return through


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(low, 9) for low in (0, 1, 0, 1)]), min_size=1, max_size=8),
    st.integers(0, 9), st.integers(0, 3), st.integers(0, 5),
)  # fmt: skip
def test_a_client_that_is_ahead_computes_while_frames_pass(steps, ahead: int, after: int, latency: int) -> None:
    link = Link(Steady(8.0), Steady(8.0), latency)
    one = replace(course(0, steps, link=link, after=after), ahead=ahead)
    found = Site().together({0: one}, 0.0)[0]
    assert found.steps == pytest.approx(worked_out(steps, ahead, after, latency))
    assert found.end == found.steps[-1] + 10 * latency  # the reply


def test_with_enough_mini_batches_ahead_the_slowest_stage_alone_counts() -> None:
    """100 of them: 3 seconds at the client, 5 up, 4 at the server, 2 down."""
    steps, link = [(2, 5, 4, 2)] * 100, BYTE_A_SECOND
    in_turn, one, all_but = (
        Site().together({0: replace(course(0, steps, link=link, after=1), ahead=ahead)}, 0.0)[0].end
        for ahead in (0, 1, 3)
    )
    assert in_turn == 100 * (3 + 5 + 4 + 2)
    assert one == pytest.approx(100 * 14 / 2, rel=0.03)  # two are under way at any time
    assert all_but == pytest.approx(100 * 5, rel=0.03)


def test_two_who_are_ahead_are_served_in_turn_and_share_the_line() -> None:
    """The server takes 5 seconds for each of their eight mini-batches; lines take no time, or the server's own takes 16
    for the frames of both."""
    courses = {c: replace(course(0, [(1, 8, 5, 0)] * 4), ahead=3) for c in range(2)}
    assert sorted(one.end for one in Site().together(courses, 0.0).values()) == [36, 41]
    shared = Site(up=1.0).together(courses, 0.0)
    assert sorted(one.end for one in shared.values()) == pytest.approx([1 + 4 * 16 + 5, 1 + 4 * 16 + 10])


def test_joint_steps_go_at_the_pace_of_the_slowest() -> None:
    """1 takes a second for a mini-batch, 2 takes three and vanishes after two, 3 comes late at 2 and takes five."""
    courses = {
        1: course(0, [(1, 0, 0, 0)] * 4),
        2: course(0, [(3, 0, 0, 0)] * 2, reply=None),
        3: course(2, [(5, 0, 0, 0)] * 4),
    }
    moments = Site(patience=60).together(courses, 0.0)
    assert {client: one.steps for client, one in moments.items()} == {
        1: [7, 12, 17, 22], 2: [7, 12], 3: [7, 12, 17, 22],
    }  # fmt: skip
    # Who vanishes before its first is not waited for.
    moments = Site(patience=60).together({1: course(0, [(1, 0, 0, 0)]), 2: course(0, reply=None)}, 0.0)
    assert (moments[1].end, moments[2].end) == (1, 0)
    # The back takes a second for each of the mini-batches.
    moments = Site(patience=60).together({c: course(0, [(1, 0, 1, 0)] * 2) for c in range(3)}, 0.0)
    assert [one.steps for one in moments.values()] == [[4, 8]] * 3


def test_a_joint_step_waits_no_longer_than_its_patience() -> None:
    """2 comes at 30: the others wait 4 seconds from their first mini-batch on, then no more, as it is missed; its own
    takes part in the next step."""
    courses = {1: course(0, [(1, 0, 0, 0)] * 3), 2: course(30, [(2, 0, 0, 0)])}
    moments = Site(patience=4).together(courses, 0.0)
    assert [moments[1].steps, moments[2].steps] == [[5, 6, 7], [32]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 50), st.integers(1, 10)), min_size=1, max_size=6),
    st.integers(1, 12),
)
def test_a_shared_line_is_shared_as_in_small_steps(flows: list[tuple[int, int, int]], capacity: int) -> None:
    """Against small steps of time, in each of which what there is is given evenly to those who can take more."""
    events, ended = Events(), dict[int, float]()
    line = Shared(events, float(capacity))
    for number, (start, size, pace) in enumerate(flows):

        def begin(number: int = number, size: int = size, pace: int = pace) -> None:
            line.send(size, size / pace, number, lambda: ended.update({number: events.now}))

        events.at(start, number, begin)
    events.run()
    tick, left, now = 0.01, [float(size) for _, size, _ in flows], 0.0
    slow = dict[int, float]()
    while len(slow) < len(flows):
        going = [n for n, (start, _, _) in enumerate(flows) if start <= now + tick / 2 and n not in slow]
        rest, open_ = float(capacity), sorted(going, key=lambda n: flows[n][2])
        while open_:
            rate = min(flows[open_[0]][2], rest / len(open_))
            rest -= rate
            left[open_.pop(0)] -= rate * tick
        now += tick
        slow |= {n: now for n in going if left[n] <= 1e-9}
    assert ended == pytest.approx(slow, abs=0.2)
