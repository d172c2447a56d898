"""Files that are either the old or the new ones, whenever the process dies or the disk is full."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from splitfed.errors import SplitfedError, WriteError


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


def reason(error: BaseException) -> str:
    """Return why the system refused something, in its words: a line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what the system says against writing a file, in the block, into a WriteError that names it."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WriteError(f"{path}: cannot be written ({reason(error)})") from error


@contextmanager
def replace_with(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `path` at the end of the block, on disk and at once. Nothing is left of it
    where that fails."""
    scratch = path.with_name(f".{path.name}.new")
    try:
        yield scratch
        sync(scratch)
        os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink()
        raise
    sync(path.parent)


def write(path: Path, content: str | bytes) -> None:
    """Write a whole file, in place of an old one, whose mode it keeps; a link stays one, and what it leads to is
    written. What is no plain file, such as a pipe, is written to, and so is what a program's own `/dev/stdout` leads
    to. Bytes of a name that are no text go back to what they were. Raises WriteError."""
    data = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    with told(path):
        real = Path(os.path.realpath(path))
        if path.absolute().parts[1:2] in (("dev",), ("proc",)) or (real.exists() and not real.is_file()):
            path.write_bytes(data)
            return
        with replace_with(real) as scratch:
            scratch.write_bytes(data)
            if real.exists():
                shutil.copymode(real, scratch)


def append(path: Path, content: str) -> None:
    """Add text to a file, on disk when this returns; all of it, or none. Raises WriteError."""
    with told(path), open(path, "ab", buffering=0) as file:
        add(file, content)
        os.fsync(file.fileno())


def add(file: FileIO, content: str) -> None:
    """Add text to a file that is open without a buffer; all of it, or none. Raises OSError."""
    end, left = file.seek(0, os.SEEK_END), memoryview(content.encode())
    try:
        while left:  # a disk that is nearly full takes a part, and refuses the rest
            left = left[file.write(left) :]
    except OSError:
        file.truncate(end)
        raise
