"""What an installation holds: the folders of the tree, each once, under one name; packages of known versions."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = [line.split()[-1] for line in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d", line)]
LOCKS = {name: (ROOT / "requirements" / f"{name}.txt").read_text() for name in ("locked", "torch")}
LINKED = {"clients", "compression", "scenarios", "server"}


def test_a_wheel_has_every_folder_once() -> None:
    setuptools = pytest.importorskip("setuptools")
    settings = PROJECT["tool"]["setuptools"]
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


def pinned(text: str, environment: dict[str, str]) -> dict[str, str]:
    """Return the versions that a file sets in an environment, by name."""
    lines = [Requirement(line) for line in re.findall(r"^([A-Za-z][^\\\n]*==[^\\\n]*)", text, re.MULTILINE)]
    there = [line for line in lines if line.marker is None or line.marker.evaluate(environment)]
    found = {canonicalize_name(line.name): str(line.specifier).removeprefix("==") for line in there}
    assert len(found) == len(there), "a package stands there twice"
    return found


def asked_by(name: str, version: str) -> list[str]:
    """Return what a package asks for where this version of it is installed, and nothing where another one is."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return []
    # Builds of torch for other CUDAs than that of the index ask for other packages.
    same = Version(found.version).public == version and Version(found.version).local in (None, "cpu")
    return found.requires or [] if same else []


def needed(lines: list[str], locked: dict[str, str], environment: dict[str, str]) -> Iterator[Requirement]:
    """Yield what these lines ask for, and what that asks for."""
    waiting, seen = [(line, "") for line in lines], set()
    while waiting:
        line, extra = waiting.pop()
        one = Requirement(line)
        if (line, extra) in seen or (one.marker and not one.marker.evaluate(environment | {"extra": extra})):
            continue
        seen.add((line, extra))
        yield one
        name = canonicalize_name(one.name)
        waiting += [(more, extra) for extra in ("", *one.extras) for more in asked_by(name, locked.get(name, ""))]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", PYTHONS)
def test_every_package_that_is_needed_is_locked(python: str, machine: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.1", "platform_machine": machine}
    locked, torch = (pinned(text, environment) for text in LOCKS.values())
    assert not locked.keys() & torch.keys()
    assert torch.keys() >= {"torch", "torchvision"}
    both, project = locked | torch, PROJECT["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"], *PROJECT["build-system"]["requires"]]
    for one in needed(asked, both, environment):
        assert canonicalize_name(one.name) in both, f"{one} is not locked: make lock"
        assert one.specifier.contains(both[canonicalize_name(one.name)], prereleases=True), f"{one}: make lock"
    tested = pinned((ROOT / "constraints.txt").read_text(), environment)
    assert len(tested) > 40
    assert tested.items() <= both.items()


def test_locks_have_hashes_and_name_no_place() -> None:
    """Where packages come from is the user's setting. Builds of torch differ by that, so it has no hash."""
    entries = re.split(r"^(?=\w)", LOCKS["locked"], flags=re.MULTILINE)[1:]
    assert len(entries) > 100
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)
    assert "--hash" not in LOCKS["torch"]
    assert not [name for name, text in LOCKS.items() if "://" in text]
