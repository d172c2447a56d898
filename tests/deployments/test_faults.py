"""What goes wrong in a deployment, with real processes: nothing hangs, nothing is lost, and one line says it."""

import json
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from deployed import Deployment, deployment, descendants
from helpers import ADC, small, table
from outcomes import same
from tls_kit import DAY, forge, private_key

from splitfed import Scenario, simulate
from splitfed.engines.deployment.certificates import make
from splitfed.run.summary import Summary


def long_rounds(mode: str = "sfl-v1", clients: int = 3, *, rounds: int) -> Scenario:
    """Rounds of a few seconds, in which there is time to be killed."""
    return small(
        *ADC, f"federation.mode={mode}", f"federation.clients={clients}", f"federation.rounds={rounds}",
        "federation.local_epochs=null", "federation.local_steps=250", "training.batch_size=8",
        "training.client_state=keep", "engine={kind: deployment, threads: 1, grace: 1}",
    )  # fmt: skip


def trains(here: Deployment, round: int, client: int) -> Path:
    """Wait until a client is in the middle of a round; return the run's folder."""
    limit = time.monotonic() + 200
    while time.monotonic() < limit:
        for file in here.folder.glob("runs/*/open-*.csv"):
            with suppress(FileNotFoundError):  # a round may end at this moment
                if re.search(rf"^{round},[2-9]\d,{client},up,data", file.read_text(), re.MULTILINE):
                    return file.parent
        time.sleep(0.02)
    raise AssertionError(f"client {client} did not train in round {round}: {[p.text for p in here.processes]}")


def rows(folder: Path, round: int, client: int) -> list[dict[str, str]]:
    where = {"round": str(round), "client": str(client), "plane": "data"}
    return [row for row in table(folder / "ledger.csv") if where.items() <= row.items()]


@pytest.mark.long
def test_a_client_killed_in_mid_round_is_lost_to_it_and_may_come_back(tmp_path):
    with deployment(tmp_path) as here:
        server = here.serve(long_rounds(rounds=200))
        clients = [here.join(client) for client in range(3)]
        folder = trains(here, 1, 1)
        clients[1].kill()
        server.shows(r"round 1: client 1 is lost")
        server.shows(r"  1/200 ")
        back = here.join(1)
        back.shows(r"round \d+: 250 steps")
        limit = time.monotonic() + 300
        while table(folder / "metrics.csv")[-1]["clients"] != "3" and time.monotonic() < limit:
            time.sleep(0.2)
        server.kill(signal.SIGINT)
        assert server.end() == 130, server.text
    sent = rows(folder, 1, 1)
    assert sent  # what it sent before it was killed
    assert max(int(row["step"]) for row in sent) < 251
    rounds = table(folder / "metrics.csv")
    whole = next(row for row in rounds if row["clients"] == "3")
    assert rounds[0]["clients"] == "2"
    assert rows(folder, int(whole["round"]), 1)[-1]["step"] == "251"  # all of its steps, and their end
    counted = sum(int(row["sent_bytes"]) for row in table(folder / "ledger.csv") if row["plane"] == "data")
    assert counted == int(rounds[-1]["cut_bytes"])


@pytest.mark.long
def test_the_last_client_goes_on_alone(tmp_path):
    """The others crash with all their processes: Flower takes them for alive for up to a minute."""
    with deployment(tmp_path) as here:
        server = here.serve(long_rounds("sfl-v2", rounds=2))
        clients = [here.join(client) for client in range(3)]
        folder = trains(here, 1, 0)
        for client in clients[1:]:
            for pid in {client.pid} | descendants(client.pid):
                os.kill(pid, signal.SIGKILL)
        assert server.end() == 0, server.text
        assert clients[0].end() == 0
    assert [row["clients"] for row in table(folder / "metrics.csv")][-1] == "1"
    assert Summary.read(folder).rounds == 2


@pytest.mark.slow
def test_a_killed_server_goes_on_where_it_was_while_its_clients_wait(tmp_path):
    scenario = long_rounds(clients=2, rounds=2)
    expected = simulate(scenario.model_copy(update={"engine": small().engine}), runs=tmp_path / "inline")
    with deployment(tmp_path) as here:
        server = here.serve(scenario)
        clients = [here.join(client) for client in range(2)]
        server.shows(r"  1/2 ")
        folder = trains(here, 2, 0)
        server.kill()
        assert server.end() == -signal.SIGKILL
        for client in clients:
            client.shows("lost the server: nobody listens at")
        again = here.serve(None, "--resume", folder)
        assert again.end() == 0, again.text
        assert [client.end() for client in clients] == [0, 0], [client.text for client in clients]
        assert all("is back" in client.text for client in clients)
        assert "resumed after round 1" in again.text
    assert Summary.read(folder).bytes_wasted > 0
    assert table(folder / "wasted.csv")
    compare = table(folder / "metrics.csv", "seconds", "total_bytes", "total_raw_bytes")
    assert compare == table(expected.folder / "metrics.csv", "seconds", "total_bytes", "total_raw_bytes")
    assert Summary.read(folder).test_loss == expected.summary.test_loss


@pytest.mark.long
def test_ctrl_c_stops_a_server_and_a_client_with_all_their_processes(tmp_path):
    with deployment(tmp_path) as here:
        server = here.serve(long_rounds(clients=2, rounds=1))
        clients = [here.join(client) for client in range(2)]
        folder = trains(here, 1, 0)
        started = descendants(server.pid) | descendants(clients[0].pid)
        assert len(started) >= 2
        server.kill(signal.SIGINT)
        assert server.end() == 130, server.text
        clients[0].kill(signal.SIGINT)
        assert clients[0].end() == 130, clients[0].text
        assert not any(Path(f"/proc/{pid}").exists() for pid in started)
        server.shows(re.escape(f"splitfed serve --resume {folder}"))
        assert "Traceback" not in server.text + clients[0].text
        again = here.serve(None, "--resume", folder)
        here.join(0)
        assert again.end() == 0, again.text
    assert Summary.read(folder).rounds == 1


@pytest.mark.long
def test_keys_decide_who_is_who(tmp_path):
    """A run over TLS, and beside it those who may not take part: each gets one line."""
    tls = tmp_path / "tls"
    make(tls, ["127.0.0.1"], 3)
    make(tmp_path / "other", ["127.0.0.1"], 3)
    scenario = small(*ADC, "federation.clients=2", "federation.rounds=2")
    expected = simulate(scenario, runs=tmp_path / "inline")
    with deployment(tmp_path) as here:
        server = here.serve(scenario, "--tls", tls)
        server.shows("serving at")

        plain = here.join(0)
        plain.shows("speaks TLS: join with --tls|does not answer")
        stranger = here.join(0, "--tls", tmp_path / "other" / "client-0")
        assert stranger.end() == 2
        assert "was not signed by this CA" in stranger.text
        # A key of the same CA's folder, but one that this server does not know: the scenario has clients 0 and 1.
        wrong = here.join(1, "--tls", tls / "client-0")
        assert wrong.end() == 2
        assert "this is the key of client 0, not of client 1" in wrong.text
        whole = here.join(1, "--tls", tls)
        assert whole.end() == 2
        assert "client-" in whole.text

        older = here.join(
            0, "--tls", tls / "client-0", before="import splitfed.wire.grpc_settings as rpc\nrpc.PROTOCOL = 7"
        )
        server.shows(r"client 0 cannot take part: this client speaks protocol 7 \(splitfed .*\), the server 2")
        assert older.end() == 2
        assert "client 0 cannot take part: this client speaks protocol 7" in older.text

        clients = [here.join(client, "--tls", tls / f"client-{client}") for client in range(2)]
        assert server.end() == 0, server.text
        assert [client.end() for client in clients] == [0, 0]
        assert "Traceback" not in "".join(process.text for process in here.processes)
    (folder,) = here.runs
    same(expected.folder, folder)


@pytest.mark.long
def test_an_unknown_key_and_an_expired_certificate_are_told(tmp_path):
    tls = tmp_path / "tls"
    make(tls, ["127.0.0.1"], 2)
    # The server knows client 0, and not the key that client 1 was given.
    listed = tls / "server" / "clients.json"
    keys = json.loads(listed.read_text())
    del keys["clients"]["1"]
    listed.write_text(json.dumps(keys))
    scenario = small("federation.clients=1", "federation.rounds=1")
    with deployment(tmp_path) as here:
        server = here.serve(scenario, "--tls", tls)
        server.shows("serving at")
        # A client tries for more than a minute, and no setting shortens it.
        soon = "import splitfed.clients.deployment.join as join\njoin._GIVE_UP_SECONDS = join._RETRY_SECONDS = 1.0"
        unknown = here.join(1, "--tls", tls / "client-1", before=soon)
        assert unknown.end() == 2
        assert "the server does not know this client's key" in unknown.text
        server.kill(signal.SIGINT)
        assert server.end() == 130

        key = private_key(tls / "server" / "server.key")
        ca = tls / "server" / "ca.crt"
        expired = forge(ca, private_key(tls / "ca" / "ca.key"), key.public_key(), "127.0.0.1", start=-3 * DAY, end=-DAY)
        (tls / "server" / "server.pem").write_bytes(expired)
        late = here.serve(scenario, "--tls", tls)
        assert late.end() == 2
        assert "expired" in late.text
        assert "Traceback" not in late.text
