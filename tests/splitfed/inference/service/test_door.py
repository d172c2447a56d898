"""Who is let in: by a key that is listed, a nonce of this server's, used once, and signed for this server."""

import json
import shutil
from base64 import b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from splitfed.engines.deployment.certificates import make
from splitfed.engines.deployment.tls import fingerprint, read_client
from splitfed.engines.deployment.tls_files import read_ssh_key
from splitfed.errors import TlsError, WireError
from splitfed.inference.service.door import Door
from splitfed.wire.answers import signed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "tls"
    make(folder, ["gpu.example.org"], 2)
    return folder


def sign(folder: Path, nonce: str, *, host: str = "localhost", client: int = 0, key: int | None = None) -> str:
    """Sign as a client, with its own key or another's."""
    files = read_client(folder / f"client-{client if key is None else key}")
    text = signed(nonce, host, client, fingerprint(files.ca))
    return b64encode(read_ssh_key(files.key).sign(text, ec.ECDSA(hashes.SHA256()))).decode()


def test_a_listed_key_opens_once(made: Path) -> None:
    door = Door(made, "localhost")
    nonce = door.nonce()
    proof = sign(made, nonce, client=1)
    assert door.check("1", "localhost", nonce, proof) == 1
    with pytest.raises(WireError, match="expired"):
        door.check("1", "localhost", nonce, proof)


def test_what_does_not_prove_it_is_refused(made: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", ["gpu.example.org"], 2)
    door = Door(made, "localhost")

    def refused(nonce: str, proof: str, host: str = "localhost", client: str = "0") -> None:
        with pytest.raises(WireError):
            door.check(client, host, nonce, proof)

    for how in ({"key": 1}, {"client": 1}, {"host": "gpu.example.org"}):
        nonce = door.nonce()
        refused(nonce, sign(made, nonce, **how))  # type: ignore[arg-type]
    nonce = door.nonce()
    refused(nonce, sign(tmp_path / "other", nonce))
    for client in ("2", "-1", "", "x", "0" * 12, "\u0661"):
        nonce = door.nonce()
        refused(nonce, sign(made, nonce), client=client)
    for proof in ("", "AAAA", "!", "A" * 9999):
        refused(door.nonce(), proof)
    foreign = Door(made, "localhost").nonce()
    for nonce in (foreign, "", "1.2.3", "x" * 10_000, door.nonce()[:-1], "\u00e9"):
        refused(nonce, sign(made, nonce))


def test_what_was_signed_for_another_server_is_no_use_here(made: Path) -> None:
    """A server of the same CA, under a name of its own, may pass our nonce on; the client signs the name it dialled."""
    door = Door(made, "localhost")
    nonce = door.nonce()
    with pytest.raises(WireError, match="another server"):
        door.check("0", "evil.example.org", nonce, sign(made, nonce, host="evil.example.org"))
    nonce = door.nonce()
    assert door.check("0", "gpu.example.org", nonce, sign(made, nonce, host="gpu.example.org")) == 0


def test_a_nonce_expires(made: Path) -> None:
    now = 1000.0
    door = Door(made, "localhost", lifetime=30, clock=lambda: now)
    early, late = door.nonce(), door.nonce()
    now = 1029.0
    assert door.check("0", "localhost", early, sign(made, early)) == 0
    now = 1031.0
    with pytest.raises(WireError, match="expired"):
        door.check("0", "localhost", late, sign(made, late))


def test_whose_entry_is_gone_is_not_let_in_again(made: Path, tmp_path: Path) -> None:
    tls = Path(shutil.copytree(made, tmp_path / "tls"))
    door = Door(tls, "localhost")
    listed = tls / "server" / "clients.json"
    content = json.loads(listed.read_text())
    del content["clients"]["0"]
    listed.write_text(json.dumps(content))
    door.reload()
    assert (door.knows(0), door.knows(1)) == (False, True)
    nonce = door.nonce()
    with pytest.raises(WireError, match="does not know the key"):
        door.check("0", "localhost", nonce, sign(tls, nonce))
    listed.write_text("{")
    with pytest.raises(TlsError):
        door.reload()
    assert door.knows(1)


def test_without_keys_a_fresh_nonce_is_enough() -> None:
    door = Door(None, "127.0.0.1")
    assert door.check("7", "", door.nonce(), "") == 7
    with pytest.raises(WireError):
        door.check("7", "", "", "")


def test_a_host_that_the_certificate_does_not_name_is_told_at_once(made: Path) -> None:
    with pytest.raises(TlsError, match=r"not for other\.example\.org"):
        Door(made, "other.example.org")
