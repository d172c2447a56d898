"""Two dozen clients of a deployment, a third of which vanish in the middle of rounds: the run ends with the others."""

import re
import time
from contextlib import suppress
from pathlib import Path

import pytest
from deployed import Deployment, deployment
from helpers import ADC, small, table
from network.crowd import Crowd

from splitfed.engines.deployment.certificates import make
from splitfed.run.summary import Summary

STAY, FIRST, SECOND = range(16), range(16, 20), range(20, 24)
CLIENTS = len([*STAY, *FIRST, *SECOND])


def train(here: Deployment, round: int, clients: range) -> Path:
    """Wait until one of these clients is in the middle of a round; return the run's folder."""
    row = re.compile(rf"^{round},(?:[5-9]|1\d),(?:{'|'.join(map(str, clients))}),up,data", re.MULTILINE)
    limit = time.monotonic() + 200
    while time.monotonic() < limit:
        for file in here.folder.glob("runs/*/open-*.csv"):
            with suppress(FileNotFoundError):  # a round may end at this moment
                if row.search(file.read_text()):
                    return file.parent
        time.sleep(0.02)
    raise AssertionError(f"nobody of {clients} trained in round {round}: {[p.text for p in here.processes]}")


@pytest.mark.long
def test_a_third_of_24_clients_vanish_and_the_run_ends_with_the_others(tmp_path):
    scenario = small(
        *ADC, f"federation.clients={CLIENTS}", "federation.rounds=4", "federation.mode=sfl-v1",
        "federation.local_epochs=null", "federation.local_steps=12", "training.batch_size=8", "data.limit=240",
        "engine={kind: deployment, threads: 1, grace: 1, silence: 10}",
    )  # fmt: skip
    tls = tmp_path / "tls"
    make(tls, ["127.0.0.1"], CLIENTS)
    with deployment(tmp_path) as here:
        server = here.serve(scenario, "--tls", tls)
        server.shows("serving at")
        stay, first, second = (
            here.crowd(Crowd(f"127.0.0.1:{here.port}", str(tls), str(tmp_path / "states"), [*some], {}))
            for some in (STAY, FIRST, SECOND)
        )
        for round, gone, clients in ((2, first, FIRST), (3, second, SECOND)):
            folder = train(here, round, clients)
            gone.kill()
        assert server.end() == 0, server.text
        stay.end(60)
        assert stay.text.count("is done") == len(STAY), stay.text
    taken = [int(row["clients"]) for row in table(folder / "metrics.csv")]
    assert taken[0] == CLIENTS
    assert len(STAY) + len(SECOND) <= taken[1] < CLIENTS
    assert len(STAY) <= taken[2] < CLIENTS - len(FIRST) + 1
    assert taken[3] == len(STAY)
    for clients in (FIRST, SECOND):
        assert any(f"client {client} is lost" in server.text for client in clients), server.text
    assert not any(f"client {client} is lost" in server.text for client in STAY), server.text
    assert "Traceback" not in server.text
    assert Summary.read(folder).rounds == 4
