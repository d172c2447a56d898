"""Fronts that were fetched: kept in a folder by their SHA-256, checked each time that one is read."""

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from splitfed.errors import WireError
from splitfed.files import replace_with, told, write
from splitfed.inference.remote.bundle import name_of, patched
from splitfed.inference.remote.dialling import Dialler, closed
from splitfed.wire.answers import ADAPT_KEY, BASE_KEY, BYTES_KEY, CHUNK, FETCH, FRONT_KEY, KNOWN_KEY, path
from splitfed.wire.grpc_settings import MOST_BYTES

_KEPT = 2  # fronts of a server
_SLACK = 1 << 16
_FETCHING = 1800.0  # seconds for a front, also of a large model on a slow line


class Cache:
    """The fronts of one server, below a folder; the newest two stay."""

    def __init__(self, folder: Path, where: str) -> None:
        self.folder = folder / "fronts" / re.sub(r"[^\w.-]", "_", where)

    def path(self, name: str) -> Path:
        """Return the file of a front."""
        return self.folder / f"{name}.safetensors"

    def names(self) -> list[str]:
        """Return the fronts that are there and whole, the newest first; what is damaged is removed."""
        found = []
        with suppress(OSError):
            files = [file for file in self.folder.glob("*.safetensors") if re.fullmatch("[0-9a-f]{64}", file.stem)]
            for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
                if _sha256(file) == file.stem:
                    found.append(file.stem)
                else:
                    file.unlink()
        return found

    def use(self, name: str) -> Path:
        """Make a front the newest, let go of others, and return its file."""
        with suppress(OSError):  # what cannot be written can be read
            os.utime(self.path(name))
            for old in self.names()[_KEPT:]:
                self.path(old).unlink()
        return self.path(name)


@dataclass(frozen=True, slots=True)
class Fetched:
    """The file of the front that is served, and which norms the service adapts, `back` or `whole`; nothing where it
    adapts none."""

    file: Path
    adapts: str


def fetch(dialler: Dialler, cache: Cache, seconds: float, count: Callable[[str, str, int], None]) -> Fetched:
    """Ask which front is served, and fetch it unless it is here: its norms alone, where all else of it is. `count`
    hears direction, role and size of what came. Raises Unreached where nobody answers within `seconds` or the way there
    breaks, any other WireError where the server refuses or sends something else, and WriteError."""
    channel = dialler.channel(CHUNK + _SLACK)
    try:
        known = ",".join(cache.names())
        metadata = (*dialler.proof(channel, seconds), (KNOWN_KEY, known))
        call = channel.stream_stream(path(FETCH))(iter(()), metadata=metadata, timeout=_FETCHING)
        said = dialler.check_admitted(call)
        name, size = said.get(FRONT_KEY, ""), said.get(BYTES_KEY, "")
        if not re.fullmatch("[0-9a-f]{64}", name) or not re.fullmatch("[0-9]{1,12}", size) or int(size) > MOST_BYTES:
            raise WireError(f"{dialler.where} does not say what its clients need")
        adapts, base = said.get(ADAPT_KEY, ""), said.get(BASE_KEY, "")
        if base and (base not in known.split(",") or int(size) > cache.path(base).stat().st_size):
            raise WireError(f"{dialler.where} does not say what its clients need")
        if name not in known.split(","):
            if base:
                _renew(call, cache.path(base), cache.path(name), name, int(size), dialler.where, count)
            else:
                _store(call, cache.path(name), name, int(size), dialler.where, count)
        return Fetched(cache.use(name), adapts)
    except grpc.RpcError as error:
        raise dialler.meaning(error) from None
    finally:
        closed(channel)


def _renew(
    call, base: Path, file: Path, name: str, size: int, where: str, count: Callable[[str, str, int], None]
) -> None:  # fmt: skip
    """Write a front that is `base` with other norms."""
    norms = bytearray()
    for chunk in call:
        norms += chunk
        count("down", "norms", len(chunk))
        if len(norms) > size:
            break
    try:
        made = patched(base.read_bytes(), bytes(norms))
    except ValueError as error:
        raise WireError(f"what {where} sends is not what it says: {error}") from None
    if len(norms) != size or name_of(made) != name:
        raise WireError(f"what {where} sends is not what it says: its front has another SHA-256")
    write(file, made)


def _store(
    call, file: Path, name: str, size: int, where: str, count: Callable[[str, str, int], None]
) -> None:  # fmt: skip
    with told(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        digest, length = hashlib.sha256(), 0
        with replace_with(file) as scratch:
            with open(scratch, "wb") as out:
                for chunk in call:
                    length += len(chunk)
                    count("down", "front", len(chunk))
                    if length > size:
                        break
                    digest.update(chunk)
                    out.write(chunk)
            if length != size or digest.hexdigest() != name:
                raise WireError(f"what {where} sends is not what it says: its front has another SHA-256")


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
