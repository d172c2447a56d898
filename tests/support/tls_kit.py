"""Certificates of any kind, and the handshake that decides whether a client believes them."""

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

DAY = timedelta(days=1)


def handshake(server: Path, ca: Path, host: str) -> None:
    """Let Python's ssl connect to a server that has the files of a folder. Raises ssl.SSLError where it refuses."""
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(server / "server.pem", server / "server.key")
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.load_verify_locations(ca)
    ours.verify_flags |= ssl.VERIFY_X509_STRICT
    assert ours.check_hostname
    assert ours.verify_mode == ssl.CERT_REQUIRED
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = ours.wrap_bio(down, up, server_hostname=host), theirs.wrap_bio(up, down, server_side=True)
    done: set[int] = set()
    for _ in range(10):
        for number, end in enumerate(ends):
            try:
                end.do_handshake()
                done.add(number)
            except ssl.SSLWantReadError:
                pass
    assert done == {0, 1}
    ends[0].write(b"x")
    assert ends[1].read() == b"x"


def refused(server: Path, ca: Path, host: str) -> bool:
    """Return whether a client refuses the server."""
    try:
        handshake(server, ca, host)
    except ssl.SSLError:
        return True
    return False


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def forge(
    issuer: Path, signer: ec.EllipticCurvePrivateKey, key: ec.EllipticCurvePublicKey,
    *hosts: str, start: timedelta = -DAY, end: timedelta = DAY, ca: bool = False, name: str = "a server",
) -> bytes:  # fmt: skip
    """Return a certificate of any validity, for any hosts, that says it is of this issuer and is signed by this key."""
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.load_pem_x509_certificate(issuer.read_bytes()).subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if hosts:
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if ca:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)
