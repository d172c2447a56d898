"""What only informs is written as long as it can be: no run ends because nobody can read how it went."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from splitfed.files import reason

log = logging.getLogger("splitfed")


class SpareFile:
    """A file that a run can do without. Where it cannot be written, a warning says so, once, and nothing more is."""

    def __init__(self, path: Path, mode: str) -> None:
        self._path = path
        self._file: IO[Any] | None = None
        with self._trying():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Text a line at a time, so that what several write stands in the order in which they did.
            text: dict[str, Any] = {"buffering": 1, "encoding": "utf-8", "errors": "backslashreplace"}
            self._file = open(path, mode, **({} if "b" in mode else text))  # noqa: SIM115 - open as long as this is

    @contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.close()  # first: the warning may be on its way here
            log.warning("%s: cannot be written (%s); the run goes on without it", self._path, reason(error))

    def write(self, content: Any) -> int:
        """Write text or bytes, as the mode says."""
        if self._file is not None:
            with self._trying():
                self._file.write(content)
        return len(content)

    def isatty(self) -> bool:
        """Tell that this is no terminal."""
        return False

    def flush(self) -> None:
        """Hand what was written to the system."""
        if self._file is not None:
            with self._trying():
                self._file.flush()

    def close(self) -> None:
        """Close it; nothing follows."""
        file, self._file = self._file, None
        with suppress(OSError):
            if file is not None:
                file.close()


@contextmanager
def logged(folder: Path) -> Iterator[SpareFile]:
    """Yield a run's `log.txt`, and append to it what this package warns of, which the terminal shows too."""
    file = SpareFile(folder / "log.txt", "a")
    handlers = logging.StreamHandler(file), logging.StreamHandler()
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        log.addHandler(handler)
    try:
        yield file
    finally:
        for handler in handlers:
            log.removeHandler(handler)
        file.close()
