"""Files that are either the old or the new ones, whenever the process dies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitfed.errors import SplitfedError


def expanded(path: str | Path) -> Path:
    """Return a path with `~` and `~user` written out. Raises SplitfedError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise SplitfedError(f"{path}: no home folder of this user is known; write the path from / on") from error


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replace_with(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `path` at the end of the block, on disk and at once."""
    scratch = path.with_name(f".{path.name}.new")
    yield scratch
    sync(scratch)
    os.replace(scratch, path)
    sync(path.parent)
