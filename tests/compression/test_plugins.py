"""Reducers and codecs that other packages bring: how they are found, and what becomes of those that cannot be used."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoints
from pathlib import Path

import pytest
from helpers import few
from places import ROOT, python_path
from pydantic import TypeAdapter, ValidationError

from splitfed.compression import plugins
from splitfed.compression.codecs import decoders
from splitfed.compression.codecs.base import CodecSettings
from splitfed.compression.codecs.settings import OWN
from splitfed.compression.plugins import CODECS, REDUCERS, load, one_of
from splitfed.compression.reducers import registry as reducers
from splitfed.compression.reducers.base import ReducerSettings
from splitfed.errors import WireError

BASE = "splitfed.compression.reducers.base.ReducerSettings"
REDUCER = """
from typing import Literal
from splitfed.compression.reducers.none import NoReduction
from splitfed.compression.reducers.base import ReducerSettings

class Mine(ReducerSettings):
    '''Keep all of it, as Somebody et al., 2020 do.'''
    kind: Literal["mine"]
    strength: int = 1

    def build(self):
        return NoReduction()

class Unfinished(ReducerSettings):
    kind: Literal["unfinished"] = "unfinished"
"""
CODEC = """
from typing import ClassVar, Literal
from splitfed.compression.codecs.base import Codec, CodecSettings, Decoder
from splitfed.compression.codecs.floats import DECODERS

class Coded(CodecSettings):
    kind: Literal["coded"] = "coded"
    decoders: ClassVar = {"coded": DECODERS["float32"]}

    def build(self) -> Codec:
        raise NotImplementedError  # found, listed and refused, but never built

class Taken(Coded):
    kind: Literal["taken"] = "taken"
    decoders: ClassVar = {"mine-too": DECODERS["float32"], "float32": DECODERS["float16"]}

class Same(Coded):
    kind: Literal["same"] = "same"
    decoders: ClassVar = {"float32": DECODERS["float32"]}

class Undecodable(Coded):
    kind: Literal["undecodable"] = "undecodable"
    decoders: ClassVar = ["coded"]
"""


def install(folder: Path, package: str, entry_points: str, **modules: str) -> None:
    """Lay a package down as pip would."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder whose packages are installed, for this test."""
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    plugins.points.cache_clear()
    yield tmp_path
    plugins.points.cache_clear()
    for name in set(sys.modules) - known:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def found(group: str = REDUCERS) -> list[plugins.Plugin]:
    if group == REDUCERS:
        return load(group, ReducerSettings, reducers.OWN)
    return load(group, CodecSettings, OWN, decoders.register)


def test_a_kind_of_a_package_is_one_of_the_union(site):
    install(site, "my-methods", "[splitfed.reducers]\nmine = my_methods:Mine\n", my_methods=REDUCER)
    (plugin,) = found()
    assert (plugin.kind, plugin.package, plugin.problem) == ("mine", "my-methods 1.0", "")
    read = TypeAdapter(one_of(reducers.OWN, [plugin])).validate_python
    for section in ("mine", {"kind": "mine"}, {"kind": "mine", "strength": 1}):
        assert type(read(section)) is plugin.config
    assert read({"kind": "mine", "strength": 3}).strength == 3
    assert read("none").kind == "none"
    for wrong in ("other", {"kind": "mine", "ratio": 0.1}, {"kind": "mine", "strength": "3"}):
        with pytest.raises(ValidationError):
            read(wrong)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("mine = nowhere:Mine", "ModuleNotFoundError: No module named 'nowhere'"),
        ("mine = my_methods:Yours", "AttributeError: module 'my_methods' has no attribute 'Yours'"),
        ("mine = failing:Mine", "cannot be used: RuntimeError: first line second line (failing.py:2)"),
        ("mine = leaving:Mine", "cannot be used: SystemExit: 3 (leaving.py:2)"),
        ("mine = my_methods", f"it is not a subclass of {BASE}"),
        ("mine = my_methods:NoReduction", f"it is not a subclass of {BASE}"),
        ("yours = my_methods:Mine", "its kind must be Literal['yours'], as the entry point is named"),
        ("unfinished = my_methods:Unfinished", f"it is a subclass of {BASE} that lacks build"),
        ("adc = my_methods:Mine", "splitfed has a kind of this name itself: rename it, or uninstall the package"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_line_where_it_is_named(entry, why, site):
    failing, leaving = "if True:\n    raise RuntimeError('first line\\n  second line')", "import sys\nsys.exit(3)"
    install(site, "my-methods", f"[splitfed.reducers]\n{entry}\n", my_methods=REDUCER, failing=failing, leaving=leaving)
    (plugin,) = found()
    kind = entry.split()[0]
    assert (plugin.kind, plugin.config) == (kind, None)
    assert plugin.problem.startswith(f"{kind!r} of my-methods 1.0 (entry point {entry.split()[2]}) cannot be used: ")
    assert why in plugin.problem
    assert "\n" not in plugin.problem
    read = TypeAdapter(one_of(reducers.OWN, [plugin])).validate_python
    assert read("none").kind == "none"
    for section in (kind, {"kind": kind, "more": 1}):
        with pytest.raises(ValidationError) as refused:
            read(section)
        (error,) = refused.value.errors()
        assert (error["type"], error["msg"]) == (plugins.UNUSABLE, plugin.problem)


def test_two_packages_with_one_kind_are_both_refused(site):
    for package in ("one", "two"):
        install(site, package, f"[splitfed.reducers]\nmine = {package}:Mine\n", **{package: REDUCER})
    (plugin,) = found()
    assert plugin.config is None
    assert "one 1.0 (entry point one:Mine)" in plugin.problem
    assert "two 1.0 (two:Mine)" in plugin.problem


def test_decoders_are_known_by_tags_that_are_nobody_elses(site, monkeypatch):
    monkeypatch.setattr(decoders, "DECODERS", dict(decoders.DECODERS))
    points = "".join(f"{name.lower()} = my_codecs:{name}\n" for name in ("Coded", "Same", "Taken", "Undecodable"))
    install(site, "my-codecs", f"[splitfed.codecs]\n{points}", my_codecs=CODEC)
    coded, same, taken, undecodable = found(CODECS)
    assert (coded.problem, same.problem) == ("", "")
    assert decoders.coded_size("coded", "float32", (3, 2)) == 24
    assert taken.problem.endswith("another codec has the tag 'float32' too")
    with pytest.raises(WireError, match="no codec has the tag 'mine-too'"):
        decoders.coded_size("mine-too", "float32", (3, 2))
    assert undecodable.problem.endswith("must map each tag to a splitfed.compression.codecs.base.Decoder")


@pytest.mark.parametrize("first", few(["splitfed.scenario", "splitfed.compression.codecs.decoders"]))
def test_decoders_of_a_package_are_known_whatever_is_imported_first(tmp_path, first):
    install(tmp_path, "my-codecs", "[splitfed.codecs]\ncoded = my_codecs:Coded\n", my_codecs=CODEC)
    code = f"""
import {first}
from splitfed.compression.codecs.decoders import coded_size
from splitfed.scenario.compression import Packing
print(coded_size("coded", "float32", (3, 2)), type(Packing(codec="coded").codec).__name__)
"""
    done = run(tmp_path, "-c", code)
    assert done.stdout == "24 Coded\n", done.stderr


def test_installed_packages_are_looked_through_once(site, monkeypatch):
    scans = []
    monkeypatch.setattr(plugins, "entry_points", lambda: scans.append(1) or EntryPoints())
    assert found() == found(CODECS) == plugins.packages() == []
    assert len(scans) == 1


SCENARIO = """\
model: {name: vit_tiny_patch16_224, cut: 1, image_size: 16}
data: {path: digits}
federation: {clients: 2, rounds: 1}
compression:
  reducer:
    strength: 2
    kind: KIND
"""
CHILD = """
import json, sys
from splitfed import Scenario, SplitfedError
from splitfed.cli.listing.kinds import entries
found = {}
for kind in ("mine", "mime", "broken", "none", "far-away"):
    try:
        found[kind] = Scenario.parse(open("f.yaml").read().replace("KIND", kind), "f.yaml").to_yaml()
    except SplitfedError as error:
        found[kind] = str(error)
found["list"] = {entry.name: entry.line() for entry in entries("reducers")}
print(json.dumps(found))
"""


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": python_path(folder, ROOT)}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True, timeout=300
    )


def test_scenarios_name_kinds_of_packages_and_their_mistakes_have_lines(tmp_path):
    install(tmp_path, "my-methods", "[splitfed.reducers]\nmine = my_methods:Mine\nbroken = gone:Gone\n",
            my_methods=REDUCER)  # fmt: skip
    (tmp_path / "f.yaml").write_text(SCENARIO)
    done = run(tmp_path, "-c", CHILD)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "reducer:\n    kind: mine\n    strength: 2\n" in told["mine"]
    assert told["none"] == "f.yaml:6: compression.reducer.strength: unknown key for kind 'none', it belongs to 'mine'"
    known = ", ".join(repr(name) for name in told["list"] if name != "broken")
    assert told["mime"] == f"f.yaml:7: compression.reducer: unknown kind 'mime', known: {known}, did you mean 'mine'?"
    assert told["far-away"].endswith(f"known: {known}, and no installed package brings it")
    assert told["broken"] == (
        "f.yaml:7: compression.reducer: 'broken' of my-methods 1.0 (entry point gone:Gone) cannot be used: "
        "ModuleNotFoundError: No module named 'gone'"
    )
    assert told["list"]["mine"] == "Keep all of it, as Somebody et al., 2020 do. (my-methods 1.0)  strength=1"
    assert told["list"]["broken"].startswith("broken: 'broken' of my-methods 1.0 (entry point gone:Gone)")


def test_help_imports_no_plugin_and_a_broken_one_ends_with_code_2_where_it_is_named(tmp_path):
    entry_points = "[splitfed.reducers]\nmine = told:Mine\n[splitfed.codecs]\nmine = told:Mine\n"
    install(tmp_path, "loud", entry_points, told="print('imported', flush=True)\n1 / 0\n")
    done = run(tmp_path, "-m", "splitfed", "--help")
    assert done.returncode == 0
    assert "imported" not in done.stdout
    (tmp_path / "f.yaml").write_text(SCENARIO.replace("KIND", "mine"))
    done = run(tmp_path, "-m", "splitfed", "simulate", "f.yaml")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if not line.endswith(" ...")] == [
        "f.yaml:7: compression.reducer: 'mine' of loud 1.0 (entry point told:Mine) cannot be used: "
        "ZeroDivisionError: division by zero (told.py:2)"
    ]
