"""The folder for what a client's SuperNode writes, in the system's temporary one, and what becomes of those that a kill
has left."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX, _LOCK = "splitfed-join-", "lock"
_YOUNG_SECONDS = 2.0  # one that is just being made is not locked yet


@contextmanager
def scratch() -> Iterator[Path]:
    """Lend a folder that only its owner can enter, and remove it after the `with` block; first remove those of
    processes that could not."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # it may go at the same moment
            if _is_abandoned(left):
                shutil.rmtree(left, ignore_errors=True)
    with (
        # What a SuperNode that is killed has still open must not end the client's process.
        tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as folder,
        open(Path(folder) / _LOCK, "wb") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)  # goes with the process, however it ends
        yield Path(folder)


def _is_abandoned(folder: Path) -> bool:
    about = folder.lstat()
    if about.st_uid != os.getuid() or folder.is_symlink() or time.time() - about.st_mtime < _YOUNG_SECONDS:
        return False
    try:
        with open(folder / _LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True
