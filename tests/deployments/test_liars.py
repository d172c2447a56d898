"""Clients that have a key and lie, one of each kind, among honest ones: these end as if the others had never come."""

import re

import pytest
from deployed import deployment
from helpers import small, table
from network.crowd import Crowd
from network.liars import ANSWERS, HELD_OUT, TEXT, WORKS
from outcomes import outcome

from splitfed import simulate
from splitfed.engines.deployment.certificates import make

HONEST = (0, 1)
LIES = dict(enumerate([*ANSWERS, *WORKS, TEXT], start=len(HONEST)))
ROUNDS, REFUSED = 5, 3


def scenario(*more: str):
    return small(
        f"federation.clients={len(HONEST) + len(LIES)}", f"federation.rounds={ROUNDS}", "federation.mode=sfl-v1",
        "data.limit=320", f"evaluation.held_out={HELD_OUT}", *more,
    )  # fmt: skip


@pytest.mark.long
def test_honest_clients_end_as_if_no_liar_had_come(tmp_path):
    """The server is killed once all liars are left out, and goes on with them left out."""
    trace = tmp_path / "trace.csv"
    # Who lies in evaluations alone has a part in the training until it is left out.
    first = {client: REFUSED + 1 if lie == "a score" else 1 for client, lie in LIES.items()}
    gone = [f"{client},{round},0" for client in LIES for round in range(first[client], ROUNDS + 1)]
    trace.write_text("\n".join(["client,round,vanishes_after", *gone, ""]))
    alone = simulate(
        scenario(f"federation.availability={{kind: trace, file: {trace}}}"), runs=tmp_path / "inline"
    )  # fmt: skip
    tls = tmp_path / "tls"
    make(tls, ["127.0.0.1"], len(HONEST) + len(LIES))
    with deployment(tmp_path) as here:
        server = here.serve(scenario(), "--tls", tls)
        server.shows("serving at")
        clients = [here.join(client, "--tls", tls / f"client-{client}", "--threads", 1) for client in HONEST]
        liars = here.crowd(Crowd(f"127.0.0.1:{here.port}", str(tls), str(tmp_path / "liars"), [*LIES], LIES))
        server.shows(rf"  {REFUSED + 1}/{ROUNDS} ")
        server.kill()
        assert server.end() != 0
        again = here.serve(None, "--resume", here.runs[0], "--tls", tls)
        assert again.end() == 0, again.text
        assert [client.end() for client in clients] == [0, 0], [client.text for client in clients]
        liars.end(60)
    (folder,) = here.runs
    figures = ("train_loss", "eval_loss", "eval_accuracy", "clients")
    assert [[row[key] for key in figures] for row in table(folder / "metrics.csv")] == [
        [row[key] for key in figures] for row in table(alone.folder / "metrics.csv")
    ]
    assert outcome(folder)["model"] == outcome(alone.folder)["model"]
    text = server.text + again.text
    assert again.text.count(" joined") == len(HONEST) + len(LIES)
    lines = text.splitlines()
    for client, lie in LIES.items():
        out = f"client {client} is left out for the rest of the run: its replies were refused in {REFUSED} rounds"
        told = [line for line in lines if re.search(rf"\bclient {client}\b", line) and "joined" not in line]
        assert sum(out in line for line in told) == (lie != TEXT), (lie, told)
        for round in range(1, ROUNDS + 1):
            assert any(f"round {round}: " in line for line in told) == (round <= REFUSED or lie == TEXT), (lie, told)
        assert all(line.isprintable() and len(line) < 700 for line in told), (lie, told)
    assert "Traceback" not in text
