"""The same numbers everywhere: one scenario in one process, in Ray actors, and with real clients."""

import pytest
from deployed import deployment, descendants
from helpers import ADC, small
from outcomes import same

from splitfed import Scenario, simulate
from splitfed.run.summary import Summary
from splitfed.scenario.engine import Deployment

LOCAL = "phases=[{kind: local, rounds: 1, upload_every: 1, align_every: 2}, gradient]"
AHEAD = ["training.ahead=2", "federation.local_epochs=3"]


def scenario(mode: str, clients: int, *more: str) -> Scenario:
    return small(
        *ADC, *more, f"federation.mode={mode}", f"federation.clients={clients}", "federation.cohort=2",
        f"federation.rounds={clients}", "training.client_state=keep", "evaluation={held_out: 0.2, every: 2}",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "clients", "more"),
    [
        pytest.param("sfl-v2", 3, [], marks=pytest.mark.long),
        ("sfl-v1", 2, [LOCAL]),
        pytest.param("sfl-v1", 2, AHEAD, marks=pytest.mark.long),
    ],
)
def test_a_deployment_repeats_a_simulation(mode, clients, more, tmp_path):
    """With three clients, one of them waits in each round."""
    expected = simulate(scenario(mode, clients, *more), runs=tmp_path / "inline")
    with deployment(tmp_path) as here:
        server = here.serve(scenario(mode, clients, *more))
        joined = [here.join(client) for client in range(clients)]
        assert server.end() == 0, server.text
        assert [client.end() for client in joined] == [0] * clients
        assert not descendants(server.pid)
    (folder,) = here.runs
    same(expected.folder, folder)
    found = Summary.read(folder)
    assert found.engine == "deployment"
    # What clients say that their shares weigh is what the server sees in a simulation.
    assert (found.images_bytes, found.images_reported) == (expected.summary.images_bytes, True) == (64 * 96, True)
    assert found.images_factor == found.total_bytes / found.images_bytes
    assert "what the images weigh, as clients report it" in server.text
    assert isinstance(Scenario.load(str(folder / "scenario.yaml")).engine, Deployment)
    assert "test accuracy" in server.text
    assert all(f"client {client} joined with" in server.text for client in range(clients))
    assert "the run is over" in joined[0].text
    assert not (folder / "flower").exists()  # nothing of Flower's, nor of its database, stays behind
