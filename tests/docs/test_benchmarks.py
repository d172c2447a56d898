"""Every benchmark can be started: what it imports is there. What they measure is looked at by people."""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))


def loaded(script: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{script.stem}", script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # as classes with fields ask for it
    monkeypatch.setattr("os.environ", {})  # some set what torch or the allocator is to do
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not SCRIPTS, reason="no benchmarks beside the tests")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_its_imports_are_there(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(script, monkeypatch).__doc__


@pytest.mark.skipif(not SCRIPTS, reason="no benchmarks beside the tests")
@pytest.mark.parametrize(
    ("script", "option", "good"),
    [
        ("controller", "--seeds", [0, 1, 2, 3, 4]), ("inference/adaptation", "--seeds", [0]),
        ("inference/adaptation", "--severities", [1, 2, 3, 4, 5]), ("inference/serving", "--clients", [1, 8, 32]),
        ("inference/behind", "--sure", [0.7, 0.8, 0.9, 0.95]), ("inference/jpeg", "--quality", [95, 75, 50, 25, 10]),
        ("threads", "--spins", 10000),
    ],
)  # fmt: skip
def test_what_is_no_number_is_refused(
    script: str, option: str, good: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:  # fmt: skip
    module = loaded(ROOT / "benchmarks" / f"{script}.py", monkeypatch)
    run = [] if script in ("controller", "threads") else ["run"]
    for wrong in "x", "1,,2", "":
        monkeypatch.setattr("sys.argv", [script, *run, option, wrong])
        with pytest.raises(SystemExit) as end:
            module.main()
        assert end.value.code == 2
        assert f"argument {option}: invalid" in capsys.readouterr().err
    read: list[argparse.Namespace] = []

    def parse(self: argparse.ArgumentParser) -> argparse.Namespace:
        read.append(self.parse_known_args(run)[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    with pytest.raises(KeyboardInterrupt):
        module.main()
    assert getattr(read[0], option[2:]) == good
