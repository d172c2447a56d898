"""Keys and certificates as bytes: what OpenSSL, gRPC and Flower's SuperNodes accept, by the `cryptography` package."""

import ipaddress
import re
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from splitfed.engines.deployment.tls import ANYWHERE
from splitfed.engines.deployment.tls_files import plain_host, ssh_text
from splitfed.errors import TlsError

_CA_DAYS = 3650
_EARLIER = timedelta(hours=1)  # clocks differ between machines
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def host_name(host: str) -> str:
    """Return a DNS name or IP address in the form that certificates are compared in. Raises TlsError for others."""
    plain = plain_host(host)
    try:
        ipaddress.ip_address(plain)
    except ValueError:
        labels = plain.split(".")
        if len(plain) > 253 or labels[-1].isdigit() or not all(map(_LABEL.fullmatch, labels)):
            raise TlsError(
                f"--host {host}: is neither a host name nor an IP address; leave out https:// and the port"
            ) from None
    if plain in ANYWHERE:
        raise TlsError(f"--host {host}: is no address that clients can join; name the one that they use")
    return plain


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new private key for TLS."""
    return ec.generate_private_key(ec.SECP256R1())


def pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key in PEM form, without a password."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def client_keys(comment: str) -> tuple[bytes, bytes]:
    """Return a new private and public key as `ssh-keygen -t ecdsa -b 384` makes them: what SuperNodes prove to hold."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return private, f"{ssh_text(key.public_key())} {comment}\n".encode()


def authority_certificate(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the certificate (PEM) of a CA with this key, which signs it; the same key gives a CA of the same name."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = _name(f"splitfed CA {identifier.digest.hex()[:8]}")
    start = datetime.now(UTC) - _EARLIER
    return _signed(
        _builder(name, name, key.public_key(), start, start + timedelta(days=_CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(identifier, critical=False),
        key,
    )


def server_certificate(
    hosts: list[str], days: int, key: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePrivateKey, authority: bytes
) -> bytes:
    """Return a certificate (PEM) of a server with this key for these hosts, for so many days or as long as the CA's."""
    issuer = x509.load_pem_x509_certificate(authority)
    start = datetime.now(UTC) - _EARLIER
    end = min(start + _EARLIER + timedelta(days=days), issuer.not_valid_after_utc)
    of_issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return _signed(
        _builder(_name("splitfed server"), issuer.subject, key, start, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(of_issuer, critical=False),
        signer,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> bytes:
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(**granted: bool) -> x509.KeyUsage:
    every = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: granted.get(name, False) for name in every})
