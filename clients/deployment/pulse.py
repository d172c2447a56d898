"""Signs of life from a client's process to its SuperNode, which passes them on to the server.

The SuperNode is a process of its own: it lives on where the one that trains is stopped, or does not get on. So the
latter touches a file in the SuperNode's folder, and the SuperNode looks whether it has.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FILE, _SECONDS = "pulse", 1.0


@contextmanager
def beating(home: Path) -> Iterator[None]:
    """Give signs of life to the SuperNode with this folder while the `with` block runs."""
    over, file = threading.Event(), home / _FILE
    file.touch()

    def beat() -> None:
        while not over.wait(_SECONDS):
            with suppress(OSError):
                os.utime(file)

    threading.Thread(target=beat, name="pulse", daemon=True).start()
    try:
        yield
    finally:
        over.set()


class Listening:
    """The SuperNode's end, in the folder `home`."""

    def __init__(self, home: Path) -> None:
        self._file, self._last = home / _FILE, 0

    def alive(self) -> bool:
        """Tell whether there was a sign of life since this was last asked; clocks that are set do not matter."""
        with suppress(OSError):
            last, self._last = self._last, self._file.stat().st_mtime_ns
            return last != self._last
        return False
