"""Where the project lies, and the real data beside it, which need not be there; where processes find modules."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"

# What shipped scenarios want of their user, by name.
WANTED = dict.fromkeys(("photos", "photos-lte"), ("data.path=digits",))


def python_path(*folders: Path | str) -> str:
    """Return a PYTHONPATH with some folders before those that it has."""
    return os.pathsep.join(filter(None, [*map(str, folders), os.environ.get("PYTHONPATH", "")]))
