"""The schemas that editors use: every file that ships is valid under them, and they say what the reader says."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import BASE
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from places import ROOT, WANTED, python_path
from pydantic import ByteSize, TypeAdapter, ValidationError

from splitfed import Scenario
from splitfed.cli import main as cli
from splitfed.cli.listing.json_schema import SCHEMAS, text
from splitfed.reports.sweep.plan import SweepFile
from splitfed.scenario.document import read
from splitfed.scenario.presets import PRESETS
from splitfed.scenario.problems import kind, sections
from splitfed.scenario.scenario import shipped

SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
VALIDATORS = {name: Draft7Validator(make()) for name, make in SCHEMAS.items()}
SMALL = read(BASE, "base").data


def mistakes(data: Any, what: str = "scenario") -> list[str]:
    return [error.message for error in VALIDATORS[what].iter_errors(data)]


def changed(**values: Any) -> dict[str, Any]:
    """Return the small scenario with `section__key` set."""
    data = copy.deepcopy(SMALL)
    for name, value in values.items():
        *path, last = name.split("__")
        here = data
        for part in path:
            here = here.setdefault(part, {})
        here[last] = value
    return data


def taken(data: dict[str, Any]) -> bool:
    """Whether a run would take it."""
    try:
        Scenario.model_validate(data)
    except ValidationError:
        return False
    return True


def kinded(model: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """Yield every key of a scenario that is a section of some kind, with the kinds."""
    for name, field in model.model_fields.items():
        found = sections(field.annotation)
        if kinds := [k for k in map(kind, found) if k is not None]:
            yield "__".join((*before, name)), kinds
        elif len(found) == 1:
            yield from kinded(found[0], (*before, name))


@pytest.mark.parametrize("what", SCHEMAS)
def test_they_are_schemas(what: str) -> None:
    Draft7Validator.check_schema(SCHEMAS[what]())


@pytest.mark.parametrize("what", SCHEMAS)
def test_the_file_that_ships_is_what_the_command_writes(what: str) -> None:
    path = ROOT / f"{what}s" / "schema.json"
    assert path.read_text() == text(SCHEMAS[what]()), f"{path.name} is not up to date: make schema"


@pytest.mark.parametrize("path", [*shipped().values(), *SWEEPS], ids=lambda path: path.name)
def test_what_ships_is_valid_and_names_its_schema(path: Path) -> None:
    first, _, _ = path.read_text().partition("\n")
    named = first.removeprefix("# yaml-language-server: $schema=")
    schema = json.loads((path.parent / named).read_text())
    wanted = ["'path' is a required property"] if path.stem in WANTED else []
    data = read(path.read_text(), path.name).data
    errors = [error.message for error in Draft7Validator(schema).iter_errors(data)]
    assert errors == wanted


@pytest.mark.parametrize("name", shipped())
def test_the_complete_scenario_of_a_run_is_valid(name: str) -> None:
    assert not mistakes(read(Scenario.load(name, WANTED.get(name, ())).to_yaml(), name).data)


@pytest.mark.parametrize(("key", "named"), [(key, k) for key, kinds in kinded(Scenario) for k in kinds])
def test_short_forms_are_valid_where_a_run_takes_them(key: str, named: str) -> None:
    labels = "private" if "__tail_" in key else "shared"
    data = changed(**{key: named}, federation__clients=10, federation__labels=labels)  # some strategies need so many
    assert (not mistakes(data)) == taken(data)


@pytest.mark.parametrize("preset", PRESETS)
def test_keys_beside_a_preset_refine_it(preset: str) -> None:
    for beside in (
        {},
        {"reducer": "none"},
        {"reducer": {"kind": "adc", "ratio": 0.5}},
        {"front_weights": {"codec": "float16"}},
        {"smashed": {"codec": {"bits": 8}}},
    ):
        data = changed(preset=preset, compression=beside)
        assert taken(data)
        assert not mistakes(data)
    assert mistakes(changed(compression={"smashed": {"codec": {"bits": 8}}}))  # of what kind?
    for wrong in ({"smashd": {}}, {"smashed": {"codec": {"bits": "few"}}}):
        assert mistakes(changed(preset=preset, compression=wrong))


@pytest.mark.parametrize(
    "size", ["130MB", "1.5 GiB", "", "MB", "7", " 12 kB ", "1e6", "3 apples", "2kbit", ".5mb", "-1 kB", "1,000 B"]
)
def test_sizes_are_valid_where_a_run_takes_them(size: str) -> None:
    data = changed(budget={"kind": "cut_bytes", "bytes": size})
    assert (not mistakes(data)) == taken(data), size


@given(st.integers(1, 9999), st.sampled_from(["", " "]), st.sampled_from(sorted(ByteSize.byte_sizes)), st.booleans())
def test_sizes_in_every_unit_are_valid(number: int, space: str, unit: str, upper: bool) -> None:
    size = f"{number}{space}{unit.upper() if upper else unit}"
    TypeAdapter(ByteSize).validate_python(size)
    assert not mistakes(changed(data__cache=size))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainig", {}),
        ("model__cutt", 1),
        ("model__cut", "one"),
        ("model__cut", 0),
        ("federation__mode", "sfl"),
        ("federation__rounds", True),
        ("compression__reducer", "adcc"),
        ("compression__reducer", {"kind": "adcc"}),
        ("compression__reducer", {"ratio": 0.5}),
        ("compression__reducer", {"kind": "adc", "ratio": 2.0}),
        ("compression__reducer", {"kind": "none", "ratio": 0.5}),
        ("compression__smashed__codec", {"kind": "uniform", "bits": 5}),
        ("preset", "smal"),
        ("compression__preset", "small"),
        ("budget", {"kind": "cut_bytes"}),
        ("data__partition", {"kind": "dirichlet", "alpha": "high"}),
        ("engine", {"treads": 1}),
    ],
)
def test_mistakes_are_marked(key: str, value: Any) -> None:
    data = changed(**{key: value})
    assert not taken(data)
    assert mistakes(data)


def test_what_is_missing_is_marked() -> None:
    assert any("'data'" in message for message in mistakes({k: v for k, v in SMALL.items() if k != "data"}))


def test_an_engine_without_a_kind_is_inline() -> None:
    assert not mistakes(changed(engine={"threads": 1}))
    assert mistakes(changed(engine={"client_cpus": 1}))


def test_keys_tell_what_they_are() -> None:
    adc = SCHEMAS["scenario"]()["$defs"]["AdcConfig"]
    assert adc["description"].startswith("Merge samples")
    assert adc["properties"]["kind"]["description"].startswith("Merge samples")
    assert adc["properties"]["fuse"]["description"] == (
        "Whether the tokens that are discarded travel as one token more, their mean weighted by attention."
    )


def reachable(section: Any, seen: set[Any]) -> set[Any]:
    """Return a section's class and all below it."""
    if section not in seen:
        seen.add(section)
        for field in section.model_fields.values():
            for below in sections(field.annotation):
                reachable(below, seen)
    return seen


SECTIONS = sorted(reachable(Scenario, {SweepFile}), key=lambda section: (section.__module__, section.__name__))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_has_a_docstring_of_its_own(section: Any) -> None:
    assert section.__doc__
    # What a kind is, its section's docstring says.
    told = {name: field.description for name, field in section.model_fields.items() if name != "kind"}
    assert all(told.values()), f"no docstring under {', '.join(name for name, said in told.items() if not said)}"
    for name, said in told.items():
        assert said[0].isupper() or said[0] == "`", name
        assert said.endswith("."), name
        assert len(said.split()) > 2, name


@pytest.mark.parametrize("what", SCHEMAS)
def test_every_property_of_a_schema_has_a_description(what: str) -> None:
    schema = SCHEMAS[what]()
    titled = [("Scenario" if what == "scenario" else "SweepFile", schema)]
    titled += [(one["title"], one) for one in schema["$defs"].values() if "title" in one]
    for title, one in titled:
        for name, key in one.get("properties", {}).items():
            assert key.get("description"), f"{title}.{name}"


SWEEP = {
    "scenario": "digits",
    "set": {"federation.rounds": 2, "preset": "small", "model.args.depth": 2, "engine": "inline"},
    "grid": {
        "method": {"all": None, "adc": {"compression.reducer": {"kind": "adc", "ratio": 0.5}}},
        "training.batch_size": [8, 16],
    },
    "points": {"plain": {"compression.smashed.codec": "float32", "compression.smashed.codec.kind": "float16"}},
    "seeds": {"*": [0], "plain": [0, 1]},
}


@pytest.mark.parametrize(
    "change",
    [
        {"set": {"federation.round": 2}},
        {"set": {"federation.rounds": "two"}},
        {"set": {"federation": {"rounds": "two"}}},
        {"points": {"a": {"compression.reducer.ratios": 0.5}}},
        {"points": {"a": {"compression.reducer.ratio": 5}}},
        {"grid": {"method": {"a": {"compression.reducer": "adcc"}}}},
        {"seeds": []},
        {"seeds": [-1]},
        {"seed": [0]},
    ],
)
def test_mistakes_in_a_sweep_are_marked(change: dict[str, Any]) -> None:
    assert not mistakes(SWEEP, "sweep")
    assert not mistakes({**SWEEP, "seeds": [0, 1]}, "sweep")
    assert mistakes({**SWEEP, **change}, "sweep")


def test_plugins_that_are_installed_are_in_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from typing import Literal\n"
        "from splitfed.compression.reducers.none import NoReduction\n"
        "from splitfed.compression.reducers.base import ReducerSettings\n"
        "class Mine(ReducerSettings):\n"
        "    'Keep all; `strength` is how firmly.'\n"
        "    kind: Literal['mine'] = 'mine'\n"
        "    strength: int = 1\n"
        "    def build(self):\n"
        "        return NoReduction()\n"
    )
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[splitfed.reducers]\nmine = mine:Mine\n")
    done = subprocess.run(
        [sys.executable, "-m", "splitfed", "schema"], capture_output=True, text=True, timeout=300, check=True,
        env={**os.environ, "PYTHONPATH": python_path(tmp_path)}, cwd=ROOT,
    )  # fmt: skip
    validator = Draft7Validator(json.loads(done.stdout))
    for section in ("mine", {"kind": "mine", "strength": 2}):
        data = changed(compression__reducer=section)
        assert not list(validator.iter_errors(data))
        assert mistakes(data)
    assert list(validator.iter_errors(changed(compression__reducer={"kind": "mine", "strength": "much"})))


def test_the_command_writes_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["splitfed", "schema", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    assert run("sweep", "--out", str(tmp_path / "sweep.json")) == (0, "", "")
    code, printed, _ = run("sweep")
    assert code == 0
    assert (tmp_path / "sweep.json").read_text() == printed == text(SCHEMAS["sweep"]())
    code, _, told = run("--out", str(tmp_path / "none" / "schema.json"))
    assert code == 2
    assert told.endswith("cannot be written (No such file or directory)\n")
    assert told.count("\n") == 1
