"""Files that are either the old or the new ones, whenever the process dies or the disk is full."""

import os
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
    """Write a whole file, in place of an old one. What is no plain file, such as a pipe, is written to. Raises
    WriteError."""
    data = content.encode() if isinstance(content, str) else content
    with told(path):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_bytes(data)
            return
        with replace_with(path) as scratch:
            scratch.write_bytes(data)


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
