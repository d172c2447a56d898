"""The folders that `splitfed certs` makes, read and checked before anything listens or dials."""

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes

from splitfed.engines.deployment.tls_files import (
    AGAIN,
    RENEW,
    check_dates,
    hosts_of,
    issued,
    plain_host,
    read_authority,
    read_certificates,
    read_clients,
    read_json,
    read_pem_key,
    read_public,
    read_ssh_key,
    ssh_text,
)
from splitfed.engines.runtime import ServerTls
from splitfed.errors import TlsError

LOCAL = ("localhost", "127.0.0.1", "::1")  # in every certificate that 'splitfed certs' issues
ANYWHERE = ("0.0.0.0", "::")  # where to listen; nobody joins these


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """What `serve` needs: its certificate and key, the CA's certificate, each client's public key (OpenSSH text)."""

    tls: ServerTls
    ca: Path
    clients: dict[int, str]


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """What `join` needs: which client this is, the CA's certificate, and the client's key pair (OpenSSH files)."""

    client: int
    ca: Path
    key: Path
    public: Path


def read_server(folder: Path) -> ServerFiles:
    """Read the server's folder, or the folder around it, and check that its files are valid and fit each other.

    Paths in the result are absolute. Raises TlsError with the first thing that is wrong, and what to do about it.
    """
    _check_folder(folder)
    if (folder / "client.json").exists():
        raise TlsError(f"{folder}: is a client's folder; name the one that 'splitfed certs' made, or server/ in it")
    inner = folder / "server"
    server = inner if inner.is_dir() else folder
    ca, pem, key = server / "ca.crt", server / "server.pem", server / "server.key"
    authority, chain = read_authority(ca), read_certificates(pem)
    for certificate in chain:
        check_dates(pem, certificate, RENEW)
    for certificate, issuer in zip(chain, [*chain[1:], authority], strict=True):
        if not issued(certificate, issuer):
            raise TlsError(f"{pem}: was not signed by {ca}; {RENEW}")
    if not hosts_of(chain[0]):
        raise TlsError(f"{pem}: names no host (subjectAltName); {RENEW}")
    if read_pem_key(key).public_key() != chain[0].public_key():
        raise TlsError(f"{key}: does not belong to {pem}; {RENEW}")
    clients = read_clients(server / "clients.json")
    return ServerFiles(ServerTls(pem.resolve(), key.resolve()), ca.resolve(), clients)


def read_client(folder: Path) -> ClientFiles:
    """Read one client's folder, and check that its files are valid and fit each other.

    Paths in the result are absolute. Raises TlsError with the first thing that is wrong, and what to do about it.
    """
    _check_folder(folder)
    if (folder / "server").is_dir() or any(folder.glob("client-*")):
        raise TlsError(f"{folder}: holds everyone's files; name one client's folder, e.g. {folder / 'client-3'}")
    if (folder / "server.pem").exists():
        raise TlsError(f"{folder}: is the server's; name one client's folder, e.g. {folder.parent / 'client-3'}")
    about, ca, key, public = (folder / name for name in ("client.json", "ca.crt", "client.key", "client.pub"))
    client = read_json(about).get("client")
    if type(client) is not int or client < 0:
        raise TlsError(f"{about}: does not say which client this is; {AGAIN}")
    read_authority(ca)
    if ssh_text(read_ssh_key(key).public_key()) != read_public(public):
        raise TlsError(f"{key}: does not belong to {public}; {AGAIN}")
    return ClientFiles(client, ca.resolve(), key.resolve(), public.resolve())


def check_host(files: ServerFiles, host: str) -> None:
    """Raise TlsError if clients that join this host would refuse the server's certificate.

    An address that only says where to listen (0.0.0.0, ::) passes: it is not what clients join.
    """
    wanted = plain_host(host)
    named = hosts_of(read_certificates(files.tls.certificate)[0])
    if wanted in (*ANYWHERE, *named) or f"*.{wanted.partition('.')[2]}" in named:
        return
    others = [f"--host {name}" for name in named if name not in LOCAL]
    raise TlsError(
        f"{files.tls.certificate}: is for {', '.join(named)}, not for {host}; "
        f"issue one for it too with 'splitfed certs tls/ {' '.join([*others, f'--host {host}'])}' where the CA's key is"
    )


def fingerprint(ca: Path) -> str:
    """Return the SHA-256 of a certificate in the form of `openssl x509 -noout -fingerprint -sha256`."""
    return read_certificates(ca)[0].fingerprint(hashes.SHA256()).hex(":").upper()


def _check_folder(folder: Path) -> None:
    try:
        os.stat(f"{folder}/.")  # asks whether we may look inside, too
    except PermissionError as error:
        raise TlsError(
            f"{folder}: cannot be entered ({error.strerror}); see whose folder it is, and its mode"
        ) from error
    except OSError as error:
        raise TlsError(f"{folder}: {error.strerror}; name a folder that 'splitfed certs' made") from error
