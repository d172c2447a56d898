"""The controller by itself, on links that are made up: against the best that any mixture of points can do."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from sklearn.isotonic import isotonic_regression

from splitfed.federation.control.account import ALL, Account, RateAccount, RoundAccount, Spent, TotalAccount
from splitfed.federation.control.base import Option
from splitfed.federation.control.drift_plus_penalty import DriftPlusPenalty, rising
from splitfed.seeds import Key

# Utility and bytes: two of them on the hull beside the free one, one below it, one that costs more for less.
POINTS = {
    "silent": (0.0, 1e4), "coarse": (0.55, 2e5), "dull": (0.56, 6e5), "fine": (0.9, 1e6), "vain": (0.89, 1.4e6),
}  # fmt: skip
ROUNDS = 4000


@dataclass
class Told:
    """What a controller did: the utility, the cost and the queue of each round."""

    utility: list[float]
    spent: list[Spent]
    queue: list[float]


def drive(
    account: Account, v: float, rate: Callable[[int], float], rounds: int = ROUNDS, idle: float = 0.0
) -> Told:  # fmt: skip
    """Let a controller choose, round by round, where a link has so many bytes a second; in between so many seconds
    pass."""
    controller, told, now = DriftPlusPenalty(v), Told([], [], []), 0.0
    for round in range(1, rounds + 1):
        spent = {name: Spent(size, size / rate(round)) for name, (_, size) in POINTS.items()}
        options = [Option(n, s.bytes, s.seconds, account.cost(s), POINTS[n][0]) for n, s in spent.items()]
        chosen = controller.choose(round, 0, account.queue(0), options)
        now += idle + (spent[chosen].seconds or 0.0)
        account.close({0: spent[chosen]}, round, now)
        controller.learn(round, 0, chosen, None)
        told.utility.append(POINTS[chosen][0])
        told.spent.append(spent[chosen])
        told.queue.append(account.queue(0))
    return told


def best(costs: Sequence[float], limit: float) -> float:
    """Return the most mean utility of any mixture whose mean cost is within a limit."""
    utilities = [-utility for utility, _ in POINTS.values()]
    ones = [[1.0] * len(costs)]
    found = linprog(utilities, A_ub=[list(costs)], b_ub=[limit], A_eq=ones, b_eq=[1.0], bounds=(0, 1))
    return -found.fun


def mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers)


LAST = slice(-ROUNDS // 10, None)


@pytest.mark.parametrize("seconds", [0.5, 1.5, 4.0])
def test_on_a_constant_link_it_is_the_best_mixture_of_two_points(seconds: float) -> None:
    rate = 2e5
    told = drive(RoundAccount(seconds), 50.0, lambda _: rate)
    wanted = best([size / rate for _, size in POINTS.values()], seconds)
    spent = [one.seconds or 0.0 for one in told.spent]
    assert mean(spent[LAST]) == pytest.approx(seconds, rel=0.01)
    assert mean(told.utility[LAST]) == pytest.approx(wanted, abs=0.01)
    assert len({one.bytes for one in told.spent[LAST]}) == 2
    assert told.queue[-1] / ROUNDS < 0.02


def test_a_target_that_binds_nobody_leaves_the_best_point() -> None:
    told = drive(RoundAccount(100.0), 1.0, lambda _: 2e5, rounds=50)
    assert set(told.utility) == {0.9}
    assert told.queue[-1] == 0


def test_bytes_a_second_hold_in_the_time_of_all() -> None:
    """While others train a client earns some of its own."""
    account, limit = RateAccount(5e4), 5e4
    told = drive(account, 20.0, lambda _: 1e5, rounds=3000, idle=4.0)
    sent, took = [one.bytes for one in told.spent[-300:]], [4.0 + (one.seconds or 0.0) for one in told.spent[-300:]]
    assert mean(sent) / mean(took) == pytest.approx(limit, rel=0.01)
    assert mean(told.utility[-300:]) > 0.55  # what a mixture of the two cheapest would have


def test_all_bytes_are_spent_by_the_last_round_and_hardly_more() -> None:
    rounds, limit = 1000, 4e8
    told = drive(TotalAccount(limit, rounds, None), 2.0, lambda _: 2e5, rounds)
    assert sum(one.bytes for one in told.spent) == pytest.approx(limit, rel=0.02)


def test_all_bytes_by_a_time_are_earned_by_time() -> None:
    account = TotalAccount(1000, None, 100.0)
    account.close({0: Spent(300), 1: Spent(300)}, 1, 20.0)
    assert account.queue(0) == account.queue(1) == (600 - 200) / 300
    account.close({}, 2, 90.0)
    assert account.queue(ALL) == 0
    account.close({0: Spent(300)}, 3, 250.0)  # what is left is a tenth
    assert account.queue(0) == pytest.approx((300 - 100) / 300)
    account.close({}, 4, 300.0)  # and after the end nothing is earned
    assert account.queue(0) == pytest.approx((300 - 100) / 300)


def test_what_came_of_a_target_is_told_by_the_account_also_after_an_interruption() -> None:
    accounts: list[tuple[Callable[[], Account], float]] = [
        (lambda: RoundAccount(2.0), (1.0 + 4.0 + 4.0) / 3),  # of client 0; nothing tells the time of 1's second round
        (lambda: RateAccount(10.0), 1200 / 30.0),  # of client 0, until its last round
        (lambda: TotalAccount(1e3, 3, None), 2000),
        (lambda: TotalAccount(1e3, None, 15.0), 1600),  # of the round in which the end is, all
    ]
    rounds = [
        {0: Spent(400, 1.0), 1: Spent(100, 1.0)}, {0: Spent(400, 4.0), 1: Spent(700)}, {0: Spent(400, 4.0)},
        {1: Spent(600, 1.0)},
    ]  # fmt: skip
    for make, wanted in accounts:
        account = make()
        for number, spent in enumerate(rounds, 1):
            account.close(spent, number, 10.0 * number)
            state = json.loads(json.dumps(account.state_dict()))
            account = make()
            account.load_state_dict(state)
        assert account.came_to() == pytest.approx(wanted)
        state = {name: value for name, value in account.state_dict().items() if name != "whole"}
        account.load_state_dict(state)  # as of a version that did not know
        assert account.came_to() is None


def test_on_a_varying_link_more_is_sent_while_it_is_fast() -> None:
    """It beats the best mixture that does not look at the link."""
    draws = Key(7).numpy().lognormal(math.log(2e5), 1.0, ROUNDS)
    told = drive(RoundAccount(2.0), 50.0, lambda round: float(draws[round - 1]))
    seconds = [one.seconds or 0.0 for one in told.spent]
    assert mean(seconds) == pytest.approx(2.0, rel=0.05)
    each = mean([1 / rate for rate in draws])
    assert mean(told.utility) > 1.05 * best([size * each for _, size in POINTS.values()], 2.0)


def test_more_v_is_more_utility_and_a_longer_way() -> None:
    slow, quick = (drive(RoundAccount(1.5), v, lambda _: 2e5) for v in (50.0, 0.5))
    assert mean(slow.utility) >= mean(quick.utility)
    assert max(slow.queue) > 3 * max(quick.queue)


@pytest.mark.parametrize(
    "make", [lambda: RoundAccount(1.0), lambda: RateAccount(1e5), lambda: TotalAccount(1e9, 100, None)]
)
def test_an_account_goes_on_where_it_was(make: Callable[[], Account]) -> None:
    whole, first, second = make(), make(), make()
    rounds = [({0: Spent(3e5 * n, 0.7 * n), 1: Spent(1e5, 3.0)}, n, 5.0 * n) for n in range(1, 9)]
    for spent, round, now in rounds:
        whole.close(spent, round, now)
    for spent, round, now in rounds[:4]:
        first.close(spent, round, now)
    second.load_state_dict(first.state_dict())
    for spent, round, now in rounds[4:]:
        second.close(spent, round, now)
    assert second.state_dict() == whole.state_dict()
    assert second.queue(0) == whole.queue(0)


def test_without_utilities_the_point_is_taken_at_which_the_loss_falls_most() -> None:
    controller = DriftPlusPenalty(1.0)
    options = [Option(name, 1.0, 1.0, 0.0) for name in ("a", "b", "c")]
    falls, seen = {"a": 0.1, "b": 0.3, "c": -0.2}, []
    for round in range(1, 9):
        seen.append(controller.choose(round, 0, 0.0, options))
        controller.learn(round, 0, seen[-1], falls[seen[-1]])
    assert set(seen[:3]) == {"a", "b", "c"}  # each was tried
    assert set(seen[3:]) == {"b"}
    other = DriftPlusPenalty(1.0)
    other.load_state_dict(controller.state_dict())
    assert other.choose(9, 0, 0.0, options) == "b"
    assert other.choose(9, 0, 0.0, [*options, Option("new", 1.0, 1.0, 0.0)]) == "new"


def test_without_utilities_what_sends_more_is_worth_at_least_as_much() -> None:
    """After rounds at a bad point the loss is large, and falls the more at that point."""
    controller = DriftPlusPenalty(1.0)
    options = [Option("fine", 3.0, 1.0, 1.0), Option("coarse", 2.0, 1.0, 0.0), Option("mute", 1.0, 1.0, -0.5)]
    falls = {"fine": 0.1, "coarse": 0.2, "mute": 0.6}
    for round in range(1, 30):
        chosen = controller.choose(round, 0, 0.0, options)
        controller.learn(round, 0, chosen, falls[chosen])
        assert round <= 3 or chosen == "fine"
    assert controller.choose(30, 0, 0.01, options) == "mute"  # it is behind its target


def test_a_point_that_is_better_for_more_bytes_is_weighed_against_them() -> None:
    controller = DriftPlusPenalty(1.0)
    options = [Option("fine", 3.0, 1.0, 1.0), Option("coarse", 1.0, 1.0, 0.0)]
    for name, fall in (("fine", 0.4), ("coarse", 0.1)):
        controller.learn(1, 0, name, fall)
    assert [controller.choose(2, 0, queue, options) for queue in (0.0, 0.74, 0.76)] == ["fine", "fine", "coarse"]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12))
def test_what_never_falls_is_as_near_as_it_can_be(values: list[float]) -> None:
    assert rising(values) == pytest.approx(isotonic_regression(values).tolist(), abs=1e-9)
