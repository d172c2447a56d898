"""Hides the plug-ins of the environment from tests. Python imports a module of this name when it starts, so processes
that tests start have it too.

What is installed beside splitfed would change what scenarios can name, and what tests see. Left are the packages that a
test lays down in a folder of its own.
"""

import os
from importlib.metadata import EntryPoints, PathDistribution
from pathlib import Path

GROUPS = ("splitfed.reducers", "splitfed.codecs")
# The folders of `sys.path` when the tests began, which `conftest.py` puts here.
HIDDEN = set(map(Path, filter(None, os.environ.get("SPLITFED_TESTS_HIDE", "").split(os.pathsep))))
_all = PathDistribution.entry_points.fget


def _left(package: PathDistribution) -> EntryPoints:
    found = _all(package)
    if Path(package.locate_file("")) not in HIDDEN:
        return found
    return EntryPoints(point for point in found if point.group not in GROUPS)


PathDistribution.entry_points = property(_left)
