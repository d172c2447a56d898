"""What an installation holds: the folders of the tree, each once, under one name."""

import tomllib

import pytest
from places import ROOT

LINKED = {"clients", "compression", "scenarios", "server"}


def test_a_wheel_has_every_folder_once() -> None:
    setuptools = pytest.importorskip("setuptools")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    find = settings["packages"]["find"]
    assert find["namespaces"]  # `compression` and `scenarios` have no `__init__.py`
    found = sorted(setuptools.find_namespace_packages(str(ROOT), include=find["include"]))
    code = {path.parent for room in LINKED | {"splitfed"} for path in (ROOT / room).rglob("*.py")} | {
        ROOT / "scenarios"
    }
    names = {".".join(folder.relative_to(ROOT).parts) for folder in code}
    own = {name for name in names if name.partition(".")[0] == "splitfed"}
    wanted = own | {f"splitfed.{name}" for name in names - own}
    # `rglob` follows no links, setuptools does; a folder of compiled files holds nothing that it would take.
    assert [name for name in found if not name.endswith("__pycache__")] == sorted(wanted)


def test_the_root_is_linked_into_the_package() -> None:
    links = {path.name: path.readlink().as_posix() for path in (ROOT / "splitfed").iterdir() if path.is_symlink()}
    assert links == {name: f"../{name}" for name in LINKED}
