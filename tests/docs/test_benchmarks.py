"""Every benchmark can be started: what it imports is there. What they measure is looked at by people."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))


@pytest.mark.skipif(not SCRIPTS, reason="no benchmarks beside the tests")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_its_imports_are_there(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location(f"benchmark_{script.stem}", script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # as classes with fields ask for it
    monkeypatch.setattr("os.environ", {})  # some set what torch or the allocator is to do
    spec.loader.exec_module(module)
    assert module.__doc__
