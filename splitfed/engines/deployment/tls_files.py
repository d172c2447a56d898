"""One certificate, key or list of keys at a time, read with a plain word on what is wrong with it."""

import ipaddress
import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from splitfed.errors import TlsError

FORMAT = 1  # of client.json and clients.json
AGAIN = "copy it once more from where 'splitfed certs' made it"
RENEW = "issue a new one with 'splitfed certs tls/ --renew' where the CA's key is"


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Return the certificates in a PEM file, at least one. Raises TlsError."""
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise TlsError(f"{path}: is no certificate in PEM form; {AGAIN}") from error


def read_authority(path: Path) -> x509.Certificate:
    """Return a CA's certificate that is valid today. Raises TlsError."""
    certificate = read_certificates(path)[0]
    check_dates(path, certificate, "make new files with 'splitfed certs' in a new folder")
    try:
        able = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        able = False
    if not able:
        raise TlsError(f"{path}: is not a CA's certificate; {AGAIN}")
    return certificate


def check_dates(path: Path, certificate: x509.Certificate, remedy: str) -> None:
    """Raise TlsError, with what to do once it has expired, if a certificate is not valid now."""
    now, start, end = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        raise TlsError(f"{path}: expired on {end:%Y-%m-%d}; {remedy}")
    if now < start:
        raise TlsError(f"{path}: is not valid before {start:%Y-%m-%d %H:%M} UTC; check this machine's clock")


def issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether one certificate was signed with the key of the other."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """Return the DNS names and IP addresses that a certificate is for, as `plain_host` writes them."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    dns, addresses = names.get_values_for_type(x509.DNSName), names.get_values_for_type(x509.IPAddress)
    return [plain_host(str(host)) for host in (*dns, *addresses)]


def plain_host(host: str) -> str:
    """Return the one form of a host that is compared: addresses shortened, names in small letters."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.lower()


def read_pem_key(path: Path) -> Any:
    """Return a private key in PEM form that only its owner can read. Raises TlsError."""
    return _private(path, load_pem_private_key)


def read_ssh_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return a private key in OpenSSH form that only its owner can read. Raises TlsError."""
    key = _private(path, load_ssh_private_key)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TlsError(f"{path}: is no ECDSA key, which Flower asks for; {AGAIN}")
    return key


def read_public(path: Path) -> str:
    """Return the public key in a client's file as `ssh_text` writes it. Raises TlsError."""
    return _public(_read(path), str(path))


def ssh_text(key: ec.EllipticCurvePublicKey) -> str:
    """Return a public key as OpenSSH writes it, without a comment."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of one of our JSON files. Raises TlsError, also for another version's."""
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise TlsError(f"{path}: is not JSON; {AGAIN}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TlsError(f"{path}: is not of format {FORMAT}, which this version of splitfed reads; {AGAIN}")
    return content


def read_clients(path: Path) -> dict[int, str]:
    """Return each client's public key as `ssh_text` writes it, in the order of their numbers. Raises TlsError."""
    listed = read_json(path).get("clients")
    if not isinstance(listed, dict):
        raise TlsError(f"{path}: lists no clients; {AGAIN}")
    clients: dict[int, str] = {}
    owners: dict[str, int] = {}
    for number, text in listed.items():
        client = int(number) if number.isdecimal() and len(number) < 10 else -1
        if client < 0 or str(client) != number or not isinstance(text, str):
            raise TlsError(f"{path}: {number[:20]!r} is no client's number with a public key; {AGAIN}")
        clients[client] = key = _public(text.encode(errors="replace"), f"{path}: client {client}")
        if (owner := owners.setdefault(key, client)) != client:
            raise TlsError(f"{path}: clients {owner} and {client} have the same key; {AGAIN}")
    return dict(sorted(clients.items()))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise TlsError(f"{path}: is missing; {AGAIN}") from error
    except OSError as error:
        raise TlsError(f"{path}: cannot be read ({error.strerror}); see whose file it is, and its mode") from error


def _private(path: Path, load: Any) -> Any:
    data = _read(path)
    if mode := stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise TlsError(f"{path}: is a private key that others may open (mode {mode:o}); chmod 600 {path}")
    try:
        return load(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TlsError(f"{path}: is no private key without a password; {AGAIN}") from error


def _public(data: bytes, name: str) -> str:
    try:
        key = load_ssh_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TlsError(f"{name}: is no ECDSA public key in OpenSSH form; {AGAIN}")
    return ssh_text(key)
