"""The files by which a deployment's machines know each other: made once, added to later, no key ever replaced."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from splitfed.engines.deployment.issuing import (
    authority_certificate,
    client_keys,
    host_name,
    new_key,
    pem_key,
    server_certificate,
)
from splitfed.engines.deployment.tls import LOCAL, fingerprint, read_server
from splitfed.engines.deployment.tls_files import (
    FORMAT,
    hosts_of,
    read_authority,
    read_certificates,
    read_pem_key,
    read_public,
)
from splitfed.errors import TlsError
from splitfed.files import replace_with, sync


@dataclass(frozen=True, slots=True)
class Made:
    """What the folder holds now, and what of it is new: `issued`, the server's certificate; `added`, clients' keys."""

    folder: Path
    hosts: list[str]
    until: datetime
    fingerprint: str
    clients: list[int]
    issued: bool
    added: list[int]

    def text(self) -> str:
        """Say what there is and what to copy where."""
        new, old = "new", "as it was"
        lines = [
            f"server   for {', '.join(self.hosts)}; until {self.until:%Y-%m-%d} ({new if self.issued else old})",
            f"clients  {_numbers(self.clients)} ({f'new: {_numbers(self.added)}' if self.added else 'none is new'})",
            f"CA       SHA-256 {self.fingerprint}",
        ]
        if self.issued or self.added:
            lines.append(f"Copy {self.folder / 'server'} to the server's machine, for 'splitfed serve --tls'.")
        if self.added:
            one = self.folder / f"client-{self.added[0]}"
            lines.append(f"Copy each new client's folder, like {one}, to its machine alone, for 'splitfed join --tls'.")
        lines.append(f"Copy {self.folder / 'ca'} nowhere: with the key in it anyone can pose as the server.")
        return "\n".join(lines)


def make(
    folder: Path, hosts: Sequence[str] = (), clients: int | None = None, *, days: int = 825, renew: bool = False
) -> Made:
    """Make the CA, the server's certificate and the clients' keys, or what an existing folder lacks of them.

    `hosts` are the names and addresses by which clients reach the server. Where they differ from its certificate's, or
    with `renew`, it gets a new one for the same key, valid for `days`. Clients are numbered from 0 to `clients` - 1;
    those that are there stay. Raises TlsError.
    """
    names = list(dict.fromkeys([*map(host_name, hosts), *LOCAL])) if hosts else []
    server = folder / "server"
    try:
        if not server.exists() and not (names and clients):
            raise TlsError(
                f"{folder}: nothing was made there yet; say which host clients join and how many they are, "
                "e.g. --host gpu.example.org --clients 8"
            )
        with _alone(folder):
            if started := not server.exists():
                _start(folder, names, days)
            issued = started or _issue_again(folder, names, days, renew)
            files = read_server(server)
            known, added = _add_clients(folder, files.clients, clients or 0)
    except OSError as error:
        raise TlsError(f"{error.filename or folder}: cannot be made ({error.strerror})") from error
    certificate = read_certificates(files.tls.certificate)[0]
    until = certificate.not_valid_after_utc
    return Made(folder, hosts_of(certificate), until, fingerprint(files.ca), known, issued, added)


def _start(folder: Path, names: list[str], days: int) -> None:
    """Make the CA's folder, unless an interrupted call left it, and the server's."""
    if strays := sorted(folder.glob("client-*")):
        raise TlsError(f"{folder / 'server'}: is missing, while {strays[0].name} is there; put it back")
    if not (folder / "ca").exists():
        with _new_folder(folder / "ca") as ca:
            _write(ca / "ca.key", pem_key(new_key()), private=True)
    signer, key = read_pem_key(folder / "ca" / "ca.key"), new_key()
    authority = authority_certificate(signer)
    with _new_folder(folder / "server") as server:
        _write(server / "ca.crt", authority)
        _write(server / "server.key", pem_key(key), private=True)
        _write(server / "server.pem", server_certificate(names, days, key.public_key(), signer, authority))
        _list_clients(server / "clients.json", {})


def _issue_again(folder: Path, names: list[str], days: int, renew: bool) -> bool:
    """Issue the server's certificate if it is to be renewed or is for other hosts, and return whether it was."""
    server, signer_path = folder / "server", folder / "ca" / "ca.key"
    pem, ca = server / "server.pem", server / "ca.crt"
    authority = read_authority(ca)
    present = hosts_of(read_certificates(pem)[0])
    names = names or present
    if not renew and set(names) == set(present):
        return False
    if not signer_path.exists():
        raise TlsError(f"{signer_path}: is missing; put the CA's key back there to issue a certificate with it")
    signer, key = read_pem_key(signer_path), read_pem_key(server / "server.key")
    if signer.public_key() != authority.public_key():
        raise TlsError(f"{signer_path}: is not the key of {ca}; put the right one there, or name a new folder")
    with replace_with(pem) as scratch:
        _write(scratch, server_certificate(names, days, key.public_key(), signer, ca.read_bytes()))
    return True


def _add_clients(folder: Path, listed: dict[int, str], wanted: int) -> tuple[list[int], list[int]]:
    """Make keys for the clients that are neither listed nor there, list them all, and return all and the new ones.

    A listed client without a folder was moved to its machine, and a folder that is not listed yet was made by a call
    that was interrupted.
    """
    known = dict(listed)
    for client in range(wanted):
        path = folder / f"client-{client}"
        if not path.exists() and client not in known:
            private, public = client_keys(f"splitfed client-{client}")
            with _new_folder(path) as scratch:
                _write(scratch / "ca.crt", (folder / "server" / "ca.crt").read_bytes())
                _write(scratch / "client.key", private, private=True)
                _write(scratch / "client.pub", public)
                _write(scratch / "client.json", _json({"format": FORMAT, "client": client}))
        if path.exists():
            key = read_public(path / "client.pub")
            if known.setdefault(client, key) != key:
                raise TlsError(f"{path}: holds another key than server/clients.json lists; move the wrong one away")
    if known != listed:
        _list_clients(folder / "server" / "clients.json", known)
    return sorted(known), sorted(known.keys() - listed.keys())


def _list_clients(path: Path, clients: dict[int, str]) -> None:
    with replace_with(path) as scratch:
        _write(scratch, _json({"format": FORMAT, "clients": dict(sorted(clients.items()))}))


def _json(content: dict) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"


def _write(path: Path, data: bytes, *, private: bool = False) -> None:
    mode = 0o600 if private else 0o644
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill, open to its owner alone; it becomes `path` at the end of the block, or never existed."""
    scratch = path.with_name(f".{path.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    try:
        yield scratch
        sync(scratch)
        os.rename(scratch, path)
        sync(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other calls out of the folder until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _numbers(clients: Sequence[int]) -> str:
    """Write numbers as people do: 0 to 7, 12."""
    runs: list[list[int]] = []
    for client in clients:
        if runs and client == runs[-1][-1] + 1:
            runs[-1].append(client)
        else:
            runs.append([client])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
