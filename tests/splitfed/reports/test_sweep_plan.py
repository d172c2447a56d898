"""Sweep files: the points that they stand for, and mistakes with the line that they are in."""

from pathlib import Path

import pytest
from helpers import BASE
from places import ROOT

from splitfed.errors import ScenarioError
from splitfed.reports.sweep.plan import Sweep
from splitfed.scenario import Scenario

SWEEPS = ROOT / "sweeps"


def load(folder: Path, text: str, *overrides: str) -> Sweep:
    (folder / "base.yaml").write_text(BASE)
    (folder / "study.yaml").write_text(text)
    return Sweep.load(folder / "study.yaml", list(overrides))


def refused(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ScenarioError) as caught:
        load(folder, text, *overrides)
    return [line.removeprefix(f"{folder}/") for line in caught.value.problems]


def test_a_point_for_each_combination_and_seed_in_the_order_of_the_file(tmp_path: Path) -> None:
    plan = load(
        tmp_path,
        """
scenario: base.yaml
set: {federation.rounds: 5}
grid:
  method:
    none:
    adc: {compression.reducer: {kind: adc, ratio: 0.5}}
  training.batch_size: [8, 16]
points:
  best: {compression.reducer: {kind: adc, ratio: 0.9}, federation.rounds: 7}
seeds: {'*': [3], adc-*: [0, 3]}
""",
    )
    assert plan.name == "study"
    assert [point.name for point in plan.points] == [
        "none-batch_size8-seed3", "none-batch_size16-seed3", "adc-batch_size8-seed0", "adc-batch_size8-seed3",
        "adc-batch_size16-seed0", "adc-batch_size16-seed3", "best-seed3",
    ]  # fmt: skip
    found = [
        (s.name, s.seed, s.compression.reducer.kind, s.training.batch_size, s.federation.rounds)
        for s in (point.scenario for point in plan.points)
    ]
    assert found[0] == ("none-batch_size8", 3, "none", 8, 5)
    assert found[4] == ("adc-batch_size16", 0, "adc", 16, 5)
    assert found[6] == ("best", 3, "adc", 16, 7)


def test_without_a_grid_the_scenario_itself_is_the_point(tmp_path: Path) -> None:
    plan = load(tmp_path, "scenario: base.yaml\nseeds: [4, 5, 4]\n")
    assert [point.name for point in plan.points] == ["base-seed4", "base-seed5"]
    (alone,) = load(tmp_path, "scenario: digits\npoints: {few: {federation.rounds: 1}}\n").points
    assert alone.scenario == Scenario.load("digits", ["federation.rounds=1", "name=few"])


def test_overrides_come_last_in_every_point(tmp_path: Path) -> None:
    plan = load(tmp_path, "scenario: base.yaml\npoints: {a: {data.limit: 50}}\n", "data.limit=60")
    assert plan.points[0].scenario.data.limit == 60


def test_threads_are_one_unless_said_so_that_figures_do_not_depend_on_jobs(tmp_path: Path) -> None:
    for said, threads in ((None, 1), (2, 2)):
        plan = load(tmp_path, f"scenario: base.yaml\nset: {{engine.threads: {said or 'null'}}}\n")
        assert plan.points[0].scenario.engine.threads == threads


def test_mistakes_in_the_file_itself(tmp_path: Path) -> None:
    text = "scenario: base.yaml\nsed: [1]\ngrid: {a: 3}\npoints:\n  x: 5\nseeds: [-1, one]\n"
    assert refused(tmp_path, text) == [
        "study.yaml:2: sed: unknown key, did you mean 'seeds'?",
        "study.yaml:3: grid.a: must be a section, not 3",
        "study.yaml:5: points.x: must be a section, not 5",
        "study.yaml:6: seeds.'*'.0: must be at least 0, not -1",
        "study.yaml:6: seeds.'*'.1: must be a whole number, not 'one'",
    ]
    assert refused(tmp_path, "grid: {}\n") == ["study.yaml:1: scenario: is missing"]
    assert refused(tmp_path, BASE) == ["study.yaml: is a scenario, not a sweep: run it with splitfed simulate"]


def test_a_mistake_at_the_top_hides_none_in_a_point(tmp_path: Path) -> None:
    text = """\
x-anchor: &fast {federation.rounds: 1}
scenario: base.yaml
points:
  a: {federation.roundz: 3}
  b: 5
  c: {<<: *fast, federation.cohort: 99}
vary: {x: 1}
grid:
  method: {adc: {model.cut: two}}
seeds: [-1]
"""
    assert [line.partition(":")[2].partition(": ")[::2] for line in refused(tmp_path, text)] == [
        ("4", "federation.roundz: unknown key, did you mean 'rounds'?"),
        ("5", "points.b: must be a section, not 5"),
        ("6", "federation.cohort: 99 of 3 clients cannot be sampled: lower it, or leave it out for all"),
        ("7", "vary: unknown key here, known: 'scenario', 'set', 'grid', 'points', 'seeds'"),
        ("9", "model.cut: must be a whole number, not 'two'"),
        ("10", "seeds.'*'.0: must be at least 0, not -1"),
    ]


def test_mistakes_in_axes_points_and_seeds(tmp_path: Path) -> None:
    text = """\
scenario: base.yaml
set: {a b: 1, seed: 3}
grid:
  empty: []
  one:
    x:
      name: other
points: {y: }
seeds: {z*: [0], x: [1]}
"""
    assert refused(tmp_path, text) == [
        "study.yaml:2: set.'a b': write the key of a scenario, such as compression.reducer.ratio",
        "study.yaml:2: set.seed: cannot be set here: the sweep's own 'seeds' says which",
        "study.yaml:4: grid.empty: is empty, so there would be no point",
        "study.yaml:7: grid.one.x.name: cannot be set here: its label names a point",
        "study.yaml:9: seeds: none for 'y': add a pattern for it, or '*' for all",
        "study.yaml:9: seeds.'z*': no point is named so; points: y",
        "study.yaml:9: seeds.x: no point is named so; points: y",
    ]
    text = "scenario: base.yaml\ngrid:\n  data.limit:\n  - 50\n  - [60]\n"
    assert refused(tmp_path, text) == [
        "study.yaml:5: grid.'data.limit'.1: is no single value: write a mapping of labels to changes"
    ]


def test_mistakes_in_scenarios_stand_at_the_line_that_makes_them(tmp_path: Path) -> None:
    text = """\
scenario: base.yaml
set: {federation.cohort: 9}
grid:
  method:
    adc: {compression.reducer: {kind: adc, ratoi: 0.5}}
    a/b:
  federation.rounds: [1, 0]
"""
    lines = refused(tmp_path, text, "data.lmit=3")
    assert lines == [
        "study.yaml:2: federation.cohort: 9 of 3 clients cannot be sampled: lower it, or leave it out for all",
        "study.yaml:3: name: 'a/b-rounds1' cannot name a folder: use letters, digits, '-' and '_', 100 at most",
        "study.yaml:3: name: 'a/b-rounds0' cannot name a folder: use letters, digits, '-' and '_', 100 at most",
        "study.yaml:5: compression.reducer.ratoi: unknown key, did you mean 'ratio'?",
        "study.yaml:7: federation.rounds: must be greater than 0, not 0",
        "--set data.lmit=3: data.lmit: unknown key, did you mean 'limit'?",
    ]


def test_points_of_the_same_name_or_the_same_settings(tmp_path: Path) -> None:
    text = "scenario: base.yaml\ngrid: {a: {x: }, b: {y: }}\npoints:\n  x-y: {data.limit: 50}\n"
    assert refused(tmp_path, text) == ["study.yaml:4: points.x-y: two points are named 'x-y'"]
    text = "scenario: base.yaml\npoints:\n  a: {data.limit: 96}\n  b:\n"
    assert refused(tmp_path, text) == ["study.yaml:4: 'a' and 'b' are the same settings"]


def test_a_scenario_that_is_not_there_and_one_for_a_deployment(tmp_path: Path) -> None:
    assert refused(tmp_path, "scenario: other.yaml\n")[0].endswith(
        "other.yaml: cannot be read: No such file or directory"
    )
    assert "did you mean 'digits'?" in refused(tmp_path, "scenario: digts\n")[0]
    assert refused(tmp_path, "scenario: base.yaml\nset: {engine: deployment}\n") == [
        "study.yaml:1: engine: deployment has clients on other machines: use splitfed serve"
    ]
    with pytest.raises(ScenarioError, match=r"nowhere\.yaml: cannot be read: No such file"):
        Sweep.load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_beside_the_code_are_valid(path: Path) -> None:
    assert len(Sweep.load(path).points) > 1
