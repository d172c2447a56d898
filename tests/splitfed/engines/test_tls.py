"""Folders of certificates and keys as they are read: what clients would refuse is refused first, in one line."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509 import SubjectKeyIdentifier
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tls_kit import DAY, forge, handshake, private_key, refused

from splitfed.engines.deployment.certificates import make
from splitfed.engines.deployment.tls import check_host, fingerprint, read_client, read_server
from splitfed.engines.deployment.tls_files import read_clients
from splitfed.engines.runtime import ServerTls
from splitfed.errors import TlsError

HOST = "gpu.example.org"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls") / "tls"
    make(folder, [HOST, "10.1.2.3", "2001:db8::7"], 4)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of another deployment, for the same host."""
    folder = tmp_path_factory.mktemp("tls") / "other"
    make(folder, [HOST], 4)
    return folder


@pytest.fixture
def tls(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "tls"))


def problem(read: Callable[[Path], object], folder: Path) -> str:
    """Return the one line with which a folder is refused."""
    with pytest.raises(TlsError) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def certify(tls: Path, *hosts: str, **options: timedelta) -> None:
    """Give the server another certificate by the same CA for the same key."""
    key = private_key(tls / "server" / "server.key").public_key()
    pem = forge(tls / "server" / "ca.crt", private_key(tls / "ca" / "ca.key"), key, *hosts, **options)
    (tls / "server" / "server.pem").write_bytes(pem)


def certify_ca(tls: Path, **options: timedelta) -> None:
    """Give the CA another certificate for the same key and name, in all folders."""
    key, old = private_key(tls / "ca" / "ca.key"), tls / "server" / "ca.crt"
    name = f"splitfed CA {private_ski(key)}"
    pem = forge(old, key, key.public_key(), ca=True, name=name, **options)
    for path in tls.rglob("ca.crt"):
        path.write_bytes(pem)


def private_ski(key: ec.EllipticCurvePrivateKey) -> str:
    return SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:8]


@pytest.mark.parametrize("inner", ["", "server"])
def test_the_servers_files_by_either_folder(
    pristine: Path, inner: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(pristine.parent)
    files = read_server(Path("tls") / inner)
    monkeypatch.chdir(tmp_path)
    server = pristine.resolve() / "server"
    assert files.tls == ServerTls(server / "server.pem", server / "server.key")
    assert files.ca == server / "ca.crt"
    assert files.tls.certificate.is_absolute()
    assert list(files.clients) == [0, 1, 2, 3]
    for client, text in files.clients.items():
        assert text == " ".join((pristine / f"client-{client}" / "client.pub").read_text().split()[:2])


@pytest.mark.parametrize("client", [0, 3])
def test_a_clients_files_wherever_they_were_copied(pristine: Path, tmp_path: Path, client: int) -> None:
    here = Path(shutil.copytree(pristine / f"client-{client}", tmp_path / "anything")).resolve()
    files = read_client(tmp_path / "anything")
    assert files.client == client
    assert (files.ca, files.key, files.public) == (here / "ca.crt", here / "client.key", here / "client.pub")
    assert fingerprint(files.ca) == fingerprint(read_server(pristine).ca)


def test_the_server_reads_its_own_folder_alone(pristine: Path, tmp_path: Path) -> None:
    shutil.copytree(pristine / "server", tmp_path / "server")
    assert list(read_server(tmp_path / "server").clients) == [0, 1, 2, 3]
    handshake(tmp_path / "server", pristine / "client-0" / "ca.crt", HOST)


@pytest.mark.parametrize(
    ("file", "read"),
    [(f"server/{name}", read_server) for name in ("ca.crt", "server.pem", "server.key", "clients.json")]
    + [(f"client-3/{name}", read_client) for name in ("ca.crt", "client.key", "client.pub", "client.json")],
)  # fmt: skip
@pytest.mark.parametrize("wrong", ["missing", "empty", "noise", "folder"])
def test_every_file_that_is_missing_or_broken_is_named(
    tls: Path, file: str, read: Callable[[Path], object], wrong: str
) -> None:
    path = tls / file
    data = path.read_bytes()
    path.unlink()
    if wrong == "folder":
        path.mkdir()
    elif wrong != "missing":
        path.touch(mode=0o600)
        path.write_bytes(b"" if wrong == "empty" else data[:40] + b"\xff\x00" * 99)
    said = problem(read, path.parent)
    assert said.startswith(f"{path}: ")
    if wrong == "missing":
        assert ": is missing; copy it once more from where 'splitfed certs' made it" in said


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for read in (read_server, read_client):
        assert "absent: No such file or directory; name a folder that" in problem(read, tmp_path / "absent")
        assert "file: Not a directory; name a folder that" in problem(read, tmp_path / "file")


def test_another_ones_folder(pristine: Path) -> None:
    example = f"name one client's folder, e.g. {pristine / 'client-3'}"
    assert problem(read_client, pristine) == f"{pristine}: holds everyone's files; {example}"
    assert problem(read_client, pristine / "server") == f"{pristine / 'server'}: is the server's; {example}"
    assert "client-0: is a client's folder" in problem(read_server, pristine / "client-0")


def test_everyones_files_of_which_some_were_moved_away(tls: Path) -> None:
    shutil.move(tls / "server", tls.parent / "server")
    assert "holds everyone's files; name one client's folder" in problem(read_client, tls)
    shutil.move(tls.parent / "server", tls / "server")
    for folder in tls.glob("client-*"):
        shutil.rmtree(folder)
    assert "holds everyone's files; name one client's folder" in problem(read_client, tls)


# Each with what is said of server.pem. A client refuses the server for all of them.
BAD_SERVERS: dict[str, tuple[Change, str]] = {
    "expired": (
        lambda tls: certify(tls, HOST, start=-2 * DAY, end=-DAY),
        r"server\.pem: expired on 20\d\d-\d\d-\d\d; issue a new one with 'splitfed certs tls/ --renew'",
    ),
    "not valid yet": (
        lambda tls: certify(tls, HOST, start=DAY, end=2 * DAY),
        r"server\.pem: is not valid before 20.* UTC; check this machine's clock",
    ),
    "of another CA": (
        lambda tls: [shutil.copy(p, tls / "server") for p in (tls.parent / "other" / "server").glob("server.*")],
        r"server\.pem: was not signed by .*ca\.crt; issue a new one",
    ),
    "by an impostor": (
        lambda tls: (tls / "server" / "server.pem").write_bytes(
            forge(
                tls / "server" / "ca.crt",
                ec.generate_private_key(ec.SECP256R1()),
                private_key(tls / "server" / "server.key").public_key(),
                HOST,
            )
        ),
        r"server\.pem: was not signed by .*ca\.crt; issue a new one",
    ),
    "for no host": (certify, r"server\.pem: names no host \(subjectAltName\)"),
    "CA expired": (
        lambda tls: certify_ca(tls, start=-2 * DAY, end=-DAY),
        r"ca\.crt: expired on .*; make new files with 'splitfed certs' in a new folder",
    ),
    "CA not valid yet": (lambda tls: certify_ca(tls, start=DAY, end=2 * DAY), r"ca\.crt: is not valid before"),
    "no CA": (
        lambda tls: [
            shutil.copy(tls / "server" / "server.pem", path) for path in list(tls.rglob("ca.crt"))
        ],
        r"ca\.crt: is not a CA's certificate",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SERVERS)
def test_a_server_that_clients_would_refuse(tls: Path, other: Path, name: str) -> None:
    change, expected = BAD_SERVERS[name]
    shutil.copytree(other, tls.parent / "other")
    ca = tls / "client-0" / "ca.crt"
    handshake(tls / "server", ca, HOST)
    read_server(tls)
    change(tls)
    with pytest.raises(TlsError, match=expected):
        read_server(tls)
    if name != "no CA":  # OpenSSL trusts whatever it is told to
        assert refused(tls / "server", ca, HOST)
    problem(read_server, tls)
    if name.startswith(("CA", "no CA")):
        assert problem(read_client, tls / "client-0").startswith(f"{ca}: ")


def test_what_was_expired_is_well_again_once_renewed(tls: Path) -> None:
    certify(tls, HOST, start=-2 * DAY, end=-DAY)
    assert "expired" in problem(read_server, tls)
    assert "expired" in problem(lambda folder: make(folder, clients=4), tls)
    make(tls, renew=True)
    check_host(read_server(tls), HOST)
    handshake(tls / "server", tls / "client-0" / "ca.crt", HOST)


def test_a_server_key_that_does_not_belong(tls: Path, other: Path) -> None:
    shutil.copy(other / "server" / "server.key", tls / "server" / "server.key")
    assert f"server.key: does not belong to {tls / 'server' / 'server.pem'}; " in problem(read_server, tls)
    assert refused(tls / "server", tls / "client-0" / "ca.crt", HOST)
    make(tls, renew=True)
    handshake(tls / "server", tls / "client-0" / "ca.crt", HOST)


def test_a_chain_of_ones_own(tls: Path) -> None:
    """A certificate that an organisation's CA signed through another is as good, with that other one in the file."""
    between = ec.generate_private_key(ec.SECP256R1())
    root, signer = tls / "server" / "ca.crt", private_key(tls / "ca" / "ca.key")
    middle = forge(root, signer, between.public_key(), ca=True, name="between")
    (tls / "middle.crt").write_bytes(middle)
    key = private_key(tls / "server" / "server.key").public_key()
    leaf = forge(tls / "middle.crt", between, key, HOST)
    pem = tls / "server" / "server.pem"
    pem.write_bytes(leaf)
    assert "was not signed by" in problem(read_server, tls)
    assert refused(tls / "server", root, HOST)
    pem.write_bytes(leaf + middle)
    read_server(tls)


def test_keys_that_others_may_open_are_refused(tls: Path) -> None:
    for read, key in ((read_server, tls / "server" / "server.key"), (read_client, tls / "client-3" / "client.key")):
        for mode in (0o640, 0o604, 0o644, 0o660, 0o666, 0o602, 0o777):
            key.chmod(mode)
            said = problem(read, key.parent)
            assert said.startswith(f"{key}: is a private key that others may open")
            assert said.endswith(f"; chmod 600 {key}")
        for mode in (0o600, 0o400):
            key.chmod(mode)
            read(key.parent)


def test_a_cas_key_that_others_may_open_signs_nothing(tls: Path) -> None:
    (tls / "ca" / "ca.key").chmod(0o644)
    assert "ca.key: is a private key that others may open" in problem(lambda tls: make(tls, renew=True), tls)


def test_a_clients_key_that_is_not_its_own(tls: Path) -> None:
    shutil.copy(tls / "client-2" / "client.key", tls / "client-3" / "client.key")
    here = tls / "client-3"
    assert f"client.key: does not belong to {here / 'client.pub'}; copy it once more" in problem(read_client, here)


def test_a_clients_key_of_another_kind(tls: Path) -> None:
    here = tls / "client-3"
    key = ed25519.Ed25519PrivateKey.generate()
    (here / "client.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    assert "client.key: is no ECDSA key" in problem(read_client, here)
    shutil.copy(tls / "client-2" / "client.key", here / "client.key")
    (here / "client.pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    assert "client.pub: is no ECDSA public key" in problem(read_client, here)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_a_clients_key_with_a_password(tls: Path) -> None:
    key = tls / "client-3" / "client.key"
    command = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(key)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    assert "client.key: is no private key without a password" in problem(read_client, key.parent)


@pytest.mark.parametrize("number", [-1, "3", True, 1.0, None])
def test_a_client_without_a_number(tls: Path, number: object) -> None:
    edit(tls / "client-3" / "client.json", client=number)
    assert "client.json: does not say which client this is" in problem(read_client, tls / "client-3")


def test_lists_of_another_version(tls: Path) -> None:
    for read, path in ((read_server, tls / "server" / "clients.json"), (read_client, tls / "client-3" / "client.json")):
        edit(path, format=2)
        assert f"{path}: is not of format 1" in problem(read, path.parent)
        path.write_text("[1]")
        assert f"{path}: is not of format 1" in problem(read, path.parent)


def test_two_clients_with_one_key(tls: Path) -> None:
    path = tls / "server" / "clients.json"
    clients = json.loads(path.read_text())["clients"]
    edit(path, clients=clients | {"4": f"{clients['1']} with a comment"})
    assert "clients.json: clients 1 and 4 have the same key" in problem(read_server, tls)


@pytest.mark.parametrize("number", ["-1", "01", "+1", "1.0", "", "one", "\u0663", "9" * 30, " 1"])
def test_clients_without_a_number_in_the_list(tls: Path, number: str) -> None:
    path = tls / "server" / "clients.json"
    edit(path, clients={number: json.loads(path.read_text())["clients"]["0"]})
    assert "is no client's number with a public key" in problem(read_server, tls)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("0"), inner, max_size=3),
)
FILES = (
    st.binary().filter(lambda data: data.strip() != b"")
    | JSON.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda value: json.dumps({"format": 1, "clients": value}).encode())
    | st.text(st.characters()).map(lambda text: json.dumps({"format": 1, "clients": {"0": text}}).encode())
)


@settings(max_examples=150, deadline=None)
@given(FILES)
@example(b'{"format": 1, "clients": {"0": "\\ud800"}}')
@example(b"[" * 100_000)
def test_no_list_of_clients_ends_in_another_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clients.json")
        path.write_bytes(data)
        said = f"{path}: "
        try:
            assert read_clients(path) == {}
        except TlsError as error:
            said = str(error)
        assert said.startswith(f"{path}: ")


HOSTS = (
    HOST, HOST.upper(), "10.1.2.3", "2001:db8::7", "2001:0DB8::0007", "localhost", "127.0.0.1", "::1", "127.0.0.2",
    "example.org", "a.example.org", "a.b.example.org", "gpu.example.com", "10.1.2.4", "2001:db8::8", "host",
    "x.wild.org", "x.y.wild.org", "wild.org",
)  # fmt: skip


@pytest.mark.parametrize(
    "names", [(HOST,), ("10.1.2.3", "2001:db8::7"), ("*.wild.org", "localhost", "GPU.example.ORG")]
)
def test_a_host_passes_exactly_where_clients_believe_it(tls: Path, names: tuple[str, ...]) -> None:
    certify(tls, *names)
    files = read_server(tls)
    believed = 0
    for host in HOSTS:
        if refused(tls / "server", files.ca, host):
            said = problem(lambda _, host=host: check_host(files, host), tls)
            assert said.startswith(f"{files.tls.certificate}: is for ")
            assert f", not for {host}; " in said
        else:
            check_host(files, host)
            believed += 1
    assert 2 <= believed <= 5


def test_the_way_out_keeps_the_other_hosts(pristine: Path) -> None:
    said = problem(lambda folder: check_host(read_server(folder), "new.example.org"), pristine)
    assert f"--host {HOST} --host 10.1.2.3 --host 2001:db8::7 --host new.example.org' where" in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_listening_anywhere_is_no_host_to_check(pristine: Path, host: str) -> None:
    check_host(read_server(pristine), host)


def test_what_may_not_be_read(pristine: Path) -> None:
    """Root may read everything, so it steps down for a moment."""
    user = os.geteuid()
    nobody = user or 65534
    with tempfile.TemporaryDirectory() as top:  # pytest's own folders are closed to others
        tls = Path(shutil.copytree(pristine, Path(top, "tls")))
        for path in (Path(top), tls, *tls.rglob("*")) if user == 0 else ():
            os.chown(path, nobody, -1)
        key = tls / "client-3" / "client.key"
        key.chmod(0)
        (tls / "server").chmod(0)
        os.seteuid(nobody)
        try:
            assert problem(read_client, key.parent).startswith(f"{key}: cannot be read (Permission denied); see")
            assert "server: cannot be entered (Permission denied); see" in problem(read_server, tls / "server")
            assert "ca.crt: cannot be read (Permission denied); see" in problem(read_server, tls)
            for folder in (tls, tls / "server" / "tls"):
                assert "(Permission denied)" in problem(lambda folder: make(folder, [HOST], 9), folder)
        finally:
            os.seteuid(user)
            (tls / "server").chmod(0o700)
