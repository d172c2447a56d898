"""Rules between keys and sections: each with its key and line, all at once, in whatever order the fields are."""

import random
from typing import Any

import pytest
from broken import BREAKS, SMALL
from pydantic import ValidationError, create_model

from splitfed.config import Config
from splitfed.errors import ScenarioError
from splitfed.scenario import Scenario
from splitfed.scenario.document import read
from splitfed.scenario.presets import written_out
from splitfed.scenario.problems import valid_part
from splitfed.scenario.rules.registry import RULES, breaks
from splitfed.scenario.sections import Federation

CASES = [pytest.param(rule, more, id=f"{rule}-{i}") for rule, texts in BREAKS.items() for i, more in enumerate(texts)]
FINE = (
    "  cohort: 4\n  mode: psl\n  wave: 2\n  patience: 5.0\n  oversample: 1.5\n  deadline: 9.0\n"
    "  availability: {kind: drawn, late: 1.0}\nengine: ray\nevaluation: {held_out: 0.1, cohort: 10}"
)


def text(more: str) -> str:
    return more if more.startswith("model:") else SMALL + more


def problems(written: str, model: type[Scenario] = Scenario) -> list[str]:
    try:
        model.parse(written, "f.yaml")
    except ScenarioError as error:
        return error.problems
    return []


def marked(written: str) -> list[str]:
    """Return the beginnings of the problems that a text has, by its comments."""
    lines = [line.partition("  # ")[2] for line in written.splitlines()]
    return [f"f.yaml:{number}: {problem}" for number, problem in enumerate(lines, 1) if problem]


@pytest.mark.parametrize(("rule", "more"), CASES)
def test_each_rule_tells_its_key_and_line(rule: str, more: str) -> None:
    found, wanted = problems(text(more)), marked(text(more))
    assert len(found) == len(wanted) > 0
    for problem, beginning in zip(found, wanted, strict=True):
        assert problem.startswith(beginning)
    part = valid_part(Scenario, written_out(read(text(more), "f.yaml").data))
    assert {one.__name__ for one in RULES if list(breaks(one, part))} == {rule}


def test_every_rule_is_broken_here() -> None:
    assert list(BREAKS) == [rule.__name__ for rule in RULES]


def reordered(model: type[Config], order: list[str], **other: Any) -> type[Any]:
    """Return the model with its fields in another order, and others in the place of some."""
    first = create_model("First", __base__=Config, **dict.fromkeys(order, (Any, None)))
    made = create_model(model.__name__, __base__=(model, first), **{name: (kind, ...) for name, kind in other.items()})
    assert list(made.model_fields) == order
    return made


def orders(model: type[Config], seed: int | None) -> list[str]:
    names = list(model.model_fields)
    return names[::-1] if seed is None else random.Random(seed).sample(names, len(names))


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_the_order_of_fields_changes_no_verdict(seed: int | None) -> None:
    federation = reordered(Federation, orders(Federation, seed))
    scenario = reordered(Scenario, orders(Scenario, seed), federation=federation)
    assert problems(SMALL + FINE, scenario) == []
    for texts in BREAKS.values():
        for more in texts:
            assert problems(text(more), scenario) == problems(text(more))


def test_rules_of_several_sections_are_told_at_once() -> None:
    assert problems(
        SMALL + "  cohort: 20\n  patience: 5.0\nevaluation:\n  cohort: 11\n"
        "compression: {tail_gradient: {lossless: none}}"
    ) == [
        "f.yaml:6: federation.cohort: 20 of 10 clients cannot be sampled: lower it, or leave it out for all",
        "f.yaml:7: federation.patience: with sfl-v2 no client waits for another: leave it out, or set mode: psl",
        "f.yaml:9: evaluation.cohort: 11 of 10 clients cannot be asked: lower it, or leave it out",
        "f.yaml:10: compression.tail_gradient: only with federation.labels: private is there a second cut: leave it "
        "out, or set that",
    ]


def test_what_is_not_valid_hides_no_rule_that_does_not_read_it() -> None:
    """The mode is unknown, so nothing is told that depends on it."""
    assert problems(
        SMALL.replace("3", "none") + "  mode: sfl\n  order: arrival\n  cohort: 20\n  patience: 5.0\n"
        "training: {batch_size: 30, evaluate_every: 0}\n"
        "compression: {reducer: {kind: c3sl, r: 4}, smashed: {codec: {kind: uniform, bits: 5}}}\n"
    ) == [
        "f.yaml:5: federation.rounds: must be a whole number, not 'none'",
        "f.yaml:6: federation.mode: must be 'sl', 'sfl-v1', 'sfl-v2', 'psl' or 'fl', not 'sfl', "
        "did you mean 'sfl-v1' or 'sfl-v2'?",
        "f.yaml:8: federation.cohort: 20 of 10 clients cannot be sampled: lower it, or leave it out for all",
        "f.yaml:10: training.evaluate_every: must be greater than 0, not 0",
        "f.yaml:11: compression.smashed.codec.bits: must be 2, 3, 4, 6 or 8, not 5",
        "f.yaml:11: compression.reducer: c3sl: r: 4 does not divide training.batch_size: 30; r could be 3 or 5",
    ]  # fmt: skip


def test_two_rules_at_one_key_make_one_line() -> None:
    (problem,) = problems(
        SMALL + "  mode: fl\ncompression: {reducer: {kind: c3sl, r: 4}}\ntraining: {batch_size: 30}\n"
    )
    assert problem.startswith("f.yaml:7: compression.reducer: c3sl: r: 4 does not divide training.batch_size: 30")
    assert "; with fl nothing crosses a cut" in problem


def test_a_scenario_made_of_values_keeps_the_rules() -> None:
    data = read(SMALL + "  cohort: 20\nevaluation: {cohort: 11}", "f.yaml").data
    with pytest.raises(ValidationError) as caught:
        Scenario.model_validate(data)
    (error,) = caught.value.errors()
    assert "federation.cohort: 20 of 10 clients" in error["msg"]
    assert "evaluation.cohort: 11 of 10 clients" in error["msg"]
    made = Scenario.model_validate(read(SMALL + FINE, "f.yaml").data)
    with pytest.raises(ValidationError, match=r"engine\.deadline: after 5 s a joint step"):
        Scenario(**{**dict(made), "engine": made.engine.model_copy(update={"deadline": 5.0})})


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("data: {path: digits, partition: {kind: shard, num_shards_per_partition: null}}",
         "f.yaml:2: data.partition.shard_size: num_shards_per_partition is null too: set one of them"),
        ("compression:\n  smashed:\n    codec:\n      kind: fedlite\n      subvectors: 16\n      groups: 3",
         "f.yaml:11: compression.smashed.codec.groups: 16 subvectors make no 3 groups of equal size: choose a divisor"),
    ],
)  # fmt: skip
def test_rules_within_a_section_are_told_at_a_key(more: str, problem: str) -> None:
    small = SMALL.replace("data: {path: digits}", more) if more.startswith("data") else SMALL + more
    assert problems(small) == [problem]
