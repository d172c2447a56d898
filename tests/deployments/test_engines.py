"""The same numbers everywhere: one scenario in one process, in Ray actors, and with real clients."""

import pytest
from deployed import deployment, descendants
from helpers import ADC, small
from outcomes import same

from splitfed import Scenario, simulate
from splitfed.run.summary import Summary
from splitfed.scenario.engine import Deployment

THREE = ["federation.clients=3", "federation.cohort=2", "federation.rounds=3", "training.client_state=keep",
         "evaluation={held_out: 0.2, every: 2}"]  # fmt: skip


def scenario(mode: str) -> Scenario:
    return small(*ADC, *THREE, f"federation.mode={mode}")


@pytest.mark.parametrize("mode", ["sfl-v1", pytest.param("sfl-v2", marks=pytest.mark.slow)])
def test_a_deployment_repeats_a_simulation(mode, tmp_path):
    expected = simulate(scenario(mode), runs=tmp_path / "inline")
    with deployment(tmp_path) as here:
        server = here.serve(scenario(mode))
        clients = [here.join(client) for client in range(3)]
        assert server.end() == 0, server.text
        assert [client.end() for client in clients] == [0, 0, 0]
        assert not descendants(server.pid)
    (folder,) = here.runs
    same(expected.folder, folder)
    assert Summary.read(folder).engine == "deployment"
    assert isinstance(Scenario.load(str(folder / "scenario.yaml")).engine, Deployment)
    assert "test accuracy" in server.text
    assert all(f"client {client} joined with" in server.text for client in range(3))
    assert "the run is over" in clients[0].text
    assert not (folder / "flower").exists()  # nothing of Flower's, nor of its database, stays behind
