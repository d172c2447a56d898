"""A client that has only what it needs: the list of it, a join with nothing else, and how what is missing is told."""

import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from deployed import deployment
from helpers import small
from PIL import Image
from places import ROOT

from splitfed.errors import Missing, telling_missing

HEAVY = {"ray", "tensorboard", "matplotlib", "scikit-learn", "scipy", "pandas", "pyarrow", "datasets", "uv"}

# `importlib.util.find_spec` finds nothing either: libraries ask it what they can count on.
_SITE = """
import importlib.machinery, runpy, sys

MISSING = {missing!r}

class Installed(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in MISSING else super().find_spec(name, path, target)

sys.meta_path[:] = [Installed if one is importlib.machinery.PathFinder else one for one in sys.meta_path]
runpy.run_path({alone!r})
"""


def pins(name: str) -> dict[str, str]:
    """Return the packages that a file of `requirements/` names, with their versions."""
    text = (ROOT / "requirements" / name).read_text()
    return {plain(package): version for package, version in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)}


def plain(package: str) -> str:
    """Return a package's name in the one way in which indexes write it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def missing() -> set[str]:
    """Return the modules that are installed here, and are not on a thin client."""
    there = {*pins("client.txt"), *pins("torch.txt"), "splitfed"}
    return {module for module, owners in packages_distributions().items() if not there & set(map(plain, owners))}


def thin(folder: Path) -> str:
    """Write what makes a machine thin to a folder; return Python that puts a process on it, and its children."""
    folder.mkdir()
    alone = str(ROOT / "tests" / "alone" / "sitecustomize.py")
    (folder / "sitecustomize.py").write_text(_SITE.format(missing=missing(), alone=alone))
    return (
        f"import sys, runpy; sys.path.insert(0, {str(folder)!r}); runpy.run_path({str(folder / 'sitecustomize.py')!r})"
    )


def test_the_list_is_a_part_of_the_lock_and_leaves_out_what_only_others_need():
    """By hashes too: one file cannot say of a package what the other does not."""
    chosen, locked = pins("client.txt"), pins("locked.txt")
    assert chosen.items() < locked.items()
    assert locked.keys() >= HEAVY
    assert not HEAVY & chosen.keys()
    text = {name: (ROOT / "requirements" / name).read_text() for name in ("client.txt", "locked.txt")}
    hashes = {
        name: {line.strip(" \\") for line in found.splitlines() if "--hash" in line} for name, found in text.items()
    }
    assert len(hashes["client.txt"]) >= len(chosen)
    assert hashes["client.txt"] < hashes["locked.txt"]
    assert "://" not in text["client.txt"]  # no index, so that each machine asks its own


def test_it_is_made_of_requirements_of_the_package():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {plain(one.split(">=")[0]) for one in needed}
    wanted = [line for line in (ROOT / "requirements" / "client.in").read_text().splitlines() if line[:1] not in "#"]
    assert set(wanted) < names
    assert set(wanted) <= pins("client.txt").keys()
    assert wanted == sorted(wanted)


@pytest.mark.slow
def test_a_join_needs_nothing_else(tmp_path):
    """To the end of a run, with a folder of images."""
    assert {"ray", "sklearn", "pandas", "pyarrow", "datasets", "matplotlib", "tensorboard"} <= missing()
    for name in range(10):
        (tmp_path / "own" / str(name)).mkdir(parents=True)
        for shade in range(2):
            Image.new("L", (8, 8), 20 * name + shade).save(tmp_path / "own" / str(name) / f"{shade}.png")
    scenario = small("federation.clients=1", "federation.rounds=1", "engine={kind: deployment, threads: 1}")
    with deployment(tmp_path) as here:
        server = here.serve(scenario)
        client = here.join_with(0, tmp_path / "own", before=thin(tmp_path / "thin"))
        assert client.end() == 0, client.text
        assert server.end() == 0, server.text
    assert "round 1: " in client.text


TOLD = [
    (
        "ray",
        "ray is not installed, and the engine ray needs it: pip install ray, or all of splitfed: pip install splitfed",
    ),
    ("sklearn.datasets", "scikit-learn is not installed, and the data set digits needs it: pip install scikit-learn, "),
    ("left_out_here", "left_out_here is not installed, and what was asked for needs it: pip install left_out_here, "),
]


@pytest.mark.parametrize(("module", "told"), TOLD)
def test_a_package_that_is_missing_is_told_with_the_way_out(without, module, told):
    without(module.partition(".")[0], module)
    with pytest.raises(Missing) as caught, telling_missing():
        __import__(module)
    assert str(caught.value).startswith(told)


def test_a_module_that_an_installed_package_lacks_is_a_fault_of_somebody_elses():
    for module in ("splitfed.gone", "numpy.gone", "json.gone"):
        with pytest.raises(ModuleNotFoundError), telling_missing():
            __import__(module)
