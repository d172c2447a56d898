"""Who answers, against a loop over images one by one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splitfed.errors import RunError, SplitfedError
from splitfed.inference.deciding import (
    MEASURES,
    Judged,
    Rule,
    chosen,
    confidence,
    routes,
    threshold_for,
    threshold_within,
)
from splitfed.seeds import Key


@pytest.mark.parametrize("rise", [math.nan, math.inf, -math.inf])
def test_a_rise_that_is_none_is_refused(rise: float) -> None:
    with pytest.raises(SplitfedError, match="a rise of"):
        Rule(0.5, rise=rise)


def slowly(confidences: list[list[float]], rule: Rule) -> list[tuple[int, int]]:
    """The place where each image is answered, and the last exit that it saw."""
    found = []
    for image in range(len(confidences[0])):
        before = None
        for place, row in enumerate(confidences):
            if row[image] >= rule.threshold:
                found.append((place, place))
                break
            if rule.rise is not None and before is not None and row[image] - before < rule.rise:
                found.append((len(confidences), place))
                break
            before = row[image]
        else:
            found.append((len(confidences), len(confidences) - 1))
    return found


@given(
    st.integers(1, 4).flatmap(
        lambda exits: st.lists(
            st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=exits, max_size=exits),
            min_size=1,
            max_size=9,
        )
    ),
    st.sampled_from([0.0, 0.3, 0.75, 1.0, 1.5]),
    st.sampled_from([None, 0.0, 0.25, 0.6]),
)
def test_routes_are_those_of_a_loop(images: list[list[float]], threshold: float, rise: float | None) -> None:
    by_exit = [list(row) for row in zip(*images, strict=True)]
    rule = Rule(threshold, rise=rise)
    found = routes(torch.tensor(by_exit), rule)
    assert list(zip(found.answered.tolist(), found.left.tolist(), strict=True)) == slowly(by_exit, rule)


def test_confidence_is_from_0_to_1() -> None:
    sure, unsure = torch.tensor([1.0, 0, 0, 0]), torch.full((4,), 0.25)
    for measure in MEASURES:
        assert float(confidence(sure, measure)) == 1
    assert float(confidence(unsure, "margin")) == 0
    assert float(confidence(unsure, "entropy")) == pytest.approx(0, abs=1e-6)
    assert float(confidence(unsure, "probability")) == 0.25
    one = torch.tensor([0.5, 0.3, 0.1, 0.1])
    assert float(confidence(one, "margin")) == pytest.approx(0.2)
    entropy = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.1))
    assert float(confidence(one, "entropy")) == pytest.approx(1 - entropy / math.log(4), abs=1e-6)


def test_the_threshold_for_an_accuracy_is_the_lowest_that_reaches_it() -> None:
    generator = Key(0).generator()
    sure = torch.rand(2, 200, generator=generator)
    right = torch.rand(2, 200, generator=generator) < sure  # whoever is surer is oftener right
    last = torch.rand(200, generator=generator) < 0.95

    def accuracy(threshold: float) -> float:
        return float(chosen(right, last, routes(sure, Rule(threshold))).float().mean())

    found = threshold_for(sure, right, last, 0.85, Rule(0))
    assert found is not None
    assert accuracy(found) >= 0.85
    assert all(accuracy(lower) < 0.85 for lower in torch.linspace(0, found - 1e-3, 400).tolist())
    assert threshold_for(sure, right, last, 0.999, Rule(0)) is None
    assert threshold_for(sure, right, last, 0.0, Rule(0)) == 0


def test_the_threshold_for_a_cost_is_the_highest_that_keeps_to_it() -> None:
    generator = Key(1).generator()
    sure = torch.rand(2, 200, generator=generator)
    costs = torch.stack([torch.zeros(200), torch.full((200,), 10.0), 50 + 50 * torch.rand(200, generator=generator)])

    def cost(threshold: float) -> float:
        return float(chosen(costs[:-1], costs[-1], routes(sure, Rule(threshold))).mean())

    for most in (0.0, 5.0, 20.0, 60.0):
        found = threshold_within(sure, costs, most, Rule(0))
        assert found is not None
        assert cost(found) <= most
        above = [cost(higher) for higher in torch.linspace(found, 1.1, 400).tolist()]
        assert all(other > most or other == cost(found) for other in above)  # between two confidences nothing changes
        assert above[-1] > most
    assert threshold_within(sure, costs, 100.0, Rule(0)) > 0.99  # type: ignore[operator]
    assert threshold_within(sure, costs + 1, 0.5, Rule(0)) is None


def test_what_costs_are_unknown_is_no_target() -> None:
    known = Judged(torch.rand(len(MEASURES), 1, 4), torch.ones(1, 4) > 0, torch.ones(4) > 0)
    for target in (known.within_bytes, known.within_operations):
        with pytest.raises(RunError, match="nothing tells what one takes"):
            target(1e9, Rule(0))


def test_no_confidence_is_negative_or_nan() -> None:
    for threshold in (-0.1, math.nan):
        with pytest.raises(SplitfedError, match="0 or more"):
            Rule(threshold)
