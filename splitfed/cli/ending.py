"""How the command line ends: a mistake of the user's with its text, a reader that has left without a word."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import IO, Any

from splitfed.errors import SplitfedError
from splitfed.files import reason

# What a shell shows of a program that a broken pipe has ended.
_READER_LEFT = 128 + signal.SIGPIPE


@contextmanager
def ending(debug: Callable[[], bool]) -> Iterator[None]:
    """Let the program end as its users expect: code 2 for a mistake and for a file that cannot be read or written, with
    one line on stderr, or with a traceback where `debug` says so; 130 after Ctrl-C; and silently where nobody reads any
    more what it prints."""
    with redirect_stdout(_Piped(sys.stdout)), redirect_stderr(_Piped(sys.stderr)):
        try:
            try:
                yield
            finally:
                sys.stdout.flush()  # else the interpreter does, and complains
        except (SplitfedError, OSError) as error:
            if debug():
                raise
            print(_text(error), file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)


def _text(error: SplitfedError | OSError) -> str:
    if isinstance(error, SplitfedError):
        return str(error)
    return f"{error.filename}: {reason(error)}" if error.filename else reason(error)


class _Piped:
    """A stream to a reader who may leave: then the program ends, as `head` has all it wants."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text."""
        return self._or_end(self._stream.write, text)

    def flush(self) -> None:
        """Write what is held back."""
        self._or_end(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _or_end(self, do: Callable[..., Any], *given: str) -> Any:
        try:
            return do(*given)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is held back goes there, also when the interpreter ends
            os.close(nowhere)
            raise SystemExit(_READER_LEFT) from None
