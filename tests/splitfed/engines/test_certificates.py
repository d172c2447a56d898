"""What `splitfed certs` makes: files that OpenSSL, gRPC, OpenSSH and Flower accept, and later calls only add to."""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.x509 import verification
from hypothesis import given, settings
from hypothesis import strategies as st
from tls_kit import handshake, private_key, refused

from splitfed.cli import main as cli
from splitfed.engines.deployment.certificates import make
from splitfed.engines.deployment.issuing import host_name
from splitfed.engines.deployment.tls import LOCAL, fingerprint, read_client, read_server
from splitfed.errors import TlsError

HOSTS = ("gpu.example.org", "10.1.2.3", "2001:db8::7")
CLIENT = {"ca.crt": 0o644, "client.json": 0o644, "client.key": 0o600, "client.pub": 0o644}
SERVER = {"ca.crt": 0o644, "clients.json": 0o644, "server.key": 0o600, "server.pem": 0o644}
CA = {"ca.key": 0o600}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates") / "tls"
    make(folder, HOSTS, 3)
    return folder


@pytest.fixture
def tls(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "tls"))


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_layout_and_who_may_read_it(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make(tmp_path / "tls", ["gpu.example.org"], 2)
    finally:
        os.umask(before)
    folders = {path.name: modes(path) for path in (tmp_path / "tls").iterdir()}
    hidden = {name: {file: mode & ~umask for file, mode in files.items()} for name, files in folders.items()}
    expected = {"ca": CA, "server": SERVER, "client-0": CLIENT, "client-1": CLIENT}
    assert hidden == {name: {file: mode & ~umask for file, mode in files.items()} for name, files in expected.items()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "tls").iterdir()} == {0o700}
    keys = list((tmp_path / "tls").rglob("*.key"))
    assert len(keys) == 4
    assert all(stat.S_IMODE(key.stat().st_mode) == 0o600 for key in keys)


@pytest.mark.parametrize("host", [*HOSTS, *LOCAL])
def test_a_client_believes_the_server_at_every_host(pristine: Path, host: str) -> None:
    handshake(pristine / "server", pristine / "client-1" / "ca.crt", host)


@pytest.mark.parametrize("host", ["example.org", "gpu.example.com", "10.1.2.4", "2001:db8::8"])
def test_a_client_refuses_the_server_at_another_host(pristine: Path, host: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        handshake(pristine / "server", pristine / "client-1" / "ca.crt", host)


def test_the_certificate_passes_the_rules_of_the_web(pristine: Path) -> None:
    authority, server = (certificate(pristine / "server" / name) for name in ("ca.crt", "server.pem"))
    store = verification.Store([authority])
    verifier = verification.PolicyBuilder().store(store).build_server_verifier(x509.DNSName("gpu.example.org"))
    assert verifier.verify(server, []) == [server, authority]
    usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.SERVER_AUTH]
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).critical
    assert authority.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_grpc_accepts_the_files_and_checks_the_host(pristine: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    echo = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Echo": echo}),))
    key, pem = ((pristine / "server" / name).read_bytes() for name in ("server.key", "server.pem"))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, pem)]))
    server.start()
    trusted = grpc.ssl_channel_credentials((pristine / "client-0" / "ca.crt").read_bytes())
    try:
        for name, believed in (("gpu.example.org", True), ("127.0.0.1", True), ("other.example.org", False)):
            options = [("grpc.ssl_target_name_override", name)]
            with grpc.secure_channel(f"127.0.0.1:{port}", trusted, options) as channel:
                if believed:
                    assert channel.unary_unary("/test/Echo")(b"hello", timeout=60) == b"hello"
                else:
                    with pytest.raises(grpc.RpcError, match="verif"):
                        channel.unary_unary("/test/Echo")(b"hello", timeout=60)
    finally:
        server.stop(None).wait()


def test_flower_loads_the_clients_keys(pristine: Path) -> None:
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication  # public: a whole node

    registered = set()
    for client, text in read_server(pristine).clients.items():
        files = read_client(pristine / f"client-{client}")
        pair = _try_setup_client_authentication(
            argparse.Namespace(auth_supernode_private_key=str(files.key), auth_supernode_public_key=None)
        )
        assert pair is not None
        assert public_key_to_bytes(pair[1]) == try_load_public_key(files.public)
        assert files.public.read_text().startswith(f"{text} ")
        registered.add(try_load_public_key(files.public))
    assert len(registered) == 3


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_ssh_keygen_reads_the_clients_keys_like_its_own(pristine: Path, tmp_path: Path) -> None:
    def ssh_keygen(*arguments: object) -> str:
        command = ["ssh-keygen", *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout

    private, public = (pristine / "client-2" / name for name in ("client.key", "client.pub"))
    size, _, *described = ssh_keygen("-l", "-f", public).split()
    assert (size, described) == ("384", ["splitfed", "client-2", "(ECDSA)"])
    assert ssh_keygen("-y", "-f", private).split()[:2] == public.read_text().split()[:2]
    ssh_keygen("-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", tmp_path / "own")
    assert (tmp_path / "own").read_text().splitlines()[0] == private.read_text().splitlines()[0]
    assert (tmp_path / "own.pub").read_text().split()[0] == public.read_text().split()[0]


def test_every_key_is_another(pristine: Path) -> None:
    keys = [path.read_bytes() for path in pristine.rglob("*.key")]
    assert len(set(keys)) == len(keys) == 5


def test_the_key_of_the_ca_is_nowhere_but_in_its_folder(pristine: Path) -> None:
    secret = (pristine / "ca" / "ca.key").read_bytes()
    assert [name for name, data in contents(pristine).items() if secret in data] == ["ca/ca.key"]


def test_more_clients_are_added_and_nothing_else_changes(tls: Path) -> None:
    before = contents(tls)
    made = make(tls, HOSTS, 5)
    after = contents(tls)
    assert (made.issued, made.added, made.clients) == (False, [3, 4], [0, 1, 2, 3, 4])
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"server/clients.json"}
    assert set(after) - set(before) == {f"client-{client}/{name}" for client in (3, 4) for name in CLIENT}
    assert list(read_server(tls).clients) == [0, 1, 2, 3, 4]
    assert read_client(tls / "client-4").client == 4


def test_the_same_call_again_changes_nothing(tls: Path) -> None:
    before = contents(tls)
    made = make(tls, [host.upper() for host in reversed(HOSTS)], 3)
    assert (made.issued, made.added) == (False, [])
    assert contents(tls) == before


def test_fewer_clients_remove_nothing(tls: Path) -> None:
    before = contents(tls)
    assert make(tls, clients=1).clients == [0, 1, 2]
    assert contents(tls) == before


def test_a_client_that_was_moved_away_keeps_its_key(tls: Path) -> None:
    listed = read_server(tls).clients
    shutil.rmtree(tls / "client-0")
    shutil.rmtree(tls / "client-2")
    made = make(tls, clients=4)
    assert made.added == [3]
    assert not (tls / "client-0").exists()
    assert {client: read_server(tls).clients[client] for client in range(3)} == listed


def test_a_folder_with_another_key_than_the_list_is_refused(tls: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", HOSTS, 1)
    shutil.rmtree(tls / "client-0")
    shutil.copytree(tmp_path / "other" / "client-0", tls / "client-0")
    with pytest.raises(TlsError, match=r"client-0: holds another key than server/clients\.json"):
        make(tls, clients=3)


def test_renewal_makes_a_new_certificate_of_the_same_key_and_ca(tls: Path) -> None:
    before, old = contents(tls), certificate(tls / "server" / "server.pem")
    made = make(tls, renew=True, days=30)
    new = certificate(tls / "server" / "server.pem")
    assert made.issued
    assert {name for name, data in contents(tls).items() if before[name] != data} == {"server/server.pem"}
    assert new.serial_number != old.serial_number
    assert new.public_key() == old.public_key()
    assert abs(new.not_valid_after_utc - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=5)
    for host in (*HOSTS, *LOCAL):
        handshake(tls / "server", tls / "client-0" / "ca.crt", host)


def test_another_host_replaces_those_of_the_certificate(tls: Path) -> None:
    ca = tls / "client-0" / "ca.crt"
    assert make(tls, ["new.example.org"]).issued
    handshake(tls / "server", ca, "new.example.org")
    handshake(tls / "server", ca, "localhost")
    assert refused(tls / "server", ca, "gpu.example.org")


def test_without_the_key_of_the_ca_clients_are_added_but_nothing_is_issued(tls: Path, tmp_path: Path) -> None:
    shutil.move(tls / "ca", tmp_path / "vault")
    assert make(tls, HOSTS, 4).added == [3]
    before = contents(tls)
    for change in ({"renew": True}, {"hosts": ["new.example.org"]}):
        with pytest.raises(TlsError, match=r"ca/ca\.key: is missing; put the CA's key back there") as caught:
            make(tls, **change)
        assert "\n" not in str(caught.value)
    assert contents(tls) == before


def test_another_cas_key_is_refused(tls: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", HOSTS, 1)
    shutil.copy(tmp_path / "other" / "ca" / "ca.key", tls / "ca" / "ca.key")
    with pytest.raises(TlsError, match=r"ca\.key: is not the key of .*ca\.crt"):
        make(tls, renew=True)


def test_clients_without_the_servers_folder_get_no_second_ca(tls: Path) -> None:
    shutil.rmtree(tls / "server")
    before = contents(tls)
    with pytest.raises(TlsError, match="server: is missing, while client-0 is there"):
        make(tls, HOSTS, 3)
    assert contents(tls) == before


def test_a_server_certificate_never_outlives_its_ca(tmp_path: Path) -> None:
    make(tmp_path / "tls", HOSTS, 1, days=3650)
    make(tmp_path / "tls", renew=True, days=36_500)
    server, ca = (certificate(tmp_path / "tls" / "server" / name) for name in ("server.pem", "ca.crt"))
    assert server.not_valid_after_utc == ca.not_valid_after_utc
    handshake(tmp_path / "tls" / "server", tmp_path / "tls" / "server" / "ca.crt", "localhost")


class Killed(BaseException):
    """Stands for a process that ends at once."""


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int, call: Callable[[], object]) -> bool:
    """Make a call that dies in its `at`-th write to disk, which is lost, and cleans nothing up; return if it did."""
    count = 0
    fsync = os.fsync

    def dies(handle: int) -> None:
        nonlocal count
        count += 1
        if count > at:
            if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_WRONLY:
                os.ftruncate(handle, 0)
            raise Killed
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", dies)
        patch.setattr("splitfed.engines.deployment.certificates.shutil.rmtree", lambda path, ignore_errors: None)
        try:
            call()
        except Killed:
            return True
    return False


def test_an_interruption_anywhere_leaves_no_half_file_and_the_next_call_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = {"ca": CA, "server": SERVER, "client-0": CLIENT, "client-1": CLIENT}
    for at in range(100):
        tls = tmp_path / str(at)
        ended = not interrupted(monkeypatch, at, lambda tls=tls: make(tls, HOSTS, 2))
        there = [path for path in tls.iterdir() if not path.name.startswith(".")]
        for path in there:
            assert whole[path.name].keys() <= modes(path).keys()
            if path.name == "server":
                read_server(path)
            if path.name.startswith("client"):
                read_client(path)
        keys = {name: data for name, data in contents(tls).items() if "/." not in f"/{name}" and name.endswith(".key")}
        make(tls, HOSTS, 2)
        assert keys.items() <= contents(tls).items()
        assert list(read_server(tls).clients) == [0, 1]
        assert {path.name for path in tls.iterdir()} == whole.keys()
        handshake(tls / "server", tls / "client-1" / "ca.crt", "gpu.example.org")
        if ended:
            break
    assert 15 < at < 99


def test_an_interrupted_renewal_leaves_the_old_certificate_or_the_new_one(
    monkeypatch: pytest.MonkeyPatch, tls: Path
) -> None:
    for at in range(10):
        ended = not interrupted(monkeypatch, at, lambda: make(tls, renew=True))
        read_server(tls)
        handshake(tls / "server", tls / "client-0" / "ca.crt", "gpu.example.org")
        if ended:
            break
    assert 1 < at < 9


def test_calls_at_the_same_time_make_one_set(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda clients: make(tmp_path / "tls", HOSTS, clients), [2, 4, 3, 4]))
    assert len({one.fingerprint for one in made}) == 1
    assert sum(one.issued for one in made) == 1
    assert sorted(client for one in made for client in one.added) == [0, 1, 2, 3]
    listed = read_server(tmp_path / "tls").clients
    for client, text in listed.items():
        assert read_client(tmp_path / "tls" / f"client-{client}").public.read_text().startswith(text)


@pytest.mark.parametrize(
    "host",
    ["", " ", "https://gpu", "gpu:9092", "[::1]", "a..b", ".a", "a.", "10.0.0", "1.2.3.400", "-a", "a-", "a" * 64,
     "bücher.de", "*.example.org", ".".join(["a" * 60] * 5), "a b", "a\n"],
)  # fmt: skip
def test_what_is_no_host_is_refused_in_one_line(tmp_path: Path, host: str) -> None:
    with pytest.raises(TlsError, match="neither a host name nor an IP address"):
        make(tmp_path / "tls", [host], 1)
    assert not (tmp_path / "tls").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0:0::0"])
def test_an_address_that_nobody_can_join_is_refused(host: str) -> None:
    with pytest.raises(TlsError, match="no address that clients can join"):
        host_name(host)


@settings(max_examples=40, deadline=None)
@given(st.text("abAZ09.-_:*/[] é\n", max_size=14) | st.ip_addresses().map(str))
def test_a_host_is_refused_or_clients_believe_the_server_there(host: str) -> None:
    try:
        host_name(host)
    except TlsError:
        return
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder), [host], 1)
        assert made.hosts.count(host_name(host)) == 1
        handshake(Path(folder, "server"), Path(folder, "client-0", "ca.crt"), host)


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "tls"):
        with pytest.raises(TlsError, match=r"file.*: cannot be made \(.+\)"):
            make(folder, HOSTS, 1)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["splitfed", "certs", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0  # type: ignore[return-value]


def test_the_command_says_what_it_made_and_what_to_copy_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "tls/", "--host", "gpu.example.org", "--host", "10.1.2.3", "--clients", 8) == 0
    said = capsys.readouterr().out
    der = ssl.PEM_cert_to_DER_cert(Path("tls/server/ca.crt").read_text())
    digest = hashlib.sha256(der).hexdigest().upper()
    assert f"SHA-256 {':'.join(re.findall('..', digest))}\n" in said
    assert fingerprint(Path("tls/server/ca.crt")).replace(":", "") == digest
    for part in ("gpu.example.org", "10.1.2.3", "0 to 7", "Copy tls/server ", "like tls/client-0,", "tls/ca nowhere"):
        assert part in said
    assert len(said.splitlines()) == 6
    assert run(monkeypatch, "tls/", "--clients", 10) == 0
    assert "0 to 9 (new: 8 to 9)" in capsys.readouterr().out
    assert run(monkeypatch, "tls/", "--clients", 3) == 0
    assert "more clients than the 3 asked for; none was removed" in capsys.readouterr().out
    assert run(monkeypatch, "other", "--clients", 3) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("other: nothing was made there yet; ")
    assert "--host gpu.example.org" in captured.err
    assert not Path("other").exists()


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom splitfed.cli.main import main\nsys.argv = ['splitfed', 'certs', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'cryptography', 'torch', 'flwr', 'grpc'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "--renew" in done.stdout


def test_the_lists_hold_numbers_and_keys_alone(pristine: Path) -> None:
    assert json.loads((pristine / "client-2" / "client.json").read_text()) == {"format": 1, "client": 2}
    listed = json.loads((pristine / "server" / "clients.json").read_text())
    assert listed.keys() == {"format", "clients"}
    assert list(listed["clients"]) == ["0", "1", "2"]
    assert private_key(pristine / "server" / "server.key").curve.name == "secp256r1"
